// y_i = x_i / (1-p) where kept, else 0          dx_i = dy_i / (1-p) where kept, else 0
// Element i (row-major) is kept when its 16 random bits >= p 2^16: those of element i mod 8 in Philox's block i / 8. The mask is a
// pure function of its arguments, so the backward makes it again. What is dropped is p rounded up to a multiple of 2^-16.
#pragma once
#include <cmath>

#include "core/device.h"
#include "core/rng.h"
#include "core/tensor.h"
#include "kernels/common/grad_write.h"

namespace lc::kernels {

struct DropoutMask {
    double p = 0;  // 0 <= p < 1
    uint64_t seed = 0, stream = 0;
};
// The random bits of elements 8 block .. 8 block + 7, and those of one of them.
LC_HOST_DEVICE constexpr std::array<uint32_t, 4> dropout_words(const DropoutMask& mask, uint64_t block) {
    const auto low = [](uint64_t value) { return static_cast<uint32_t>(value); };
    return philox4x32({low(block), low(block >> 32), low(mask.stream), low(mask.stream >> 32)},
                      {low(mask.seed), low(mask.seed >> 32)});
}
LC_HOST_DEVICE constexpr uint32_t dropout_bits(const std::array<uint32_t, 4>& words, uint64_t element) {
    return words[element / 2 % 4] >> (element % 2 * 16) & 0xffffu;
}
inline uint32_t dropout_threshold(double p) {
    return static_cast<uint32_t>(std::ceil(p * 0x1p16));  // for integers the same comparison as with p 2^16 itself
}

struct DropoutForward {
    TensorView x;  // in, any layout
    TensorView y;  // out, same shape
    DropoutMask mask;
};
void dropout_forward(const DropoutForward& args, Stream stream);
void dropout_forward_cuda(const DropoutForward& args, Stream stream);

struct DropoutBackward {
    TensorView dy;  // in
    GradSlot dx;    // out
    DropoutMask mask;
};
void dropout_backward(const DropoutBackward& args, Stream stream);
void dropout_backward_cuda(const DropoutBackward& args, Stream stream);

}  // namespace lc::kernels
