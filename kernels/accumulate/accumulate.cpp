#include "kernels/accumulate/accumulate.h"

#include "kernels/accumulate/accumulate_naive.h"
#include "kernels/common/dispatch.h"

namespace lc::kernels {

void accumulate(const Accumulate& args, Stream) {
    LC_CHECK(args.source.shape() == args.target.shape() && args.source.dtype == args.target.dtype,
             "accumulate: source {} {} into target {} {}", args.source.shape(), name_of(args.source.dtype),
             args.target.shape(), name_of(args.target.dtype));
    require_cpu(args.target, "accumulate");
    dispatch_compute(args.target.dtype, "accumulate",
                     [&](auto type) { accumulate_naive<typename decltype(type)::type>(args); });
}

}  // namespace lc::kernels
