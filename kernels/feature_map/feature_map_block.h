// A feature map over a block of rows: the building stone of every fast CPU form (feature_map itself, linear, hybrid).
//
//   forward    u = x W + b (+ x)    one GEMM;     phi = max(act(u), eps)     row by row, vectorized
//   backward   du from dphi         row by row;   dW += x^T du,  db += sum du,  dx = du W^T (+ du)    two GEMMs
//
// Same formulas as feature_map_row.h (the oracle); here sums run over sixteen lanes and f32 uses exp_approx.
// Inside parallel_for the GEMMs run in place. T = float; double serves tests that need chunked forms without rounding.
#pragma once
#include "kernels/common/gemm.h"
#include "kernels/common/row.h"
#include "kernels/feature_map/feature_map.h"

namespace lc::kernels {

// The map of one head. Rows of w are contiguous, `ldw` apart.
template <class T>
struct FeatureMapHead {
    FeatureActivation activation = FeatureActivation::softmax_dim;
    bool skip = false;
    int64_t d = 0, f = 0;
    const T* w = nullptr;  // [D,F]
    int64_t ldw = 0;
    const T* b = nullptr;  // null: no bias
    int64_t b_step = 0;    // from one feature's bias to the next: 0 for one number a head

    int64_t phi_size() const { return feature_size(activation, f); }
};

// The map of head h of w [H,D,F] and b ([H,1], [H,F] or empty).
template <class T>
FeatureMapHead<T> feature_map_head(const TensorView& w, const TensorView& b, int64_t h, FeatureActivation activation,
                                   bool skip) {
    FeatureMapHead<T> head{.activation = activation, .skip = skip, .d = w.size(1), .f = w.size(2)};
    head.w = w.data<const T>() + h * w.stride(0);
    head.ldw = w.stride(1);
    if (b) head.b = b.data<const T>() + h * b.stride(0), head.b_step = b.size(1) == 1 ? 0 : b.stride(1);
    return head;
}

// phi[F'] of one projected row u[F].
template <class T>
void feature_map_row_fast(FeatureActivation activation, const T* u, int64_t f, T* phi) {
    const bool exponential = is_shift_invariant(activation);
    const bool normalize =
        activation == FeatureActivation::softmax_dim || activation == FeatureActivation::softmax_half;
    if (exponential) {
        const T sum = row_exp_sum(u, phi, f, T{1}, row_max(u, f));
        if (normalize) row_scale(phi, f, 1 / sum);
    }
    if (is_two_sided(activation)) {
        const T sum = row_exp_sum(u, phi + f, f, T{-1}, -row_min(u, f));
        if (normalize) row_scale(phi + f, f, 1 / sum);
    }
    if (activation == FeatureActivation::relu)
        for (int64_t i = 0; i < f; ++i) phi[i] = u[i];  // the clamp below is the relu
    if (activation == FeatureActivation::pos_elu)
        for (int64_t i = 0; i < f; ++i) phi[i] = u[i] > 0 ? 1 + u[i] : fast_exp(std::min(u[i], T{0}));
    const int64_t size = feature_size(activation, f);
    for (int64_t i = 0; i < size; ++i) phi[i] = std::max(phi[i], static_cast<T>(kFeatureEpsilon));
}

// du[F] of one row; g = dphi [F'] is overwritten.
template <class T>
void feature_map_row_backward_fast(FeatureActivation activation, const T* u, const T* phi, int64_t f, T* g, T* du) {
    const int64_t size = feature_size(activation, f);
    for (int64_t i = 0; i < size; ++i) g[i] = phi[i] <= static_cast<T>(kFeatureEpsilon) ? T{0} : g[i];
    const T *p = phi, *n = phi + f, *g_p = g, *g_n = g + f;
    // Adds `amount` to du where u equals `extreme`, shared evenly among ties.
    const auto share = [&](T extreme, T amount) {
        const T part = amount / static_cast<T>(std::count(u, u + f, extreme));
        for (int64_t i = 0; i < f; ++i) du[i] += u[i] == extreme ? part : T{0};
    };
    switch (activation) {
        case FeatureActivation::softmax_dim: {
            const T mean_p = row_dot(p, g_p, f), mean_n = row_dot(n, g_n, f);
            for (int64_t i = 0; i < f; ++i) du[i] = p[i] * (g_p[i] - mean_p) - n[i] * (g_n[i] - mean_n);
            break;
        }
        case FeatureActivation::softmax_half: {
            const T mean = row_dot(p, g_p, f);
            for (int64_t i = 0; i < f; ++i) du[i] = p[i] * (g_p[i] - mean);
            break;
        }
        case FeatureActivation::exp_dim:
            for (int64_t i = 0; i < f; ++i) du[i] = p[i] * g_p[i] - n[i] * g_n[i];
            share(row_max(u, f), -row_dot(p, g_p, f));
            share(row_min(u, f), row_dot(n, g_n, f));
            break;
        case FeatureActivation::exp_half:
            for (int64_t i = 0; i < f; ++i) du[i] = p[i] * g_p[i];
            share(row_max(u, f), -row_dot(p, g_p, f));
            break;
        case FeatureActivation::relu:
            for (int64_t i = 0; i < f; ++i) du[i] = u[i] > 0 ? g[i] : T{0};
            break;
        case FeatureActivation::pos_elu:
            for (int64_t i = 0; i < f; ++i) du[i] = u[i] > 0 ? g[i] : g[i] * phi[i];
            break;
    }
}

// u [rows,F] (dense) from x [rows,D].
template <class T>
void feature_map_project_block(const FeatureMapHead<T>& head, const T* x, int64_t ldx, int64_t rows, T* u) {
    const int64_t f = head.f;
    gemm(Gemm<T>{.m = rows, .n = f, .k = head.d, .a = x, .lda = ldx, .b = head.w, .ldb = head.ldw, .c = u, .ldc = f});
    for (int64_t r = 0; r < rows; ++r) {
        T* row = u + r * f;
        if (head.b)
            for (int64_t j = 0; j < f; ++j) row[j] += head.b[j * head.b_step];
        if (head.skip)
            for (int64_t j = 0; j < f; ++j) row[j] += x[r * ldx + j];
    }
}

// u [rows,F] (dense) and phi [rows,F'] from x [rows,D]; the last axis of x and phi is contiguous.
template <class T>
void feature_map_block(const FeatureMapHead<T>& head, const T* x, int64_t ldx, int64_t rows, T* u, T* phi,
                       int64_t ldphi) {
    feature_map_project_block(head, x, ldx, rows, u);
    for (int64_t r = 0; r < rows; ++r) feature_map_row_fast(head.activation, u + r * head.f, head.f, phi + r * ldphi);
}

// Where the gradients of a block go. Null: not wanted. dw and db are added to, dx is written with factor dx_beta.
template <class T>
struct FeatureMapBlockGrad {
    T* dx = nullptr;  // [rows,D]
    int64_t lddx = 0;
    T dx_beta = 0;    // 0: overwrite, 1: add
    T* dw = nullptr;  // [D,F] dense
    T* db = nullptr;  // as head.b lies: [F] dense, or one number when b_step is 0
};

// u and phi as feature_map_block left them; dphi [rows,F'] dense is overwritten; du [rows,F] is room to work in.
template <class T>
void feature_map_block_backward(const FeatureMapHead<T>& head, const T* x, int64_t ldx, int64_t rows, const T* u,
                                const T* phi, int64_t ldphi, T* dphi, T* du, const FeatureMapBlockGrad<T>& out) {
    const int64_t d = head.d, f = head.f;
    for (int64_t r = 0; r < rows; ++r)
        feature_map_row_backward_fast(head.activation, u + r * f, phi + r * ldphi, f, dphi + r * head.phi_size(),
                                      du + r * f);
    if (out.dw)
        gemm(Gemm<T>{.op_a = Op::Transpose,
                     .m = d,
                     .n = f,
                     .k = rows,
                     .a = x,
                     .lda = ldx,
                     .b = du,
                     .ldb = f,
                     .beta = 1,
                     .c = out.dw,
                     .ldc = f});
    if (out.db)
        for (int64_t r = 0; r < rows; ++r) {
            if (head.b_step == 0)
                out.db[0] += row_sum(du + r * f, f);
            else
                row_axpy(du + r * f, out.db, f, T{1});
        }
    if (!out.dx) return;
    gemm(Gemm<T>{.op_b = Op::Transpose,
                 .m = rows,
                 .n = d,
                 .k = f,
                 .a = du,
                 .lda = f,
                 .b = head.w,
                 .ldb = head.ldw,
                 .beta = out.dx_beta,
                 .c = out.dx,
                 .ldc = out.lddx});
    if (head.skip)
        for (int64_t r = 0; r < rows; ++r) row_axpy(du + r * f, out.dx + r * out.lddx, f, T{1});
}

}  // namespace lc::kernels
