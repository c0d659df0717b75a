// How a kernel writes a gradient: over whatever is there (beta 0) or on top of it (beta 1). The tape's GradSink hands
// these out, so that no buffer is zeroed first and nothing is added twice.
#pragma once
#include <vector>

#include "core/tensor.h"
#include "kernels/common/elementwise.h"

namespace lc {

enum class GradWrite : uint8_t { Overwrite, Accumulate };

// Where a backward kernel writes one gradient, and how. Empty: nobody wants it, the kernel must skip the work.
struct GradSlot {
    TensorView view;
    GradWrite mode = GradWrite::Overwrite;
    explicit operator bool() const { return static_cast<bool>(view); }
    bool accumulate() const { return mode == GradWrite::Accumulate; }
    float beta() const { return accumulate() ? 1.0f : 0.0f; }
};

namespace kernels {

// slot = values, or slot += values. Same shape and dtype T; does nothing for an empty slot.
template <class T>
void store_gradient(const TensorView& values, const GradSlot& slot) {
    if (!slot) return;
    if (!slot.accumulate()) return copy_strided(values, slot.view);
    for_each_element<const T, T>({values, slot.view}, [](const T& value, T& target) { target += value; });
}

namespace detail {
template <class T, size_t>
using Repeat = T;
}

// slot = f(inputs...), or slot += f(inputs...), elementwise; does nothing for an empty slot.
template <class T, size_t N, class F>
void write_gradient(const GradSlot& slot, const std::array<TensorView, N>& inputs, F&& f) {
    if (!slot) return;
    const auto run = [&]<size_t... I>(std::index_sequence<I...>, auto&& write) {
        for_each_element<T, detail::Repeat<const T, I>...>(
            {slot.view, inputs[I]...}, [&](T& target, const auto&... in) { write(target, f(in...)); });
    };
    constexpr std::make_index_sequence<N> all;
    if (slot.accumulate())
        run(all, [](T& target, const T& value) { target += value; });
    else
        run(all, [](T& target, const T& value) { target = value; });
}

// store_gradient from a row-major buffer.
template <class T>
void store_gradient(const std::vector<T>& values, const GradSlot& slot) {
    if (!slot) return;
    auto* base = reinterpret_cast<std::byte*>(const_cast<T*>(values.data()));
    store_gradient<T>(TensorView{base, Layout::contiguous(slot.view.shape()), kDType<T>, {}}, slot);
}

// The same from one row-major buffer a batch, added in the order of the batch: the deterministic end of a reduction whose
// parts were made in parallel. Destroys the first part.
template <class T>
void store_batch_sum(std::vector<T>& parts, int64_t batch, const GradSlot& slot) {
    if (!slot) return;
    const int64_t size = slot.view.numel();
    for (int64_t b = 1; b < batch; ++b)
        for (int64_t i = 0; i < size; ++i) parts[i] += parts[b * size + i];
    parts.resize(size);
    store_gradient(parts, slot);
}

}  // namespace kernels
}  // namespace lc
