#include "kernels/accumulate/accumulate.h"

#include "kernels/accumulate/accumulate_naive.h"
#include "kernels/common/dispatch.h"

namespace lc::kernels {

void accumulate(const Accumulate& args, Stream stream) {
    const ProfileZone zone("accumulate");
    LC_CHECK(args.source.shape() == args.target.shape(), "accumulate: source {} into target {}", args.source.shape(),
             args.target.shape());
    require_wide("accumulate", args.source, {args.target});
    if constexpr (cuda::kBuilt)
        if (on_cuda("accumulate", args.source)) return accumulate_cuda(args, stream);
    dispatch_compute(args.source.dtype, "accumulate",
                     [&](auto type) { accumulate_naive<typename decltype(type)::type>(args); });
}

}  // namespace lc::kernels
