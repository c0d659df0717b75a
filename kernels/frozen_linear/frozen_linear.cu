// Linear layers with frozen weights on the GPU: few rows stream the weights (frozen_linear_sm90.cu,
// frozen_linear_wide_sm90.cu), gate and up of many are
// one product (frozen_linear_gated_sm90.cu), others go op by op.
//
// MATHS    frozen_linear.h.
// TILING   that of rms_norm, weight_code, linear and swiglu.
// COST     a coded matrix is decoded into workspace: 1 + 2 bytes a weight before the product reads 2. With many rows the product takes
//          longer than that. Coded rows: 2 + 1 bytes a number of n once, then products of
//          codes: on an H200 424 us for q, k and v of 8192 rows of Llama-3-8B with norm and codes, where bf16 takes 593 without a norm.
// NUMERICS n, gate and up are rounded to the dtype of x between ops; the streaming kernel keeps them in f32. Products of codes
//          are exact; their sums are kept to fewer bits than f32 has (seen on an H200: 1.4e-4 of the sum of magnitudes).
// LADDER   1 this.
// SOURCE   derived here.
#include "kernels/frozen_linear/frozen_linear.h"

#include "core/profile.h"
#include "kernels/common/cuda/gemm.h"
#include "kernels/common/cuda/launch.h"

namespace lc::kernels {

bool multiply_codes_cuda(const TensorView& codes, const TensorView& scale, const FrozenMatrix& m,
                         const TensorView& residual, const TensorView& y, Stream stream) {
    constexpr int64_t kStep = 16;  // of tensor cores, and of addresses
    const int64_t in = m.w.size(1), out = m.w.size(0), rows = codes.size(0);
    const auto fits = [&](const TensorView& x) {
        return !x || (x.layout.is_contiguous() && reinterpret_cast<uintptr_t>(device_data<std::byte>(x)) % kStep == 0);
    };
    if (y.dtype != DType::bf16 || rows % kStep != 0 || in % kStep != 0 || out % kStep != 0 || !fits(codes) ||
        !fits(m.w) || !fits(m.b) || !fits(residual) || !fits(y) || !gemm_takes_codes(stream.device))
        return false;
    gemm({.op_b = Op::Transpose,
          .m = rows,
          .n = out,
          .k = in,
          .a = device_data<std::byte>(codes),
          .lda = in,
          .b = device_data<std::byte>(m.w),
          .ldb = in,
          .beta = residual ? 1.0f : 0.0f,
          .c = device_data<std::byte>(y),
          .ldc = out,
          .dtype = DType::u8,
          .scale_a = device_data<const float>(scale),
          .scale_b = device_data<const float>(m.scale),
          .c_dtype = y.dtype,
          .bias = m.b ? device_data<std::byte>(m.b) : nullptr,
          .addend = residual ? device_data<std::byte>(residual) : nullptr,
          .ld_addend = out},
         stream);
    return true;
}

void frozen_linear_cuda(const FrozenLinear& args, Stream stream) {
    if (args.x.numel() == 0) return;
    if (!args.code_rows &&
        (frozen_linear_stream(args, stream) || frozen_linear_wide(args, stream) || frozen_linear_gated(args, stream)))
        return;
    frozen_linear_by_parts(args, stream);
}

}  // namespace lc::kernels
