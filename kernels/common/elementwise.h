// Loops over all elements of several tensors of one shape, whatever their layouts. The innermost run is a plain loop
// that the compiler vectorizes when every tensor is contiguous there.
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>
#include <tuple>
#include <utility>

#include "core/parallel.h"
#include "core/tensor.h"

namespace lc::kernels {

// f(T0&, T1&, ...) for each element; T... are the element types of the views, const for inputs. Parallel over outer
// runs; f must touch nothing but its arguments.
template <class... T, class F>
void for_each_element(const std::array<TensorView, sizeof...(T)>& views, F&& f) {
    constexpr size_t n = sizeof...(T);
    const Layout& lead = views[0].layout;
    bool flat = true;
    for (const TensorView& view : views) {
        LC_CHECK(view.shape() == lead.shape, "elementwise: shapes differ, {} and {}", view.shape(), lead.shape);
        flat = flat && view.layout.strides == lead.strides;
    }
    flat = flat && lead.is_dense();  // same gap-free order in all of them: one flat run
    const int64_t total = lead.numel();
    const int rank = lead.rank();
    const int64_t inner = flat || rank == 0 ? 1 : lead.shape[-1];
    const int64_t runs = flat ? total : (inner == 0 ? 0 : total / inner);

    [&]<size_t... I>(std::index_sequence<I...>) {
        const std::tuple<T*...> base{views[I].template data<T>()...};
        if (flat) {
            parallel_for(total, 16384, [&](int64_t begin, int64_t end) {
                const std::tuple<T*...> p = base;
                for (int64_t i = begin; i < end; ++i) f(std::get<I>(p)[i]...);
            });
            return;
        }
        parallel_for(runs, std::max<int64_t>(1, 16384 / std::max<int64_t>(inner, 1)), [&](int64_t begin, int64_t end) {
            for (int64_t run = begin; run < end; ++run) {
                std::array<int64_t, n> offset{};
                int64_t rest = run;
                for (int axis = rank - 2; axis >= 0; --axis) {
                    const int64_t i = rest % lead.shape[axis];
                    rest /= lead.shape[axis];
                    ((offset[I] += i * views[I].layout.strides[axis]), ...);
                }
                const std::array<int64_t, n> step{(rank ? views[I].layout.strides[-1] : 0)...};
                if (((step[I] == 1) && ...)) {
                    const std::tuple<T*...> p{std::get<I>(base) + offset[I]...};
                    for (int64_t i = 0; i < inner; ++i) f(std::get<I>(p)[i]...);
                } else {
                    for (int64_t i = 0; i < inner; ++i) f(std::get<I>(base)[offset[I] + i * step[I]]...);
                }
            }
        });
    }
    (std::make_index_sequence<n>{});
}

}  // namespace lc::kernels
