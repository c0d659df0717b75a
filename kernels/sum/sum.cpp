#include "kernels/sum/sum.h"

#include "kernels/common/dispatch.h"
#include "kernels/sum/sum_naive.h"

namespace lc::kernels {

void sum_forward(const SumForward& args, Stream) {
    LC_CHECK(args.y.numel() == 1, "sum: y must hold one element, got {}", args.y.shape());
    on_cpu("sum", {args.x, args.y}, [&](auto type) { sum_forward_naive<typename decltype(type)::type>(args); });
}

void sum_backward(const SumBackward& args, Stream) {
    LC_CHECK(args.dy.numel() == 1, "sum: dy must hold one element, got {}", args.dy.shape());
    on_cpu("sum", {args.dy, args.dx.view}, [&](auto type) { sum_backward_naive<typename decltype(type)::type>(args); });
}

}  // namespace lc::kernels
