#include "kernels/swiglu/swiglu.h"

#include "kernels/common/dispatch.h"
#include "kernels/common/vexp.h"
#include "kernels/swiglu/swiglu_naive.h"

namespace lc::kernels {

void swiglu_forward(const SwigluForward& args, Stream stream) {
    const ProfileZone zone("swiglu");
    require_one_shape("swiglu", {args.gate, args.up, args.y});
    require_alike("swiglu", {args.gate, args.up, args.y});
    if constexpr (cuda::kBuilt)
        if (on_cuda("swiglu", args.gate)) return swiglu_forward_cuda(args, stream);
    if (use_fast_cpu(args.gate.dtype)) return swiglu_forward_with<float>(args, [](float x) { return exp_approx(x); });
    dispatch_compute(args.gate.dtype, "swiglu",
                     [&](auto type) { swiglu_forward_naive<typename decltype(type)::type>(args); });
}

void swiglu_backward(const SwigluBackward& args, Stream stream) {
    const ProfileZone zone("swiglu backward");
    require_one_shape("swiglu", {args.dy, args.gate, args.up, args.dgate.view, args.dup.view});
    require_alike("swiglu", {args.dy, args.gate, args.up});
    require_wide("swiglu", args.dy, {args.dgate.view, args.dup.view});
    if constexpr (cuda::kBuilt)
        if (on_cuda("swiglu", args.dy)) return swiglu_backward_cuda(args, stream);
    if (use_fast_cpu(args.dy.dtype)) return swiglu_backward_with<float>(args, [](float x) { return exp_approx(x); });
    dispatch_compute(args.dy.dtype, "swiglu",
                     [&](auto type) { swiglu_backward_naive<typename decltype(type)::type>(args); });
}

}  // namespace lc::kernels
