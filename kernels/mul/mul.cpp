#include "kernels/mul/mul.h"

#include "kernels/common/dispatch.h"
#include "kernels/mul/mul_naive.h"

namespace lc::kernels {

void mul_forward(const MulForward& args, Stream) {
    on_cpu("mul", {args.a, args.b, args.c}, [&](auto type) { mul_forward_naive<typename decltype(type)::type>(args); });
}

void mul_backward(const MulBackward& args, Stream) {
    on_cpu("mul", {args.dc, args.a, args.b, args.da.view, args.db.view},
           [&](auto type) { mul_backward_naive<typename decltype(type)::type>(args); });
}

}  // namespace lc::kernels
