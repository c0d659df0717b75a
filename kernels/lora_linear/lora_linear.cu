// Low-rank adapted linear layers on the GPU: cuBLASLt products.
//
// MATHS    lora_linear.h.
// TILING   cuBLASLt's. The low-rank term is a second product on top of the first (beta = 1), the bias the first one's epilogue.
//          dbias is column_sum.
// COST     2 rows (In Out + R (In + Out)) FLOPs forward; a gradient that nobody wants costs nothing: a frozen W has no dW product.
//          Adding the low-rank term reads and writes y (and dx) once more.
// NUMERICS f32 accumulation; TF32 is off for f32. Beside bf16 activations f32 A, B (and W) are rounded to bf16 as operands, p and
//          q are bf16, and y and dx are rounded after each of their two products; dA, dB and dW are written in their slots' dtype.
// LADDER   1 this. Next: one product over [x | p] [W ; s B], which saves the second pass over y.
//          Tried: p and y = s p B^T in one pass of our own, then x W^T on top with beta = 1 (and so backward): 490 us against 463
//          forward, 554 against 530 backward (8192 x 4096 x 4096, rank 8, H100). beta = 1 costs the large product more than the
//          pass over y that it saves.
// SOURCE   arXiv 2106.09685.
#include "core/cuda/runtime.h"
#include "kernels/common/cuda/column_sum.h"
#include "kernels/common/cuda/gemm.h"
#include "kernels/common/cuda/rows.h"
#include "kernels/lora_linear/lora_linear.h"

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

// c = alpha op(a) op(b) + beta c, and `bias`, if there is one, in every row
void product(Op op_a, Op op_b, double alpha, const Matrix& a, const Matrix& b, float beta, const Matrix& c,
             Stream stream, const void* bias = nullptr) {
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
          .c_dtype = c.dtype,
          .bias = bias},
         stream);
}

constexpr Op kNone = Op::None, kTransposed = Op::Transpose;

}  // namespace

void lora_linear_forward_cuda(const LoraLinearForward& args, Stream stream) {
    const DType dtype = args.x.dtype;
    const DeviceRows x(args.x, dtype), w(args.w, dtype), a(args.a, dtype), b(args.b, dtype);
    const DeviceOutRows y(args.y), p(args.p);
    product(kNone, kTransposed, 1, x, a, 0, p, stream);
    const std::optional<DeviceRows> bias = args.bias ? std::make_optional<DeviceRows>(args.bias, dtype) : std::nullopt;
    product(kNone, kTransposed, 1, x, w, 0, y, stream, bias ? bias->data : nullptr);
    product(kNone, kTransposed, args.s, p, b, 1, y, stream);
    y.finish(), p.finish();
}

void lora_linear_backward_cuda(const LoraLinearBackward& args, Stream stream) {
    const DType dtype = args.dy.dtype;
    const DeviceRows dy(args.dy, dtype);
    if (dy.rows == 0) {  // sums over nothing
        for (const GradSlot& slot : {args.dw, args.da, args.db, args.dbias})
            if (slot && !slot.accumulate()) cuda::fill(slot.view, 0, stream);
        return;
    }
    const DeviceOutRows dx(args.dx), dw(args.dw), da(args.da), db(args.db);
    if (dx || da) {
        const int64_t rank = args.a.size(0);
        const DeviceScratch<std::byte> buffer(dy.rows * rank * size_of(dtype), stream);
        const Matrix q(buffer.data(), dy.rows, rank, dtype);
        product(kNone, kNone, args.s, dy, DeviceRows(args.b, dtype), 0, q, stream);
        if (dx) {
            product(kNone, kNone, 1, dy, DeviceRows(args.w, dtype), dx.beta, dx, stream);
            product(kNone, kNone, 1, q, DeviceRows(args.a, dtype), 1, dx, stream);
        }
        if (da) product(kTransposed, kNone, 1, q, DeviceRows(args.x, dtype), da.beta, da, stream);
    }
    if (dw) product(kTransposed, kNone, 1, dy, DeviceRows(args.x, dtype), dw.beta, dw, stream);
    if (db) product(kTransposed, kNone, args.s, dy, DeviceRows(args.p, dtype), db.beta, db, stream);
    column_sum_cuda(dy, args.dbias, stream);
    dx.finish(), dw.finish(), da.finish(), db.finish();
}

}  // namespace lc::kernels
