// Low-rank adapted linear layers on the GPU: one large cuBLASLt product on top of what a low-rank kernel has written.
//
// MATHS    lora_linear.h.
// TILING   low_rank.cu makes p (or q) and starts y (or dx) with the low-rank term in one pass; cuBLASLt's product with W has beta = 1
//          and reads that under its arithmetic. dA and dB are one launch, dB's half first and from the rows that were read last.
//
//            forward    x -> p, y = s p B^T              y += x W^T
//            backward   dy -> q, dx (+)= q A             dA, dB             dx += dy W
//
//          f32, odd shapes, ranks that are no multiple of 8 or above 64: cuBLASLt for each product, in the same order.
// COST     2 rows (In Out + R (In + Out)) FLOPs forward; a gradient that nobody wants costs nothing: a frozen W has no dW product.
//          Beside the large products: forward reads x and writes y once (y is read once more under the product), backward reads
//          dy twice, x once, and writes dx.
// NUMERICS f32 accumulation; TF32 is off for f32. Beside bf16 activations f32 A, B (and W) are rounded to bf16 as operands, p and
//          q are bf16, and y and dx are rounded after the low-rank term and again after the large product; dA, dB and dW are written
//          in their slots' dtype.
// LADDER   1 cuBLASLt throughout, the low-rank term last with beta = 1: reads and writes y and dx once more, 2 x 67 MB for 8192 x 4096.
//          2 the low-rank term first (its write is all it costs), in kernels of our own: of a plain layer's time, a seventh on top for
//            a square one's forward, a quarter for its backward, by the bytes they move.
//          Next: the low-rank term inside the product's main loop, one more step of K = 16: no start of y and dx.
// SOURCE   arXiv 2106.09685.
#include "core/cuda/runtime.h"
#include "kernels/common/cuda/gemm.h"
#include "kernels/common/cuda/rows.h"
#include "kernels/lora_linear/lora_linear.h"
#include "kernels/lora_linear/low_rank.cuh"

namespace lc::kernels {
namespace {

// A matrix operand or result as it lies.
struct Matrix {
    const void* data;
    int64_t rows, columns, stride;
    DType dtype;
    Matrix(const void* d, int64_t r, int64_t c, DType type) : data(d), rows(r), columns(c), stride(c), dtype(type) {}
    Matrix(const DeviceRows& x) : data(x.data), rows(x.rows), columns(x.columns), stride(x.stride), dtype(x.dtype) {}
    Matrix(const DeviceOutRows& x) : data(x.data), rows(x.rows), columns(x.columns), stride(x.stride), dtype(x.dtype) {}
};

// c = alpha op(a) op(b) + beta c
void product(Op op_a, Op op_b, double alpha, const Matrix& a, const Matrix& b, float beta, const Matrix& c,
             Stream stream) {
    gemm({.op_a = op_a,
          .op_b = op_b,
          .m = c.rows,
          .n = c.columns,
          .k = op_a == Op::Transpose ? a.rows : a.columns,
          .alpha = static_cast<float>(alpha),
          .a = a.data,
          .lda = a.stride,
          .b = b.data,
          .ldb = b.stride,
          .beta = beta,
          .c = const_cast<void*>(c.data),
          .ldc = c.stride,
          .dtype = a.dtype,
          .c_dtype = c.dtype},
         stream);
}

constexpr Op kNone = Op::None, kTransposed = Op::Transpose;

__nv_bfloat16* bf16_data(void* data) {
    return static_cast<__nv_bfloat16*>(data);
}

// y = s p B^T and p, without the large product.
void start_forward(const LoraLinearForward& args, const DeviceRows& x, const DeviceOutRows& y, const DeviceOutRows& p,
                   Stream stream) {
    if (x.dtype == DType::bf16 && p.stride == p.columns &&
        low_rank_covers(p.columns, {RowElements(x), RowElements(y), RowElements(p)}, {x.columns, y.columns})) {
        const LowRankFactors factors(args.a, args.b, stream);
        return low_rank_pass({.z = RowElements(x),
                              .rows = x.rows,
                              .depth = x.columns,
                              .down = factors.a,
                              .low = bf16_data(p.data),
                              .up = factors.b,
                              .wide = RowElements(y),
                              .width = y.columns,
                              .wide_scale = static_cast<float>(args.s)},
                             factors, stream);
    }
    product(kNone, kTransposed, 1, x, DeviceRows(args.a, x.dtype), 0, p, stream);
    product(kNone, kTransposed, args.s, p, DeviceRows(args.b, x.dtype), 0, y, stream);
}

struct BackwardRows {
    DeviceRows dy, x, p;
    DeviceOutRows dx;
};

// dx (+)= q A, dA and dB, without the large product: in low-rank kernels, if they take these matrices.
bool start_backward_low_rank(const LoraLinearBackward& args, const BackwardRows& r, Stream stream) {
    const int64_t rows = r.dy.rows, rank = args.a.size(0);
    const RowElements dy(r.dy), x(r.x), p(r.p), dx(r.dx);
    if (r.dy.dtype != DType::bf16 || r.p.stride != rank ||
        !low_rank_covers(rank, {dy, x, p, dx}, {r.dy.columns, r.x.columns}))
        return false;
    const float s = static_cast<float>(args.s);
    DeviceScratch<__nv_bfloat16> q;
    if (dx || args.da) {
        const LowRankFactors factors(args.a, args.b, stream);
        q = DeviceScratch<__nv_bfloat16>(rows * rank, stream);
        low_rank_pass({.z = dy,
                       .rows = rows,
                       .depth = r.dy.columns,
                       .down = factors.b,
                       .low = q.data(),
                       .low_scale = s,
                       .up = factors.a,
                       .wide = dx,
                       .width = r.x.columns},
                      factors, stream);
    }
    low_rank_gradients({.low = r.p.as<__nv_bfloat16>(),
                        .z = dy,
                        .columns = r.dy.columns,
                        .gradient = args.db,
                        .transposed = true,
                        .scale = s,
                        .fresh = q.data() != nullptr},
                       {.low = q.data(), .z = x, .columns = r.x.columns, .gradient = args.da}, rows, rank, stream);
    return true;
}

void start_backward(const LoraLinearBackward& args, const BackwardRows& r, Stream stream) {
    const DType dtype = r.dy.dtype;
    const int64_t rank = args.a.size(0);
    const DeviceOutRows da(args.da), db(args.db);
    if (r.dx || da) {
        const DeviceScratch<std::byte> buffer(r.dy.rows * rank * size_of(dtype), stream);
        const Matrix q(buffer.data(), r.dy.rows, rank, dtype);
        product(kNone, kNone, args.s, r.dy, DeviceRows(args.b, dtype), 0, q, stream);
        if (r.dx) product(kNone, kNone, 1, q, DeviceRows(args.a, dtype), r.dx.beta, r.dx, stream);
        if (da) product(kTransposed, kNone, 1, q, r.x, da.beta, da, stream);
    }
    if (db) product(kTransposed, kNone, args.s, r.dy, r.p, db.beta, db, stream);
    da.finish(), db.finish();
}

}  // namespace

void lora_linear_forward_cuda(const LoraLinearForward& args, Stream stream) {
    const DeviceRows x(args.x, args.x.dtype), w(args.w, args.x.dtype);
    const DeviceOutRows y(args.y), p(args.p);
    start_forward(args, x, y, p, stream);
    product(kNone, kTransposed, 1, x, w, 1, y, stream);
    y.finish(), p.finish();
}

void lora_linear_backward_cuda(const LoraLinearBackward& args, Stream stream) {
    const DType dtype = args.dy.dtype;
    const BackwardRows r{.dy = DeviceRows(args.dy, dtype),
                         .x = DeviceRows(args.x, dtype),
                         .p = DeviceRows(args.p, dtype),
                         .dx = DeviceOutRows(args.dx)};
    if (r.dy.rows == 0) {  // sums over nothing
        for (const GradSlot& slot : {args.dw, args.da, args.db})
            if (slot && !slot.accumulate()) cuda::fill(slot.view, 0, stream);
        return;
    }
    if (!start_backward_low_rank(args, r, stream)) start_backward(args, r, stream);
    if (r.dx) product(kNone, kNone, 1, r.dy, DeviceRows(args.w, dtype), 1, r.dx, stream);
    if (const DeviceOutRows dw(args.dw); dw) {
        product(kTransposed, kNone, 1, r.dy, r.x, dw.beta, dw, stream);
        dw.finish();
    }
    r.dx.finish();
}

}  // namespace lc::kernels
