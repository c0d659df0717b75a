// Linear layers with frozen weights on the GPU: few rows stream the weights (frozen_linear_sm90.cu), others go op by op.
//
// MATHS    frozen_linear.h.
// TILING   that of rms_norm, weight_code, linear and swiglu.
// COST     a coded matrix is decoded into workspace: 1 + 2 bytes a weight before the product reads 2. With many rows the product takes
//          longer than that.
// NUMERICS n, gate and up are rounded to the dtype of x between ops; the streaming kernel keeps them in f32.
// LADDER   1 this.
// SOURCE   derived here.
#include "kernels/frozen_linear/frozen_linear.h"

#include "core/profile.h"

namespace lc::kernels {

void frozen_linear_cuda(const FrozenLinear& args, Stream stream) {
    if (args.x.numel() == 0 || frozen_linear_stream(args, stream)) return;
    frozen_linear_by_parts(args, stream);
}

}  // namespace lc::kernels
