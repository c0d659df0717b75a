#include "kernels/scale/scale.h"

#include "kernels/common/dispatch.h"
#include "kernels/scale/scale_naive.h"

namespace lc::kernels {

void scale_forward(const ScaleForward& args, Stream stream) {
    const ProfileZone zone("scale");
    require_one_shape("scale", {args.x, args.y});
    require_alike("scale", {args.x, args.y});
    if constexpr (cuda::kBuilt)
        if (on_cuda("scale", args.x)) return scale_forward_cuda(args, stream);
    dispatch_compute(args.x.dtype, "scale",
                     [&](auto type) { scale_forward_naive<typename decltype(type)::type>(args); });
}

void scale_backward(const ScaleBackward& args, Stream stream) {
    const ProfileZone zone("scale backward");
    require_one_shape("scale", {args.dy, args.dx.view});
    require_wide("scale", args.dy, {args.dx.view});
    if constexpr (cuda::kBuilt)
        if (on_cuda("scale", args.dy)) return scale_backward_cuda(args, stream);
    dispatch_compute(args.dy.dtype, "scale",
                     [&](auto type) { scale_backward_naive<typename decltype(type)::type>(args); });
}

}  // namespace lc::kernels
