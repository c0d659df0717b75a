// The recurrent state of linear attention as fast forms hold it: S [F',D] and z [F'] of one head, dense, on gemm.
#pragma once
#include <algorithm>

#include "core/tensor.h"
#include "kernels/common/gemm.h"
#include "kernels/common/row.h"

namespace lc::kernels {

// S, z (or their gradients) of batch entry b and state hs, of any layout; an empty view is read as zero.
template <class T>
void load_state(const TensorView& s_view, const TensorView& z_view, int64_t b, int64_t hs, int64_t features, int64_t d,
                T* s, T* z) {
    std::fill_n(s, features * d, T{0});
    std::fill_n(z, features, T{0});
    for (int64_t f = 0; f < features && z_view; ++f) z[f] = z_view.as<const T, 3>()(b, hs, f);
    if (!s_view) return;
    const auto from = s_view.as<const T, 4>();
    for (int64_t f = 0; f < features; ++f)
        for (int64_t c = 0; c < d; ++c) s[f * d + c] = from(b, hs, f, c);
}

// The other way: written over what is there, or added to it. Either view may be empty.
template <class T>
void store_state(const T* s, const T* z, int64_t b, int64_t hs, int64_t features, int64_t d, const TensorView& s_view,
                 bool add_s, const TensorView& z_view, bool add_z) {
    for (int64_t f = 0; f < features && z_view; ++f) {
        T& to = z_view.as<T, 3>()(b, hs, f);
        to = z[f] + (add_z ? to : T{0});
    }
    if (!s_view) return;
    const auto into = s_view.as<T, 4>();
    for (int64_t f = 0; f < features; ++f)
        for (int64_t c = 0; c < d; ++c) {
            T& to = into(b, hs, f, c);
            to = s[f * d + c] + (add_s ? to : T{0});
        }
}

// S += phi^T v, z += weights . phi (ones where weights is null), for a block of rows: phi [rows,F'] dense, v [rows,D].
// Keys are added this way, and so are the gradients T, t of queries (phi_q, dN, dZ).
template <class T>
void add_to_state(const T* phi, int64_t rows, int64_t features, const T* v, int64_t ldv, int64_t d, const T* weights,
                  T* s, T* z) {
    gemm(Gemm<T>{.op_a = Op::Transpose,
                 .m = features,
                 .n = d,
                 .k = rows,
                 .a = phi,
                 .lda = features,
                 .b = v,
                 .ldb = ldv,
                 .beta = 1,
                 .c = s,
                 .ldc = d});
    for (int64_t r = 0; r < rows; ++r) row_axpy(phi + r * features, z, features, weights ? weights[r] : T{1});
}

}  // namespace lc::kernels
