#include "kernels/grad_norm/grad_norm.h"

#include "kernels/common/dispatch.h"
#include "kernels/grad_norm/grad_norm_naive.h"

namespace lc::kernels {

double grad_norm(const GradNorm& args, Stream stream) {
    const ProfileZone zone("grad_norm");
    for (const TensorView& view : args.tensors)
        LC_CHECK(view.device == args.tensors[0].device, "grad_norm: devices differ, {} and {}",
                 args.tensors[0].device.str(), view.device.str());
    if constexpr (cuda::kBuilt) {
        bool on_gpu = false;
        for (const TensorView& view : args.tensors) on_gpu = on_cuda("grad_norm", view);  // checks each dtype
        if (on_gpu) return grad_norm_cuda(args, stream);
    }
    double squares = 0;
    for (const TensorView& view : args.tensors)
        dispatch_compute(view.dtype, "grad_norm",
                         [&](auto type) { squares += sum_of_squares_naive<typename decltype(type)::type>(view); });
    return std::sqrt(squares);
}

}  // namespace lc::kernels
