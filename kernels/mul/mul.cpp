#include "kernels/mul/mul.h"

#include "kernels/common/dispatch.h"
#include "kernels/mul/mul_naive.h"

namespace lc::kernels {

void mul_forward(const MulForward& args, Stream stream) {
    const ProfileZone zone("mul");
    require_one_shape("mul", {args.a, args.b, args.c});
    require_alike("mul", {args.a, args.b, args.c});
    if constexpr (cuda::kBuilt)
        if (on_cuda("mul", args.a)) return mul_forward_cuda(args, stream);
    dispatch_compute(args.a.dtype, "mul", [&](auto type) { mul_forward_naive<typename decltype(type)::type>(args); });
}

void mul_backward(const MulBackward& args, Stream stream) {
    const ProfileZone zone("mul backward");
    require_one_shape("mul", {args.dc, args.a, args.b, args.da.view, args.db.view});
    require_alike("mul", {args.dc, args.a, args.b});
    require_wide("mul", args.dc, {args.da.view, args.db.view});
    if constexpr (cuda::kBuilt)
        if (on_cuda("mul", args.dc)) return mul_backward_cuda(args, stream);
    dispatch_compute(args.dc.dtype, "mul", [&](auto type) { mul_backward_naive<typename decltype(type)::type>(args); });
}

}  // namespace lc::kernels
