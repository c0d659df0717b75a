#include "core/tensor.h"

#include <cstring>

#include "core/allocator.h"
#include "core/cuda/runtime.h"
#include "core/parallel.h"

namespace lc {
namespace {

template <class To, class From>
To convert(From value) {
    if constexpr (std::is_same_v<To, From>) return value;
    else if constexpr (std::is_same_v<To, bf16> || std::is_same_v<To, f16>) {
        if constexpr (std::is_same_v<From, bf16> || std::is_same_v<From, f16>) return To(static_cast<float>(value));
        else return To(static_cast<float>(value));
    } else if constexpr (std::is_same_v<From, bf16> || std::is_same_v<From, f16>) {
        return static_cast<To>(static_cast<float>(value));
    } else {
        return static_cast<To>(value);
    }
}

// Calls f(from_offset, to_offset, n, from_stride, to_stride) for every innermost run of the common shape.
template <class F>
void for_each_run(const Layout& from, const Layout& to, F&& f) {
    const int rank = from.rank();
    if (rank == 0) return f(from.offset, to.offset, int64_t{1}, int64_t{1}, int64_t{1});
    const int64_t inner = from.shape[-1];
    const int64_t runs = inner == 0 ? 0 : from.numel() / inner;
    parallel_for(runs, std::max<int64_t>(1, 16384 / std::max<int64_t>(inner, 1)), [&](int64_t begin, int64_t end) {
        for (int64_t run = begin; run < end; ++run) {
            int64_t rest = run, a = from.offset, b = to.offset;
            for (int axis = rank - 2; axis >= 0; --axis) {
                const int64_t i = rest % from.shape[axis];
                rest /= from.shape[axis];
                a += i * from.strides[axis];
                b += i * to.strides[axis];
            }
            f(a, b, inner, from.strides[-1], to.strides[-1]);
        }
    });
}

std::shared_ptr<Storage> make_storage(int64_t bytes, Device device) {
    auto storage = std::make_shared<Storage>();
    storage->data = allocator(device).allocate(bytes, current_stream(device));
    storage->bytes = bytes;
    storage->device = device;
    return storage;
}

void copy_on_cpu(const TensorView& from, const TensorView& to) {
    dispatch_any(from.dtype, [&](auto from_type) {
        dispatch_any(to.dtype, [&](auto to_type) {
            using From = typename decltype(from_type)::type;
            using To = typename decltype(to_type)::type;
            const From* source = reinterpret_cast<const From*>(from.base);
            To* target = reinterpret_cast<To*>(to.base);
            for_each_run(from.layout, to.layout, [&](int64_t a, int64_t b, int64_t n, int64_t sa, int64_t sb) {
                if (sa == 1 && sb == 1) {
                    if constexpr (std::is_same_v<From, To>) std::memcpy(target + b, source + a, n * sizeof(To));
                    else
                        for (int64_t i = 0; i < n; ++i) target[b + i] = convert<To>(source[a + i]);
                } else {
                    for (int64_t i = 0; i < n; ++i) target[b + i * sb] = convert<To>(source[a + i * sa]);
                }
            });
        });
    });
}

// The same elements where `view` lies, gap-free and in the target's order of axes, dtype and device kept.
Tensor dense_copy(const TensorView& view, const Layout& order) {
    Tensor copy = Tensor::empty_like(order, view.dtype, view.device);
    copy_strided(view, copy.view());
    return copy;
}

// Bytes cross; layouts and dtypes are changed on the side that has the fewer bytes to send.
void copy_between_devices(const TensorView& from, const TensorView& to) {
    const bool same = from.dtype == to.dtype && from.layout.is_dense() && from.layout.strides == to.layout.strides;
    const Stream stream = current_stream(from.device.is_cuda() ? from.device : to.device);
    if (same) {
        const int64_t width = size_of(from.dtype);
        cuda::copy_bytes(to.base + to.layout.offset * width, from.base + from.layout.offset * width,
                         from.numel() * width, stream);
        return cuda::synchronize(stream);
    }
    if (size_of(from.dtype) > size_of(to.dtype)) {
        Tensor converted = Tensor::empty_like(to.layout, to.dtype, from.device);
        copy_strided(from, converted.view());
        if (to.layout.is_dense()) return copy_between_devices(converted.view(), to);
        const Tensor there = converted.to(to.device);
        return copy_strided(there.view(), to);
    }
    const Tensor dense = dense_copy(from, to.layout);
    Tensor there = Tensor::empty_like(to.layout, from.dtype, to.device);
    copy_between_devices(dense.view(), there.view());
    copy_strided(there.view(), to);
}

}  // namespace

void copy_strided(const TensorView& from, const TensorView& to) {
    LC_CHECK(from.shape() == to.shape(), "copy: shapes differ, {} into {}", from.shape(), to.shape());
    if (from.numel() == 0) return;
    if (from.device != to.device) return copy_between_devices(from, to);
    if (from.device.is_cuda()) return cuda::copy_strided(from, to, current_stream(from.device));
    copy_on_cpu(from, to);
}

Tensor Tensor::empty(const Shape& shape, DType dtype, Device device) {
    return empty_like(Layout::contiguous(shape), dtype, device);
}

Tensor Tensor::empty_like(const Layout& layout, DType dtype, Device device) {
    const int64_t bytes = layout.numel() * size_of(dtype);
    return {make_storage(bytes, device), layout.dense_like(), dtype};
}

Tensor Tensor::zeros(const Shape& shape, DType dtype, Device device) {
    Tensor result = empty(shape, dtype, device);
    if (device.is_cuda())
        cuda::fill_bytes(result.storage_->data.get(), 0, result.storage_->bytes, current_stream(device));
    else
        std::memset(result.storage_->data.get(), 0, static_cast<size_t>(result.storage_->bytes));
    return result;
}

Tensor Tensor::full(const Shape& shape, double value, DType dtype, Device device) {
    Tensor result = empty(shape, dtype, device);
    result.fill(value);
    return result;
}

template <class T>
Tensor Tensor::from(std::span<const T> values, const Shape& shape) {
    LC_CHECK(static_cast<int64_t>(values.size()) == numel_of(shape), "Tensor::from: {} values for shape {}", values.size(),
             shape);
    Tensor result = empty(shape, kDType<T>);
    if (!values.empty()) std::memcpy(result.data<T>(), values.data(), values.size_bytes());
    return result;
}

TensorView Tensor::view() const {
    if (!storage_) return {};
    return {storage_->data.get(), layout_, dtype_, storage_->device};
}

double Tensor::item() const {
    LC_CHECK(defined() && numel() == 1, "item: needs exactly one element, got shape {}", shape());
    return to_vector<double>()[0];
}

Tensor Tensor::reshaped(const Shape& target) const {
    if (auto layout = layout_.reshape(target)) return with_layout(*layout);
    const Tensor flat = contiguous();
    return flat.with_layout(*flat.layout_.reshape(target));
}

Tensor Tensor::contiguous() const {
    if (is_contiguous()) return detach();
    Tensor result = empty(shape(), dtype_, device());
    copy_strided(view(), result.view());
    return result;
}

Tensor Tensor::clone() const {
    Tensor result = empty_like(layout_, dtype_, device());
    copy_strided(view(), result.view());
    return result;
}

Tensor Tensor::to(DType dtype) const {
    if (dtype == dtype_) return detach();
    Tensor result = empty_like(layout_, dtype, device());
    copy_strided(view(), result.view());
    return result;
}

Tensor Tensor::to(Device target) const {
    if (target == device()) return detach();
    Tensor result = empty_like(layout_, dtype_, target);
    copy_strided(view(), result.view());
    return result;
}

void Tensor::copy_from(const Tensor& source) {
    copy_strided(source.view(), view());
    bump_version();
}

void fill_strided(const TensorView& to, double value) {
    if (to.device.is_cuda()) return cuda::fill(to, value, current_stream(to.device));
    const Tensor scalar = Tensor::from(std::vector<double>{value}, {});
    copy_strided(scalar.with_layout(scalar.layout().expand(to.shape())).view(), to);
}

void Tensor::fill(double value) {
    fill_strided(view(), value);
    bump_version();
}

template <class T>
std::vector<T> Tensor::to_vector() const {
    std::vector<T> values(static_cast<size_t>(numel()));
    TensorView target{reinterpret_cast<std::byte*>(values.data()), Layout::contiguous(shape()), kDType<T>, {}};
    if (!values.empty()) copy_strided(view(), target);
    return values;
}

template Tensor Tensor::from<double>(std::span<const double>, const Shape&);
template Tensor Tensor::from<float>(std::span<const float>, const Shape&);
template Tensor Tensor::from<int64_t>(std::span<const int64_t>, const Shape&);
template Tensor Tensor::from<int32_t>(std::span<const int32_t>, const Shape&);
template Tensor Tensor::from<uint8_t>(std::span<const uint8_t>, const Shape&);
template std::vector<double> Tensor::to_vector<double>() const;
template std::vector<float> Tensor::to_vector<float>() const;
template std::vector<int64_t> Tensor::to_vector<int64_t>() const;
template std::vector<int32_t> Tensor::to_vector<int32_t>() const;
template std::vector<uint8_t> Tensor::to_vector<uint8_t>() const;

}  // namespace lc
