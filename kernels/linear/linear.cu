// Linear layers on the GPU: three cuBLASLt products.
//
// MATHS    linear.h. Row-major throughout; W is [Out,In] as Hugging Face stores it.
// TILING   cuBLASLt's; the bias is its epilogue. db is column_sum.
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
    const std::optional<DeviceRows> b = args.b ? std::optional<DeviceRows>(std::in_place, args.b, dtype) : std::nullopt;
    gemm({.op_b = Op::Transpose,
          .m = x.rows,
          .n = w.rows,
          .k = x.columns,
          .a = x.data,
          .lda = x.stride,
          .b = w.data,
          .ldb = w.stride,
          .c = y.data,
          .ldc = y.stride,
          .dtype = dtype,
          .c_dtype = y.dtype,
          .bias = b ? b->data : nullptr},
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
