#include "kernels/adamw/adamw.h"

#include "kernels/adamw/adamw_naive.h"
#include "kernels/common/dispatch.h"

namespace lc::kernels {

void adamw_step(const AdamwStep& args, Stream stream) {
    const ProfileZone zone("adamw");
    LC_CHECK(args.step >= 1, "adamw: steps are counted from 1, got {}", args.step);
    if (args.tensors.empty()) return;
    const TensorView& first = args.tensors[0].parameter;
    for (size_t i = 0; i < args.tensors.size(); ++i) {
        const AdamwTensor& t = args.tensors[i];
        for (const TensorView& view : {t.parameter, t.grad, t.m, t.v})
            LC_CHECK(view && view.shape() == t.parameter.shape() && view.layout.is_contiguous(),
                     "adamw: tensor {}: parameter, gradient, m and v must be contiguous and {}, got {}", i,
                     t.parameter.shape(), view.shape());
        require_alike("adamw", {first, t.parameter, t.grad, t.m, t.v});
    }
    if constexpr (cuda::kBuilt)
        if (on_cuda("adamw", first)) {
            LC_CHECK(first.dtype == DType::f32, "adamw: CUDA updates f32 parameters, got {}", name_of(first.dtype));
            return adamw_step_cuda(args, stream);
        }
    dispatch_compute(first.dtype, "adamw", [&](auto type) { adamw_step_naive<typename decltype(type)::type>(args); });
}

}  // namespace lc::kernels
