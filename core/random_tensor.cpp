#include "core/random_tensor.h"

#include "core/cuda/runtime.h"
#include "core/parallel.h"

namespace lc {

Tensor normal_tensor(const Shape& shape, double deviation, const Random& random, DType dtype, Device device) {
    Tensor tensor = Tensor::empty(shape, dtype, device);
    if (device.is_cuda()) {
        cuda::fill_normal(tensor.view(), deviation, random, current_stream(device));
        return tensor;
    }
    dispatch_compute(dtype, "random", [&]<class T>(std::type_identity<T>) {
        T* data = tensor.data<T>();
        parallel_for(tensor.numel(), 4096, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i)
                data[i] = static_cast<T>(static_cast<float>(deviation * random.normal(static_cast<uint64_t>(i))));
        });
    });
    return tensor;
}

}  // namespace lc
