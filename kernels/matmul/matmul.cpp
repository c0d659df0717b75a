#include "kernels/matmul/matmul.h"

#include "kernels/common/dispatch.h"
#include "kernels/common/gemm.h"
#include "kernels/matmul/matmul_naive.h"

namespace lc::kernels {
namespace {

int64_t batch_of(const TensorView& view) {
    int64_t batch = 1;
    for (int axis = 0; axis + 2 < view.rank(); ++axis) batch *= view.size(axis);
    return batch;
}

// One product a matrix: over the matrices in parallel, or within a lone one.
void run_batch(int64_t batch, const Gemm<float>& first, int64_t a_step, int64_t b_step, int64_t c_step) {
    parallel_for(batch, 1, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) {
            Gemm<float> g = first;
            g.a += n * a_step, g.b += n * b_step, g.c += n * c_step;
            gemm(g);
        }
    });
}

void forward_fast(const MatmulForward& args) {
    const InRows<float> a(args.a), b(args.b);
    const OutRows<float> c(args.c);
    const int64_t m = args.a.size(-2), k = args.b.size(-2);
    run_batch(batch_of(args.a),
              {.m = m,
               .n = b.columns,
               .k = k,
               .a = a.data,
               .lda = a.stride,
               .b = b.data,
               .ldb = b.stride,
               .c = c.data,
               .ldc = c.stride},
              m * a.stride, k * b.stride, m * c.stride);
    c.finish();
}

void backward_fast(const MatmulBackward& args) {
    const InRows<float> a(args.a), b(args.b), dc(args.dc);
    const OutRows<float> da(args.da), db(args.db);
    const int64_t m = args.a.size(-2), k = args.b.size(-2), n = b.columns, batch = batch_of(args.a);
    if (da)
        run_batch(batch,
                  {.op_b = Op::Transpose,
                   .m = m,
                   .n = k,
                   .k = n,
                   .a = dc.data,
                   .lda = dc.stride,
                   .b = b.data,
                   .ldb = b.stride,
                   .beta = da.beta(),
                   .c = da.data,
                   .ldc = da.stride},
                  m * dc.stride, k * b.stride, m * da.stride);
    if (db)
        run_batch(batch,
                  {.op_a = Op::Transpose,
                   .m = k,
                   .n = n,
                   .k = m,
                   .a = a.data,
                   .lda = a.stride,
                   .b = dc.data,
                   .ldb = dc.stride,
                   .beta = db.beta(),
                   .c = db.data,
                   .ldc = db.stride},
                  m * a.stride, m * dc.stride, k * db.stride);
    da.finish(), db.finish();
}

void check(const TensorView& a, const TensorView& b, const TensorView& c) {
    bool fits = a.rank() >= 2 && a.rank() == b.rank() && a.rank() == c.rank() && a.size(-1) == b.size(-2) &&
                c.size(-2) == a.size(-2) && c.size(-1) == b.size(-1);
    for (int axis = 0; fits && axis + 2 < a.rank(); ++axis)
        fits = a.size(axis) == b.size(axis) && a.size(axis) == c.size(axis);
    LC_CHECK(fits, "matmul: [...,M,K] times [...,K,N] gives [...,M,N]; got {}, {} and {}", a.shape(), b.shape(),
             c.shape());
    require_alike("matmul", {a, b, c});
}

}  // namespace

void matmul_forward(const MatmulForward& args, Stream stream) {
    const ProfileZone zone("matmul");
    check(args.a, args.b, args.c);
    if constexpr (cuda::kBuilt)
        if (on_cuda("matmul", args.a)) return matmul_forward_cuda(args, stream);
    if (use_fast_cpu(args.a.dtype)) return forward_fast(args);
    dispatch_compute(args.a.dtype, "matmul",
                     [&](auto type) { matmul_forward_naive<typename decltype(type)::type>(args); });
}

void matmul_backward(const MatmulBackward& args, Stream stream) {
    const ProfileZone zone("matmul backward");
    check(args.a, args.b, args.dc);
    require_wide("matmul", args.a, {args.da.view, args.db.view});
    if constexpr (cuda::kBuilt)
        if (on_cuda("matmul", args.a)) return matmul_backward_cuda(args, stream);
    if (use_fast_cpu(args.a.dtype)) return backward_fast(args);
    dispatch_compute(args.a.dtype, "matmul",
                     [&](auto type) { matmul_backward_naive<typename decltype(type)::type>(args); });
}

}  // namespace lc::kernels
