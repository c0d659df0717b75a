#include "kernels/sum/sum.h"

#include "kernels/common/dispatch.h"
#include "kernels/sum/sum_naive.h"

namespace lc::kernels {

void sum_forward(const SumForward& args, Stream stream) {
    const ProfileZone zone("sum");
    LC_CHECK(args.y.numel() == 1, "sum: y must hold one element, got {}", args.y.shape());
    require_wide("sum", args.x, {args.y});
    if constexpr (cuda::kBuilt)
        if (on_cuda("sum", args.x)) return sum_forward_cuda(args, stream);
    dispatch_compute(args.x.dtype, "sum", [&](auto type) { sum_forward_naive<typename decltype(type)::type>(args); });
}

void sum_backward(const SumBackward& args, Stream stream) {
    const ProfileZone zone("sum backward");
    LC_CHECK(args.dy.numel() == 1, "sum: dy must hold one element, got {}", args.dy.shape());
    if (!args.dx) return;
    require_wide("sum", args.dx.view, {args.dy});
    if constexpr (cuda::kBuilt)
        if (on_cuda("sum", args.dx.view)) return sum_backward_cuda(args, stream);
    dispatch_compute(args.dy.dtype, "sum", [&](auto type) { sum_backward_naive<typename decltype(type)::type>(args); });
}

}  // namespace lc::kernels
