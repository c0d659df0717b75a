#include "kernels/dropout/dropout.h"

#include "kernels/common/dispatch.h"
#include "kernels/dropout/dropout_naive.h"

namespace lc::kernels {
namespace {

void check(const TensorView& from, const DropoutMask& mask, const TensorView& to) {
    LC_CHECK(mask.p >= 0 && mask.p < 1, "dropout: p must be in [0,1), got {}", mask.p);
    require_one_shape("dropout", {from, to});
}

void run_on_cpu(const TensorView& from, const DropoutMask& mask, const GradSlot& to) {
    dispatch_compute(from.dtype, "dropout",
                     [&](auto type) { dropout_naive<typename decltype(type)::type>(from, mask, to); });
}

}  // namespace

void dropout_forward(const DropoutForward& args, Stream stream) {
    const ProfileZone zone("dropout");
    check(args.x, args.mask, args.y);
    require_alike("dropout", {args.x, args.y});
    if constexpr (cuda::kBuilt)
        if (on_cuda("dropout", args.x)) return dropout_forward_cuda(args, stream);
    run_on_cpu(args.x, args.mask, {args.y});
}

void dropout_backward(const DropoutBackward& args, Stream stream) {
    const ProfileZone zone("dropout backward");
    check(args.dy, args.mask, args.dx.view);
    require_wide("dropout", args.dy, {args.dx.view});
    if constexpr (cuda::kBuilt)
        if (on_cuda("dropout", args.dy)) return dropout_backward_cuda(args, stream);
    run_on_cpu(args.dy, args.mask, args.dx);
}

}  // namespace lc::kernels
