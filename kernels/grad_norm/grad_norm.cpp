#include "kernels/grad_norm/grad_norm.h"

#include "kernels/common/dispatch.h"
#include "kernels/grad_norm/grad_norm_naive.h"

namespace lc::kernels {

double grad_norm(const GradNorm& args, Stream) {
    double squares = 0;
    for (const TensorView& view : args.tensors) {
        require_cpu(view, "grad_norm");
        dispatch_compute(view.dtype, "grad_norm",
                         [&](auto type) { squares += sum_of_squares_naive<typename decltype(type)::type>(view); });
    }
    return std::sqrt(squares);
}

}  // namespace lc::kernels
