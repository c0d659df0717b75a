#include "kernels/gelu/gelu.h"

#include "kernels/common/dispatch.h"
#include "kernels/common/vexp.h"
#include "kernels/gelu/gelu_naive.h"

namespace lc::kernels {

void gelu_forward(const GeluForward& args, Stream stream) {
    const ProfileZone zone("gelu");
    require_one_shape("gelu", {args.x, args.up, args.y});
    require_alike("gelu", {args.x, args.up, args.y});
    if constexpr (cuda::kBuilt)
        if (on_cuda("gelu", args.x)) return gelu_forward_cuda(args, stream);
    if (use_fast_cpu(args.x.dtype)) return gelu_forward_with<float>(args, [](float x) { return exp_approx(x); });
    dispatch_compute(args.x.dtype, "gelu", [&](auto type) { gelu_forward_naive<typename decltype(type)::type>(args); });
}

void gelu_backward(const GeluBackward& args, Stream stream) {
    const ProfileZone zone("gelu backward");
    LC_CHECK(args.up || !args.dup, "gelu: a gradient of up without up");
    require_one_shape("gelu", {args.dy, args.x, args.up, args.dx.view, args.dup.view});
    require_alike("gelu", {args.dy, args.x, args.up});
    require_wide("gelu", args.dy, {args.dx.view, args.dup.view});
    if constexpr (cuda::kBuilt)
        if (on_cuda("gelu", args.dy)) return gelu_backward_cuda(args, stream);
    if (use_fast_cpu(args.dy.dtype)) return gelu_backward_with<float>(args, [](float x) { return exp_approx(x); });
    dispatch_compute(args.dy.dtype, "gelu",
                     [&](auto type) { gelu_backward_naive<typename decltype(type)::type>(args); });
}

}  // namespace lc::kernels
