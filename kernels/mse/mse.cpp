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

void mse_forward(const MseForward& args, Stream) {
    check(args.y, args.target, args.loss);
    on_cpu("mse", {args.y, args.target, args.loss},
           [&](auto type) { mse_forward_naive<typename decltype(type)::type>(args); });
}

void mse_backward(const MseBackward& args, Stream) {
    check(args.y, args.target, args.dloss);
    on_cpu("mse", {args.dloss, args.y, args.target, args.dy.view, args.dtarget.view},
           [&](auto type) { mse_backward_naive<typename decltype(type)::type>(args); });
}

}  // namespace lc::kernels
