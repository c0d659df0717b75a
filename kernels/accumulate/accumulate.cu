// target += source on the GPU.
//
// MATHS    accumulate.h.
// TILING   elementwise.cuh.
// COST     12 bytes an element in f32, 6 in bf16.
// NUMERICS the sum is formed in f32 and rounded once to the target's dtype.
// LADDER   1 this.
// SOURCE   derived here.
#include "kernels/accumulate/accumulate.h"
#include "kernels/common/cuda/elementwise.cuh"

namespace lc::kernels {

void accumulate_cuda(const Accumulate& args, Stream stream) {
    elementwise<1, 1>("accumulate", Identity{}, {args.source}, {{{args.target, GradWrite::Accumulate}}}, stream);
}

}  // namespace lc::kernels
