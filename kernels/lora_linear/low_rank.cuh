// The small products of a low-rank adapter as kernels bound by memory: each wide matrix is read or written once. For bf16
// activations with aligned rows of a multiple of eight elements, and ranks 8, 16, ... 64.
#pragma once
#include <initializer_list>

#include "kernels/common/cuda/rows.h"
#include "kernels/common/cuda/run.cuh"
#include "kernels/common/grad_write.h"

namespace lc::kernels {

// True where the functions below take these matrices; empty ones are not asked.
bool low_rank_covers(int64_t rank, std::initializer_list<RowElements> matrices, std::initializer_list<int64_t> widths);

// A [R,In] and B [Out,R], of any layout and dtype, as the kernels read them: bf16, rank by rank, [padded,In] and [padded,Out];
// ranks from R on are zeros.
struct LowRankFactors {
    DeviceScratch<__nv_bfloat16> memory;
    const __nv_bfloat16 *a = nullptr, *b = nullptr;
    int64_t rank = 0, padded = 0;

    LowRankFactors(const TensorView& a_view, const TensorView& b_view, Stream stream);
};

//   low = low_scale z down^T          wide (+)= wide_scale low up
struct LowRankPass {
    RowElements z;  // [rows,depth]   in
    int64_t rows = 0, depth = 0;
    const __nv_bfloat16* down = nullptr;  // [padded,depth]
    __nv_bfloat16* low = nullptr;         // [rows,R]       out; the second product reads it as it is rounded here
    float low_scale = 1;
    const __nv_bfloat16* up = nullptr;  // [padded,width]
    RowElements wide;                   // [rows,width]   out, or empty: no second product
    int64_t width = 0;
    float wide_scale = 1;
};
void low_rank_pass(const LowRankPass& pass, const LowRankFactors& factors, Stream stream);

//   gradient [R,columns] (or its transpose) (+)= scale low^T z
struct LowRankGradient {
    const __nv_bfloat16* low = nullptr;  // [rows,R]
    RowElements z;                       // [rows,columns]
    int64_t columns = 0;
    GradSlot gradient;        // empty: not wanted
    bool transposed = false;  // the gradient is [columns,R]
    float scale = 1;
    bool fresh = false;  // z was read just before: its last rows may still lie in L2 and are read first
};
void low_rank_gradients(const LowRankGradient& first, const LowRankGradient& second, int64_t rows, int64_t rank,
                        Stream stream);

}  // namespace lc::kernels
