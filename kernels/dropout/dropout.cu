// Dropout on the GPU.
//
// MATHS    dropout.h: the mask of the CPU, bit for bit.
// TILING   elementwise.cuh, in row-major order: the counter of the generator is the row-major index.
// COST     8 bytes an element in f32, 4 in bf16, and one Philox block (ten rounds, about 100 integer instructions) an element, which
//          is what bounds it.
// NUMERICS the scale 1/(1-p) is rounded to f32; f32 product, rounded once.
// LADDER   1 this. Using all four words of a block would make it four times cheaper and change the mask's contract.
// SOURCE   Philox: Salmon et al., SC 2011.
#include <cmath>

#include "core/rng.h"
#include "kernels/common/cuda/elementwise.cuh"
#include "kernels/dropout/dropout.h"

namespace lc::kernels {
namespace {

struct Dropout {
    Random random;
    uint64_t threshold;  // ceil(p 2^32): for integers the same comparison as with p 2^32 itself
    float scale;
    __device__ void operator()(const float (&in)[1], float (&out)[1], int64_t i) const {
        out[0] = random.bits(static_cast<uint64_t>(i)) >= threshold ? scale * in[0] : 0.0f;
    }
};

Dropout functor_of(const DropoutMask& mask) {
    return {Random(mask.seed, mask.stream), static_cast<uint64_t>(std::ceil(mask.p * 0x1p32)),
            static_cast<float>(1 / (1 - mask.p))};
}

}  // namespace

void dropout_forward_cuda(const DropoutForward& args, Stream stream) {
    elementwise<1, 1>("dropout", functor_of(args.mask), {args.x}, {{{args.y}}}, stream);
}

void dropout_backward_cuda(const DropoutBackward& args, Stream stream) {
    elementwise<1, 1>("dropout", functor_of(args.mask), {args.dy}, {args.dx}, stream);
}

}  // namespace lc::kernels
