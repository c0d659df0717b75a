// Linear layers on the GPU: three cuBLASLt products.
//
// MATHS    linear.h. Row-major throughout; W is [Out,In] as Hugging Face stores it.
// TILING   cuBLASLt's; bias and residual are its epilogue: the sum costs no pass of its own. db is column_sum.
// COST     2 rows In Out FLOPs a product; a gradient that nobody wants costs nothing.
// NUMERICS f32 accumulation; TF32 is off for f32. dW and db of f32 parameters are written in f32 beside bf16 activations. An f32
//          weight is rounded to bf16 first when x is bf16.
// LADDER   1 this.
// SOURCE   cuBLASLt documentation.
#include "kernels/common/cuda/column_sum.h"
#include "kernels/common/cuda/gemm.h"
#include "kernels/linear/linear.h"

namespace lc::kernels {

void linear_forward_cuda(const LinearForward& args, Stream stream) {
    const DType dtype = args.x.dtype;
    const DeviceRows x(args.x, dtype), w(args.w, dtype);
    const DeviceOutRows y(args.y);
    const auto rows_of = [&](const TensorView& view) {
        return view ? std::optional<DeviceRows>(std::in_place, view, dtype) : std::nullopt;
    };
    const std::optional<DeviceRows> b = rows_of(args.b), residual = rows_of(args.residual);
    gemm({.op_b = Op::Transpose,
          .m = x.rows,
          .n = w.rows,
          .k = x.columns,
          .a = x.data,
          .lda = x.stride,
          .b = w.data,
          .ldb = w.stride,
          .beta = residual ? 1.0f : 0.0f,
          .c = y.data,
          .ldc = y.stride,
          .dtype = dtype,
          .c_dtype = y.dtype,
          .bias = b ? b->data : nullptr,
          .addend = residual ? residual->data : nullptr,
          .ld_addend = residual ? residual->stride : 0},
         stream);
    y.finish();
}

void linear_backward_cuda(const LinearBackward& args, Stream stream) {
    const DType dtype = args.dy.dtype;
    const DeviceRows dy(args.dy, dtype);
    const DeviceOutRows dx(args.dx), dw(args.dw);
    if (dx) {
        const DeviceRows w(args.w, dtype);
        gemm({.m = dy.rows,
              .n = w.columns,
              .k = w.rows,
              .a = dy.data,
              .lda = dy.stride,
              .b = w.data,
              .ldb = w.stride,
              .beta = dx.beta,
              .c = dx.data,
              .ldc = dx.stride,
              .dtype = dtype,
              .c_dtype = dx.dtype},
             stream);
    }
    if (dw) {
        const DeviceRows x(args.x, dtype);
        gemm({.op_a = Op::Transpose,
              .m = dy.columns,
              .n = x.columns,
              .k = x.rows,
              .a = dy.data,
              .lda = dy.stride,
              .b = x.data,
              .ldb = x.stride,
              .beta = dw.beta,
              .c = dw.data,
              .ldc = dw.stride,
              .dtype = dtype,
              .c_dtype = dw.dtype},
             stream);
    }
    column_sum_cuda(dy, args.db, stream);
    dx.finish(), dw.finish();
}

}  // namespace lc::kernels
