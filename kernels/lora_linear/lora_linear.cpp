#include "kernels/lora_linear/lora_linear.h"

#include <algorithm>

#include "kernels/common/dispatch.h"
#include "kernels/common/gemm.h"
#include "kernels/lora_linear/lora_linear_naive.h"

namespace lc::kernels {
namespace {

using In = Rows<const float>;
using Out = Rows<float>;

// c = alpha a b^T + beta c
void times_transposed(float alpha, const In& a, const In& b, float beta, const Out& c) {
    gemm(Gemm<float>{.op_b = Op::Transpose,
                     .m = a.rows,
                     .n = b.rows,
                     .k = a.columns,
                     .alpha = alpha,
                     .a = a.data,
                     .lda = a.stride,
                     .b = b.data,
                     .ldb = b.stride,
                     .beta = beta,
                     .c = c.data,
                     .ldc = c.stride});
}
// c = alpha a b + beta c
void times(float alpha, const In& a, const In& b, float beta, const Out& c) {
    gemm(Gemm<float>{.m = a.rows,
                     .n = b.columns,
                     .k = a.columns,
                     .alpha = alpha,
                     .a = a.data,
                     .lda = a.stride,
                     .b = b.data,
                     .ldb = b.stride,
                     .beta = beta,
                     .c = c.data,
                     .ldc = c.stride});
}
// c = alpha a^T b + beta c
void transposed_times(float alpha, const In& a, const In& b, float beta, const Out& c) {
    gemm(Gemm<float>{.op_a = Op::Transpose,
                     .m = a.columns,
                     .n = b.columns,
                     .k = a.rows,
                     .alpha = alpha,
                     .a = a.data,
                     .lda = a.stride,
                     .b = b.data,
                     .ldb = b.stride,
                     .beta = beta,
                     .c = c.data,
                     .ldc = c.stride});
}

// Columns first .. first + count - 1.
template <class T>
Rows<T> columns_of(const Rows<T>& matrix, int64_t first, int64_t count) {
    return {matrix.data + first, matrix.rows, count, matrix.stride};
}

void forward_fast(const LoraLinearForward& args) {
    const InRows<float> x(args.x);
    const OutRows<float> p(args.p);
    int64_t first = 0;
    for (const LoraLinearForward::Projection& projection : args.projections) {
        const InRows<float> w(projection.w), a(projection.a), b(projection.b);
        const OutRows<float> y(projection.y);
        const Out low = columns_of<float>(p, first, a.rows);
        times_transposed(1, x, a, 0, low);
        if (projection.bias) {
            const FlatInput<float> bias(projection.bias);
            for (int64_t r = 0; r < y.rows; ++r) std::copy_n(bias.data(), y.columns, y.row(r));
        }
        times_transposed(1, x, w, projection.bias ? 1.0f : 0.0f, y);
        times_transposed(static_cast<float>(projection.s), {low.data, low.rows, low.columns, low.stride}, b, 1, y);
        y.finish();
        for (int64_t r = 0; r < p.rows; ++r) std::fill(low.row(r) + a.rows, low.row(r) + lora_columns(a.rows), 0.0f);
        first += lora_columns(a.rows);
    }
    p.finish();
}

void backward_fast(const LoraLinearBackward& args) {
    const InRows<float> x(args.x), p(args.p);
    const OutRows<float> dx(args.dx);
    float beta = dx.beta();
    int64_t first = 0;
    for (const LoraLinearBackward::Projection& projection : args.projections) {
        const InRows<float> dy(projection.dy);
        const OutRows<float> dw(projection.dw), da(projection.da), db(projection.db), dbias(projection.dbias);
        const float s = static_cast<float>(projection.s);
        const int64_t rank = projection.a.size(0);
        if (dx || da) {
            const Scratch<float> buffer(dy.rows * rank);
            const Out q{buffer.data(), dy.rows, rank, rank};
            const In q_in{q.data, q.rows, q.columns, q.stride};
            times(s, dy, InRows<float>(projection.b), 0, q);
            if (dx) times(1, dy, InRows<float>(projection.w), beta, dx);
            if (dx) times(1, q_in, InRows<float>(projection.a), 1, dx);
            if (da) transposed_times(1, q_in, x, da.beta(), da);
        }
        if (dw) transposed_times(1, dy, x, dw.beta(), dw);
        if (db) transposed_times(s, dy, columns_of<const float>(p, first, rank), db.beta(), db);
        if (dbias) sum_rows(dy, dbias);
        dw.finish(), da.finish(), db.finish(), dbias.finish();
        first += lora_columns(rank), beta = 1;
    }
    dx.finish();
}

void check(const TensorView& x, const TensorView& w, const TensorView& a, const TensorView& b, const TensorView& y) {
    LC_CHECK(x.rank() >= 1 && w.rank() == 2 && a.rank() == 2 && b.rank() == 2 && w.size(1) == x.size(-1) &&
                 a.size(1) == x.size(-1) && b.size(0) == w.size(0) && b.size(1) == a.size(0) && a.size(0) > 0,
             "lora_linear: x [...,In], w [Out,In], a [R,In], b [Out,R] do not fit: {}, {}, {}, {}", x.shape(),
             w.shape(), a.shape(), b.shape());
    LC_CHECK(y.rank() == x.rank() && y.size(-1) == w.size(0) && row_count(y.shape()) == row_count(x.shape()),
             "lora_linear: y {} does not belong to x {} and w {}", y.shape(), x.shape(), w.shape());
    require_alike("lora_linear", {x, y});
    require_wide("lora_linear", x, {w, a, b});
}

void check_low(const TensorView& x, const TensorView& p, size_t projections, int64_t columns) {
    LC_CHECK(projections >= 1 && projections <= kMostAdapted, "lora_linear: 1 to {} projections, got {}", kMostAdapted,
             projections);
    LC_CHECK(p.shape() == (Shape{row_count(x.shape()), columns}), "lora_linear: p must be [{},{}], got {}",
             row_count(x.shape()), columns, p.shape());
    require_alike("lora_linear", {x, p});
}

}  // namespace

void lora_linear_forward(const LoraLinearForward& args, Stream stream) {
    const ProfileZone zone("lora_linear");
    int64_t columns = 0;
    for (const LoraLinearForward::Projection& i : args.projections) {
        check(args.x, i.w, i.a, i.b, i.y);
        LC_CHECK(!i.bias || i.bias.shape() == Shape{i.w.size(0)}, "lora_linear: bias must be [{}], got {}", i.w.size(0),
                 i.bias.shape());
        require_wide("lora_linear", args.x, {i.bias});
        columns += lora_columns(i.a.size(0));
    }
    check_low(args.x, args.p, args.projections.size(), columns);
    if constexpr (cuda::kBuilt)
        if (on_cuda("lora_linear", args.x)) return lora_linear_forward_cuda(args, stream);
    if (use_fast_cpu(args.x.dtype)) return forward_fast(args);
    dispatch_compute(args.x.dtype, "lora_linear",
                     [&](auto type) { lora_linear_forward_naive<typename decltype(type)::type>(args); });
}

void lora_linear_backward(const LoraLinearBackward& args, Stream stream) {
    const ProfileZone zone("lora_linear backward");
    int64_t columns = 0;
    for (const LoraLinearBackward::Projection& i : args.projections) {
        check(args.x, i.w, i.a, i.b, i.dy);
        require_wide("lora_linear", args.x, {i.dw.view, i.da.view, i.db.view, i.dbias.view});
        columns += lora_columns(i.a.size(0));
    }
    check_low(args.x, args.p, args.projections.size(), columns);
    require_wide("lora_linear", args.x, {args.dx.view});
    if constexpr (cuda::kBuilt)
        if (on_cuda("lora_linear", args.x)) return lora_linear_backward_cuda(args, stream);
    if (use_fast_cpu(args.x.dtype)) return backward_fast(args);
    dispatch_compute(args.x.dtype, "lora_linear",
                     [&](auto type) { lora_linear_backward_naive<typename decltype(type)::type>(args); });
}

}  // namespace lc::kernels
