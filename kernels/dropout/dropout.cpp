#include "kernels/dropout/dropout.h"

#include "kernels/common/dispatch.h"
#include "kernels/dropout/dropout_naive.h"

namespace lc::kernels {
namespace {

void run(const TensorView& from, const DropoutMask& mask, const GradSlot& to) {
    LC_CHECK(mask.p >= 0 && mask.p < 1, "dropout: p must be in [0,1), got {}", mask.p);
    LC_CHECK(!to || from.shape() == to.view.shape(), "dropout: shapes differ, {} and {}", from.shape(),
             to.view.shape());
    on_cpu("dropout", {from, to.view},
           [&](auto type) { dropout_naive<typename decltype(type)::type>(from, mask, to); });
}

}  // namespace

void dropout_forward(const DropoutForward& args, Stream) {
    run(args.x, args.mask, {args.y});
}
void dropout_backward(const DropoutBackward& args, Stream) {
    run(args.dy, args.mask, args.dx);
}

}  // namespace lc::kernels
