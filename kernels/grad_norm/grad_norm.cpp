#include "kernels/grad_norm/grad_norm.h"

#include <algorithm>

#include "kernels/common/dispatch.h"
#include "kernels/grad_norm/grad_norm_naive.h"

namespace lc::kernels {

double grad_norm(const GradNorm& args, Stream stream) {
    const std::vector<int64_t> groups(args.tensors.size(), 0);
    return grad_norms({.tensors = args.tensors, .groups = groups, .count = 1}, stream)[0];
}

std::vector<double> grad_norms(const GradNorms& args, Stream stream) {
    const ProfileZone zone("grad_norm");
    LC_CHECK(args.groups.size() == args.tensors.size(), "grad_norm: {} tensors, {} group indices", args.tensors.size(),
             args.groups.size());
    LC_CHECK(std::is_sorted(args.groups.begin(), args.groups.end()) &&
                 (args.groups.empty() || (args.groups.front() >= 0 && args.groups.back() < args.count)),
             "grad_norm: group indices must not fall and lie in [0,{})", args.count);
    for (const TensorView& view : args.tensors)
        LC_CHECK(view.device == args.tensors[0].device, "grad_norm: devices differ, {} and {}",
                 args.tensors[0].device.str(), view.device.str());
    if constexpr (cuda::kBuilt) {
        bool on_gpu = false;
        for (const TensorView& view : args.tensors) on_gpu = on_cuda("grad_norm", view);  // checks each dtype
        if (on_gpu) return grad_norms_cuda(args, stream);
    }
    return grad_norms_naive(args);
}

}  // namespace lc::kernels
