#include "kernels/mse/mse.h"

#include "kernels/common/dispatch.h"
#include "kernels/mse/mse_naive.h"

namespace lc::kernels {
namespace {

void check(const TensorView& y, const TensorView& target, const TensorView& loss) {
    LC_CHECK(y.shape() == target.shape() && y.numel() > 0,
             "mse: y and target must have one shape and elements, got {} and {}", y.shape(), target.shape());
    LC_CHECK(loss.numel() == 1, "mse: the loss must hold one element, got {}", loss.shape());
}

}  // namespace

void mse_forward(const MseForward& args, Stream stream) {
    const ProfileZone zone("mse");
    check(args.y, args.target, args.loss);
    require_alike("mse", {args.y, args.target});
    require_wide("mse", args.y, {args.loss});
    if constexpr (cuda::kBuilt)
        if (on_cuda("mse", args.y)) return mse_forward_cuda(args, stream);
    dispatch_compute(args.y.dtype, "mse", [&](auto type) { mse_forward_naive<typename decltype(type)::type>(args); });
}

void mse_backward(const MseBackward& args, Stream stream) {
    const ProfileZone zone("mse backward");
    check(args.y, args.target, args.dloss);
    require_one_shape("mse", {args.y, args.dy.view, args.dtarget.view});
    require_alike("mse", {args.y, args.target});
    require_wide("mse", args.y, {args.dloss, args.dy.view, args.dtarget.view});
    if constexpr (cuda::kBuilt)
        if (on_cuda("mse", args.y)) return mse_backward_cuda(args, stream);
    dispatch_compute(args.y.dtype, "mse", [&](auto type) { mse_backward_naive<typename decltype(type)::type>(args); });
}

}  // namespace lc::kernels
