#include "kernels/linear/linear.h"

#include "kernels/common/dispatch.h"
#include "kernels/common/gemm.h"
#include "kernels/linear/linear_naive.h"

namespace lc::kernels {
namespace {

void add_to_rows(const float* b, const Rows<float>& y) {
    parallel_for(y.rows, 16, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r)
            for (int64_t c = 0; c < y.columns; ++c) y(r, c) += b[c];
    });
}

void forward_fast(const LinearForward& args) {
    const InRows<float> x(args.x), w(args.w);
    const OutRows<float> y(args.y);
    const auto start_rows = [&](auto&& row) {  // the product is added on top of these
        parallel_for(y.rows, 16, [&](int64_t begin, int64_t end) {
            for (int64_t r = begin; r < end; ++r) std::copy_n(row(r), y.columns, y.row(r));
        });
    };
    if (args.residual) {
        const InRows<float> residual(args.residual);
        start_rows([&](int64_t r) { return residual.row(r); });
    }
    if (args.b) {
        const FlatInput<float> b(args.b);
        if (args.residual)
            add_to_rows(b.data(), y);
        else
            start_rows([&](int64_t) { return b.data(); });
    }
    gemm(Gemm<float>{.op_b = Op::Transpose,
                     .m = x.rows,
                     .n = w.rows,
                     .k = x.columns,
                     .a = x.data,
                     .lda = x.stride,
                     .b = w.data,
                     .ldb = w.stride,
                     .beta = args.b || args.residual ? 1.0f : 0.0f,
                     .c = y.data,
                     .ldc = y.stride});
    y.finish();
}

void backward_fast(const LinearBackward& args) {
    const InRows<float> dy(args.dy);
    const OutRows<float> dx(args.dx), dw(args.dw), db(args.db);
    if (dx) {
        const InRows<float> w(args.w);
        gemm(Gemm<float>{.m = dy.rows,
                         .n = w.columns,
                         .k = w.rows,
                         .a = dy.data,
                         .lda = dy.stride,
                         .b = w.data,
                         .ldb = w.stride,
                         .beta = dx.beta(),
                         .c = dx.data,
                         .ldc = dx.stride});
    }
    if (dw) {
        const InRows<float> x(args.x);
        gemm(Gemm<float>{.op_a = Op::Transpose,
                         .m = dy.columns,
                         .n = x.columns,
                         .k = x.rows,
                         .a = dy.data,
                         .lda = dy.stride,
                         .b = x.data,
                         .ldb = x.stride,
                         .beta = dw.beta(),
                         .c = dw.data,
                         .ldc = dw.stride});
    }
    if (db) sum_rows(dy, db);
    dx.finish(), dw.finish(), db.finish();
}

void check(const TensorView& x, const TensorView& w, const TensorView& y) {
    LC_CHECK(w.rank() == 2 && x.rank() >= 1 && x.size(-1) == w.size(1),
             "linear: w must be [Out,In] with In={}, got x {} and w {}", x.rank() ? x.size(-1) : 0, x.shape(),
             w.shape());
    LC_CHECK(y.rank() == x.rank() && y.size(-1) == w.size(0) && row_count(y.shape()) == row_count(x.shape()),
             "linear: y of x {} and w {} cannot be {}", x.shape(), w.shape(), y.shape());
}

}  // namespace

void linear_forward(const LinearForward& args, Stream stream) {
    const ProfileZone zone("linear");
    check(args.x, args.w, args.y);
    LC_CHECK(!args.b || args.b.shape() == Shape{args.w.size(0)}, "linear: b must be [{}], got {}", args.w.size(0),
             args.b.shape());
    LC_CHECK(!args.residual || args.residual.shape() == args.y.shape(), "linear: residual must be {}, got {}",
             args.y.shape(), args.residual.shape());
    require_alike("linear", {args.x, args.y, args.residual});
    require_wide("linear", args.x, {args.w, args.b});
    if constexpr (cuda::kBuilt)
        if (on_cuda("linear", args.x)) return linear_forward_cuda(args, stream);
    if (use_fast_cpu(args.x.dtype)) return forward_fast(args);
    dispatch_compute(args.x.dtype, "linear",
                     [&](auto type) { linear_forward_naive<typename decltype(type)::type>(args); });
}

void linear_backward(const LinearBackward& args, Stream stream) {
    const ProfileZone zone("linear backward");
    LC_CHECK(args.dy.rank() >= 1 && args.w.rank() == 2 && args.dy.size(-1) == args.w.size(0),
             "linear: dy must be [...,Out] of w [Out,In] {}, got {}", args.w.shape(), args.dy.shape());
    if (args.dw) check(args.x, args.w, args.dy);
    require_alike("linear", {args.dy, args.x});
    require_wide("linear", args.dy, {args.w, args.dx.view, args.dw.view, args.db.view});
    if constexpr (cuda::kBuilt)
        if (on_cuda("linear", args.dy)) return linear_backward_cuda(args, stream);
    if (use_fast_cpu(args.dy.dtype)) return backward_fast(args);
    dispatch_compute(args.dy.dtype, "linear",
                     [&](auto type) { linear_backward_naive<typename decltype(type)::type>(args); });
}

}  // namespace lc::kernels
