// Batched matrix product on the GPU: strided-batched cuBLASLt.
//
// MATHS    matmul.h.
// TILING   cuBLASLt's; the leading dimensions are one batch axis with an even stride (a dense copy where they have none).
// COST     2 batch M N K FLOPs a product.
// NUMERICS f32 accumulation; TF32 is off for f32.
// LADDER   1 this.
// SOURCE   cuBLASLt documentation.
#include "kernels/common/cuda/gemm.h"
#include "kernels/common/cuda/rows.h"
#include "kernels/matmul/matmul.h"

namespace lc::kernels {
namespace {

// One of the three products: `batch` matrices of `rows_*` rows each, stacked in DeviceRows.
void products(CudaGemm g, const DeviceRows& a, int64_t a_rows, const DeviceRows& b, int64_t b_rows, const DeviceOutRows& c,
              Stream stream) {
    g.a = a.data, g.lda = a.stride, g.stride_a = a_rows * a.stride;
    g.b = b.data, g.ldb = b.stride, g.stride_b = b_rows * b.stride;
    g.c = c.data, g.ldc = c.stride, g.stride_c = g.m * c.stride;
    g.beta = c.beta;
    g.dtype = a.dtype, g.c_dtype = c.dtype;
    g.batch = g.m == 0 ? 0 : c.rows / g.m;
    gemm(g, stream);
    c.finish();
}

}  // namespace

void matmul_forward_cuda(const MatmulForward& args, Stream stream) {
    const DType dtype = args.a.dtype;
    const DeviceRows a(args.a, dtype), b(args.b, dtype);
    const int64_t m = args.a.size(-2), k = args.b.size(-2);
    products({.m = m, .n = b.columns, .k = k}, a, m, b, k, DeviceOutRows(args.c), stream);
}

void matmul_backward_cuda(const MatmulBackward& args, Stream stream) {
    const DType dtype = args.a.dtype;
    const DeviceRows a(args.a, dtype), b(args.b, dtype), dc(args.dc, dtype);
    const int64_t m = args.a.size(-2), k = args.b.size(-2), n = b.columns;
    if (args.da)
        products({.op_b = Op::Transpose, .m = m, .n = k, .k = n}, dc, m, b, k, DeviceOutRows(args.da), stream);
    if (args.db)
        products({.op_a = Op::Transpose, .m = k, .n = n, .k = m}, a, m, dc, m, DeviceOutRows(args.db), stream);
}

}  // namespace lc::kernels
