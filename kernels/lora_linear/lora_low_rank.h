// The narrow parts of adapted layers on the GPU: factors as operands, and gradients of factors. Private to lora_linear.
#pragma once
#include "kernels/common/cuda/rows.h"
#include "kernels/lora_linear/lora_linear.h"

namespace lc::kernels {

// The factors of all projections in the activations' dtype, side by side as p is, 0 between:
//   a [width, In]        rows first(i) .. first(i) + R_i - 1 are A_i
//   b [sum of Out, width] rows from out(i) on, columns from first(i) on, are s_i B_i; 0 elsewhere: p b^T and dy b need no i;
//                         or b_transposed [width, sum of Out]
struct LoraFactors {
    int64_t in = 0, out = 0, width = 0;
    DType dtype = DType::f32;
    DeviceScratch<std::byte> memory;
    struct Place {
        int64_t rank, out, first_column, first_row;  // columns of p, rows of b
    };
    std::vector<Place> places;

    const std::byte* a() const { return memory.data(); }
    const std::byte* b() const { return memory.data() + width * in * size_of(dtype); }
    const std::byte* b_of(const Place& place) const { return b() + place.first_row * width * size_of(dtype); }
    const std::byte* b_transposed_of(const Place& place) const { return b() + place.first_row * size_of(dtype); }
    // `count` zeros behind them, where more was asked for.
    int* counters() const { return reinterpret_cast<int*>(memory.data() + width * (in + out) * size_of(dtype)); }
};

struct LoraFactor {
    TensorView a, b;
    double s;
};
// One launch; b_transposed in place of b, if so wanted. width * dtype size is a multiple of 16 bytes.
LoraFactors make_lora_factors(const std::vector<LoraFactor>& factors, DType dtype, bool transposed, int64_t counters,
                              Stream stream);

inline constexpr int kLoraMostRank = 64;  // of one gradient

// Sums over slices of rows, [slices, ranks, columns]; those of one gradient from rank `first_rank` on.
struct LoraParts {
    const float* data = nullptr;
    int64_t slices = 0, ranks = 0, first_rank = 0;
};

// gradient (+)= scale * low^T z, or its transpose: low [rows, ranks], z [rows, columns], both bf16 with rows on 16 bytes.
struct LoraGradient {
    const void* low = nullptr;
    int64_t low_stride = 0, rank = 0;
    const DeviceRows* z = nullptr;
    GradSlot slot;            // [rank, columns], or [columns, rank]
    bool transposed = false;  // the latter
    double scale = 1;
    LoraParts parts;  // where they are there already: they are added, and low is not read
};
// All at once, in two launches; neighbours with one z and neighbouring columns of one `low` read z once for up to 64 ranks.
void lora_gradients(const std::vector<LoraGradient>& gradients, int64_t rows, Stream stream);

}  // namespace lc::kernels
