// Building stones of the block form, shared by hybrid_attention and transfer_loss.
//
// TILING. Rows are handled in blocks; state_end (attention_spec.h) says which keys a row sees linearly, so any cut of the
// rows gives the same sums. For one block of rows, keys from left to right:
//
//        0 .......... far0 ...... far1 ............ end           far0, far1: where the window of the first, last row begins
//        [  S, z: all  ][  mixed  ][     window      ]            end: the last row itself, causal
//                       [ .. next )                               keys that join S, z before the next block
//
//   weights C [rows, far0..end): row i has lambda phi_q.phi_k left of its own far end, gamma exp(s-m) from there to itself,
//   0 beyond. Then N = C V + lambda phi_q S and Z = sum C + lambda phi_q.z, and each gradient is one product with C or
//   with dC as well. Terraced blocks of w rows have no mixed keys; sliding ones have w-1; pure linear only mixed ones.
//
// The scalar is a template so that tests run this code in f64, where all forms must agree to rounding.
#pragma once
#include <vector>

#include "kernels/feature_map/feature_map_block.h"
#include "kernels/hybrid_attention/hybrid_attention.h"
#include "kernels/hybrid_attention/hybrid_mix.h"

namespace lc::kernels {

// Rows and keys are counted within the call.
struct RowBlock {
    int64_t row0 = 0, rows = 0;
    int64_t far0 = 0, far1 = 0;
    int64_t next = 0;  // far0 of the next block; for the last one the end of the state handed on
    int64_t end = 0;
    int64_t keys() const { return end - far0; }
    int64_t mixed() const { return far1 - far0; }
};

// Where the rows of a call lie among its keys.
struct HybridGeometry {
    LinearizedSpec spec;
    int64_t first_key = 0, rows = 0, keys = 0;

    explicit HybridGeometry(const HybridAttentionForward& a)
        : spec(a.spec), first_key(a.first_key), rows(a.q.size(2)), keys(a.k.size(2)) {}
    int64_t causal_end(int64_t row) const { return keys - rows + row + 1; }
    int64_t far_end(int64_t row) const { return state_end(spec, first_key + causal_end(row)) - first_key; }

    std::vector<RowBlock> blocks() const {
        const int64_t w = spec.window_size;
        const int64_t size = spec.window == WindowKind::terraced && w >= 32 && w <= 128 ? w : 64;
        std::vector<RowBlock> result;
        for (int64_t row0 = 0; row0 < rows;) {
            const int64_t into = (first_key + keys - rows + row0) % size;  // blocks end at multiples of `size`
            const int64_t row1 = std::min(rows, row0 + size - into);
            result.push_back(
                {row0, row1 - row0, far_end(row0), far_end(row1 - 1), far_end(row1 - 1), causal_end(row1 - 1)});
            row0 = row1;
        }
        for (size_t i = 0; i + 1 < result.size(); ++i) result[i].next = result[i + 1].far0;
        return result;
    }
};

// Keys and values of one KV head, and the map that makes one state of them.
template <class T>
struct HybridKeys {
    const T *k, *v;
    int64_t ldk, ldv, d;
    FeatureMapHead<T> map;

    HybridKeys(const HybridAttentionForward& a, int64_t b, int64_t hs)
        : ldk(a.k.stride(2)),
          ldv(a.v.stride(2)),
          d(a.k.size(3)),
          map(feature_map_head<T>(a.wk, a.bk, hs, a.spec.activation, a.spec.skip)) {
        const int64_t hk = hs / (a.wk.size(0) / a.k.size(1));
        k = &a.k.as<const T, 4>()(b, hk, 0, 0), v = &a.v.as<const T, 4>()(b, hk, 0, 0);
    }
};

// One query head.
template <class T>
struct HybridQueries {
    const T* q;
    int64_t ldq, d;
    FeatureMapHead<T> map;
    HybridMix<T> mix;

    HybridQueries(const HybridAttentionForward& a, int64_t b, int64_t h)
        : q(&a.q.as<const T, 4>()(b, h, 0, 0)),
          ldq(a.q.stride(2)),
          d(a.q.size(3)),
          map(feature_map_head<T>(a.wq, a.bq, h, a.spec.activation, a.spec.skip)),
          mix(hybrid_mix<T>(a.mix_logit, a.spec, h)) {}
};

// S [F',D] and z [F'], or their gradients T and t.
template <class T>
struct HybridState {
    int64_t features, d;
    std::vector<T> s, z;

    HybridState(int64_t features_, int64_t d_) : features(features_), d(d_), s(features_ * d_), z(features_) {}

    void load(const TensorView& s_in, const TensorView& z_in, int64_t b, int64_t hs) {
        std::fill(s.begin(), s.end(), T{0}), std::fill(z.begin(), z.end(), T{0});
        for (int64_t i = 0; i < features * d && s_in; ++i) s[i] = s_in.as<const T, 4>()(b, hs, i / d, i % d);
        for (int64_t f = 0; f < features && z_in; ++f) z[f] = z_in.as<const T, 3>()(b, hs, f);
    }
    void store(const TensorView& s_out, const TensorView& z_out, int64_t b, int64_t hs, bool add = false) const {
        const auto write = [add](T& to, T value) { to = add ? to + value : value; };
        for (int64_t i = 0; i < features * d && s_out; ++i) write(s_out.as<T, 4>()(b, hs, i / d, i % d), s[i]);
        for (int64_t f = 0; f < features && z_out; ++f) write(z_out.as<T, 3>()(b, hs, f), z[f]);
    }
    // s += alpha phi^T x, z += alpha phi^T weight; phi [n,F'], x [n,D], weight [n] (null: ones).
    void add(const T* phi, const T* x, int64_t ldx, int64_t n, T alpha = 1, const T* weight = nullptr) {
        if (n == 0) return;
        gemm(Gemm<T>{.op_a = Op::Transpose,
                     .m = features,
                     .n = d,
                     .k = n,
                     .alpha = alpha,
                     .a = phi,
                     .lda = features,
                     .b = x,
                     .ldb = ldx,
                     .beta = 1,
                     .c = s.data(),
                     .ldc = d});
        for (int64_t j = 0; j < n; ++j)
            row_axpy(phi + j * features, z.data(), features, weight ? alpha * weight[j] : alpha);
    }
};

// Scratch of one task, sized for its largest block; reused from task to task.
template <class T>
struct HybridRoom {
    int64_t rows = 0, keys = 0, mixed = 0, step = 64;  // largest of any block; step: keys that join the state at once
    std::vector<T> scores, weights, linear, dc;        // [rows,keys]
    std::vector<T> max, denominator;                   // [rows]
    std::vector<T> u, phi, dphi, du;                   // [rows or step, F or F']

    HybridRoom(const std::vector<RowBlock>& blocks, int64_t features) {
        for (const RowBlock& b : blocks) {
            rows = std::max(rows, b.rows), keys = std::max(keys, b.keys()), mixed = std::max(mixed, b.mixed());
            step = std::max(step, b.next - b.far0);
        }
        const int64_t lines = std::max(rows, step);
        scores.resize(rows * keys), weights.resize(rows * keys), linear.resize(rows * mixed), dc.resize(rows * keys);
        max.resize(rows), denominator.resize(rows);
        u.resize(lines * features), phi.resize(lines * features), dphi.resize(lines * features),
            du.resize(lines * features);
    }
};

// One query head on one block of rows.
template <class T>
struct HybridBlock {
    const HybridGeometry& geometry;
    const RowBlock& block;
    const HybridQueries<T>& queries;
    const HybridKeys<T>& keys;
    const HybridState<T>& state;  // over keys [0, far0) and the state handed in
    const T* phi_q = nullptr;     // [rows,F']; null when no row of the block has a linear part
    const T* phi_k = nullptr;     // [mixed,F']

    const T* q() const { return queries.q + block.row0 * queries.ldq; }
    const T* k() const { return keys.k + block.far0 * keys.ldk; }
    const T* v() const { return keys.v + block.far0 * keys.ldv; }
    // Window of row i of the block: [far(i), end(i)), counted from far0.
    int64_t far(int64_t i) const { return geometry.far_end(block.row0 + i) - block.far0; }
    int64_t end(int64_t i) const { return geometry.causal_end(block.row0 + i) - block.far0; }
    T scale() const { return 1 / std::sqrt(static_cast<T>(keys.d)); }
};

// Does any row of the block read the state or a mapped key?
inline bool has_linear_part(const RowBlock& block, bool state_in, bool window_only) {
    return !window_only && (state_in || block.far1 > 0);
}

// room.scores, room.weights [rows,keys] and room.max, room.denominator [rows].
template <class T>
void hybrid_weights(const HybridBlock<T>& x, HybridRoom<T>& room) {
    const int64_t n = x.block.keys(), mixed = x.block.mixed(), features = x.state.features;
    const bool window = x.geometry.spec.window != WindowKind::none;
    if (window)
        gemm(Gemm<T>{.op_b = Op::Transpose,
                     .m = x.block.rows,
                     .n = n,
                     .k = x.keys.d,
                     .alpha = x.scale(),
                     .a = x.q(),
                     .lda = x.queries.ldq,
                     .b = x.k(),
                     .ldb = x.keys.ldk,
                     .c = room.scores.data(),
                     .ldc = n});
    if (x.phi_q && mixed > 0)
        gemm(Gemm<T>{.op_b = Op::Transpose,
                     .m = x.block.rows,
                     .n = mixed,
                     .k = features,
                     .alpha = x.queries.mix.lambda,
                     .a = x.phi_q,
                     .lda = features,
                     .b = x.phi_k,
                     .ldb = features,
                     .c = room.linear.data(),
                     .ldc = mixed});
    for (int64_t i = 0; i < x.block.rows; ++i) {
        const int64_t far = x.far(i), end = x.end(i);
        const T* s = window ? &room.scores[i * n] : nullptr;
        T* c = n > 0 ? &room.weights[i * n] : nullptr;  // without a window the state may hold every key
        if (x.phi_q)
            std::copy_n(room.linear.data() + i * mixed, far, c);
        else
            std::fill_n(c, far, T{0});
        if (far < end) {
            room.max[i] = row_max(s + far, end - far);
            for (int64_t j = far; j < end; ++j) c[j] = x.queries.mix.gamma * fast_exp(s[j] - room.max[i]);
        }
        std::fill(c + end, c + n, T{0});
        T z = row_sum(c, end);
        if (x.phi_q) z += x.queries.mix.lambda * row_dot(x.phi_q + i * features, x.state.z.data(), features);
        room.denominator[i] = window ? z : z + static_cast<T>(kLinearEpsilon);
    }
}

// y [rows,D] = (C V + lambda phi_q S) / Z
template <class T>
void hybrid_output(const HybridBlock<T>& x, const HybridRoom<T>& room, T* y, int64_t ldy) {
    const int64_t n = x.block.keys(), d = x.keys.d, features = x.state.features;
    gemm(Gemm<T>{.m = x.block.rows,
                 .n = d,
                 .k = n,
                 .a = room.weights.data(),
                 .lda = n,
                 .b = x.v(),
                 .ldb = x.keys.ldv,
                 .c = y,
                 .ldc = ldy});
    if (x.phi_q)
        gemm(Gemm<T>{.m = x.block.rows,
                     .n = d,
                     .k = features,
                     .alpha = x.queries.mix.lambda,
                     .a = x.phi_q,
                     .lda = features,
                     .b = x.state.s.data(),
                     .ldb = d,
                     .beta = 1,
                     .c = y,
                     .ldc = ldy});
    for (int64_t i = 0; i < x.block.rows; ++i)
        for (int64_t c = 0; c < d; ++c) y[i * ldy + c] /= room.denominator[i];
}

// dN and dZ of one row.
template <class T>
T hybrid_row_gradient(const T* dy, int64_t dy_step, const T* y, int64_t y_step, T denominator, int64_t d, T* dn) {
    for (int64_t x = 0; x < d; ++x) dn[x] = dy[x * dy_step] / denominator;
    if (y_step == 1) return -row_dot(dn, y, d);
    T sum = 0;
    for (int64_t x = 0; x < d; ++x) sum += dn[x] * y[x * y_step];
    return -sum;
}

// room.dc [rows,n] = dN V^T + dZ for the first n keys of the block.
template <class T>
void hybrid_weight_gradient(const HybridBlock<T>& x, int64_t n, const T* dn, const T* dz, HybridRoom<T>& room) {
    if (n == 0) return;
    gemm(Gemm<T>{.op_b = Op::Transpose,
                 .m = x.block.rows,
                 .n = n,
                 .k = x.keys.d,
                 .a = dn,
                 .lda = x.keys.d,
                 .b = x.v(),
                 .ldb = x.keys.ldv,
                 .c = room.dc.data(),
                 .ldc = n});
    for (int64_t i = 0; i < x.block.rows; ++i)
        for (int64_t j = 0; j < n; ++j) room.dc[i * n + j] += dz[i];
}

// The linear branch, from dN, dZ and room.dc [rows,lddc] (its mixed columns): room.dphi = dphi_q [rows,F'], and the mixed
// keys' part of dphi_k [mixed,F'] is added.
template <class T>
void hybrid_linear_backward(const HybridBlock<T>& x, const T* dn, const T* dz, int64_t lddc, HybridRoom<T>& room,
                            T* dphi_k) {
    const int64_t rows = x.block.rows, d = x.keys.d, mixed = x.block.mixed(), features = x.state.features;
    const T lambda = x.queries.mix.lambda;
    T* dphi = room.dphi.data();
    gemm(Gemm<T>{.op_b = Op::Transpose,
                 .m = rows,
                 .n = features,
                 .k = d,
                 .alpha = lambda,
                 .a = dn,
                 .lda = d,
                 .b = x.state.s.data(),
                 .ldb = d,
                 .c = dphi,
                 .ldc = features});
    for (int64_t i = 0; i < rows; ++i) row_axpy(x.state.z.data(), dphi + i * features, features, lambda * dz[i]);
    if (mixed > 0) {
        for (int64_t i = 0; i < rows; ++i) {
            const int64_t far = x.far(i);
            for (int64_t j = 0; j < mixed; ++j) room.linear[i * mixed + j] = j < far ? room.dc[i * lddc + j] : T{0};
        }
        gemm(Gemm<T>{.m = rows,
                     .n = features,
                     .k = mixed,
                     .alpha = lambda,
                     .a = room.linear.data(),
                     .lda = mixed,
                     .b = x.phi_k,
                     .ldb = features,
                     .beta = 1,
                     .c = dphi,
                     .ldc = features});
        gemm(Gemm<T>{.op_a = Op::Transpose,
                     .m = mixed,
                     .n = features,
                     .k = rows,
                     .alpha = lambda,
                     .a = room.linear.data(),
                     .lda = mixed,
                     .b = x.phi_q,
                     .ldb = features,
                     .beta = 1,
                     .c = dphi_k,
                     .ldc = features});
    }
}

// Keys [j0, j0+n) once all rows that see them through the state are in `grad` (T, t): dphi_k += V T^T + t goes back through
// the map; dv [n,D] += phi_k T unless null. u, phi_k, dphi_k hold the n rows of these keys.
template <class T>
void hybrid_keys_backward(const HybridKeys<T>& keys, const HybridState<T>& grad, int64_t j0, int64_t n, const T* u,
                          const T* phi_k, T* dphi_k, T* dv, const FeatureMapBlockGrad<T>& out, HybridRoom<T>& room) {
    if (n == 0) return;
    const int64_t features = grad.features, d = grad.d;
    gemm(Gemm<T>{.op_b = Op::Transpose,
                 .m = n,
                 .n = features,
                 .k = d,
                 .a = keys.v + j0 * keys.ldv,
                 .lda = keys.ldv,
                 .b = grad.s.data(),
                 .ldb = d,
                 .beta = 1,
                 .c = dphi_k,
                 .ldc = features});
    for (int64_t j = 0; j < n; ++j) row_axpy(grad.z.data(), dphi_k + j * features, features, T{1});
    if (dv)
        gemm(Gemm<T>{.m = n,
                     .n = d,
                     .k = features,
                     .a = phi_k,
                     .lda = features,
                     .b = grad.s.data(),
                     .ldb = d,
                     .beta = 1,
                     .c = dv,
                     .ldc = d});
    if (static_cast<int64_t>(room.du.size()) < n * features) room.du.resize(n * features);
    feature_map_block_backward(keys.map, keys.k + j0 * keys.ldk, keys.ldk, n, u, phi_k, features, dphi_k,
                               room.du.data(), out);
}

// Rows that a GEMM can read or write where they lie.
inline bool has_plain_rows(const TensorView& view) {
    return (view.stride(-1) == 1 || view.size(-1) == 1) && view.stride(-2) >= view.size(-1);
}
inline bool hybrid_blocks_cover(const HybridAttentionForward& a) {
    return has_plain_rows(a.q) && has_plain_rows(a.k) && has_plain_rows(a.v) && has_plain_rows(a.wq) &&
           has_plain_rows(a.wk);
}

}  // namespace lc::kernels
