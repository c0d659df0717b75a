#include "kernels/lora_linear/lora_linear.h"

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

void forward_fast(const LoraLinearForward& args) {
    const InRows<float> x(args.x), w(args.w), a(args.a), b(args.b);
    const OutRows<float> y(args.y), p(args.p);
    times_transposed(1, x, a, 0, p);
    if (args.bias) {
        const FlatInput<float> bias(args.bias);
        for (int64_t r = 0; r < y.rows; ++r) std::copy_n(bias.data(), y.columns, y.row(r));
    }
    times_transposed(1, x, w, args.bias ? 1.0f : 0.0f, y);
    times_transposed(static_cast<float>(args.s), {p.data, p.rows, p.columns, p.stride}, b, 1, y);
    y.finish(), p.finish();
}

void backward_fast(const LoraLinearBackward& args) {
    const InRows<float> dy(args.dy);
    const OutRows<float> dx(args.dx), dw(args.dw), da(args.da), db(args.db), dbias(args.dbias);
    const float s = static_cast<float>(args.s);
    const int64_t rank = args.a.size(0);
    if (dx || da) {
        const Scratch<float> buffer(dy.rows * rank);
        const Out q{buffer.data(), dy.rows, rank, rank};
        const In q_in{q.data, q.rows, q.columns, q.stride};
        times(s, dy, InRows<float>(args.b), 0, q);
        if (dx) times(1, dy, InRows<float>(args.w), dx.beta(), dx);
        if (dx) times(1, q_in, InRows<float>(args.a), 1, dx);
        if (da) transposed_times(1, q_in, InRows<float>(args.x), da.beta(), da);
    }
    if (dw) transposed_times(1, dy, InRows<float>(args.x), dw.beta(), dw);
    if (db) transposed_times(s, dy, InRows<float>(args.p), db.beta(), db);
    if (dbias) sum_rows(dy, dbias);
    dx.finish(), dw.finish(), da.finish(), db.finish(), dbias.finish();
}

void check(const TensorView& x, const TensorView& w, const TensorView& a, const TensorView& b, const TensorView& p,
           const TensorView& y) {
    LC_CHECK(x.rank() >= 1 && w.rank() == 2 && a.rank() == 2 && b.rank() == 2 && w.size(1) == x.size(-1) &&
                 a.size(1) == x.size(-1) && b.size(0) == w.size(0) && b.size(1) == a.size(0) && a.size(0) > 0,
             "lora_linear: x [...,In], w [Out,In], a [R,In], b [Out,R] do not fit: {}, {}, {}, {}", x.shape(),
             w.shape(), a.shape(), b.shape());
    LC_CHECK(y.rank() == x.rank() && y.size(-1) == w.size(0) && row_count(y.shape()) == row_count(x.shape()) &&
                 p.shape() == (Shape{row_count(x.shape()), a.size(0)}),
             "lora_linear: y {} and p {} do not belong to x {} and w {}", y.shape(), p.shape(), x.shape(), w.shape());
    require_alike("lora_linear", {x, p, y});
    require_wide("lora_linear", x, {w, a, b});
}

}  // namespace

void lora_linear_forward(const LoraLinearForward& args, Stream stream) {
    const ProfileZone zone("lora_linear");
    check(args.x, args.w, args.a, args.b, args.p, args.y);
    LC_CHECK(!args.bias || args.bias.shape() == Shape{args.w.size(0)}, "lora_linear: bias must be [{}], got {}",
             args.w.size(0), args.bias.shape());
    require_wide("lora_linear", args.x, {args.bias});
    if constexpr (cuda::kBuilt)
        if (on_cuda("lora_linear", args.x)) return lora_linear_forward_cuda(args, stream);
    if (use_fast_cpu(args.x.dtype)) return forward_fast(args);
    dispatch_compute(args.x.dtype, "lora_linear",
                     [&](auto type) { lora_linear_forward_naive<typename decltype(type)::type>(args); });
}

void lora_linear_backward(const LoraLinearBackward& args, Stream stream) {
    const ProfileZone zone("lora_linear backward");
    check(args.x, args.w, args.a, args.b, args.p, args.dy);
    require_wide("lora_linear", args.x, {args.dx.view, args.dw.view, args.da.view, args.db.view, args.dbias.view});
    if constexpr (cuda::kBuilt)
        if (on_cuda("lora_linear", args.x)) return lora_linear_backward_cuda(args, stream);
    if (use_fast_cpu(args.x.dtype)) return backward_fast(args);
    dispatch_compute(args.x.dtype, "lora_linear",
                     [&](auto type) { lora_linear_backward_naive<typename decltype(type)::type>(args); });
}

}  // namespace lc::kernels
