// Dozens of rows times weights that stream through the SMs: a decode step of a larger batch (sm_90a).
//
// MATHS    frozen_linear.h. y [64 rows of x, rows of W] += x W^T by wgmma; a norm is a kernel of its own in front.
// TILING   a tile is 64, 96 or 128 rows of W, gated 56 of gate and 56 of up; one thread copies (TMA, a box of W and one of x a stage), a
//          warpgroup multiplies:
//
//            stage    [ rows of W x 64 columns ][ 64 rows of x x 64 columns ]      16 to 24 KiB
//            ring     9 to 13 stages: all of an SM
//            pair     two blocks share the columns of a tile; each gets the other's sums of half of the rows of W through shared memory
//
//          4096 rows are 64 tiles of 64 for pairs, 6144 are 64 of 96, 28672 gated are 256 of 112: two turns of 132 SMs. As in
//          frozen_linear_sm90.cu blocks begin early and fill their rings with weights before they wait for x; the norm begins early too.
// COST     bytes of W, once; x from L2 once a tile, half to one and a half of the bytes of W. 64 rows are 64 FLOPs a byte: bound by memory.
// NUMERICS f32 sums in the order of columns, then of the pair; the same for any number of rows. The norm's result is rounded to bf16.
// LADDER   us of the four products of a layer of Llama-3-8B, 436 MB in bf16, with the norms of 64 rows, in a graph; H200, copy 4.2 TB/s (104):
//          1 cuBLASLt, a product each for q, k, v, gate and up, SwiGLU, RMS norm: 149; q, k and v, and gate and up as one matrix: 133. A
//            product reads at 3.4 to 3.7 TB/s, k and v alone at 1.1.
//          2 W as left operand, 128 rows, clusters of up to four along the columns: 147 where 115 were predicted. Clusters of four find
//            room for 30 at a time, not 32, so that o and down took two turns (20 and 47 us); pairs 16 and 38 on half of the SMs.
//          3 the same with 256 rows for gate and up, clusters of three: 134. One box of 256 columns for memory's sake, two or three
//            stages: 141 to 162; many small stages are better. Rows of a box behind the end of x cost more than those that are there.
//          4 this: x as left operand, so that tiles of any eight rows divide evenly: 124.5, of which q, k, v 16, o 13, gate and up 61,
//            down 33; 17 rows 127. Each is some 4 to 5 us over its bytes: the start of a kernel, when the one before has left.
//          5 rings of half an SM, so that the next kernel's blocks find room beside this one's and fill theirs meanwhile: 110 predicted,
//            146 measured; a third 178. What is under way an SM counts for more.
//          Whole steps of the model with 64 sequences: 6.83 ms before, 5.86 with 4.
// SOURCE   PTX ISA, "wgmma.mma_async", "griddepcontrol".
#include "core/profile.h"
#include "kernels/common/cuda/hopper.h"
#include "kernels/common/rows.h"
#include "kernels/frozen_linear/frozen_linear_described.cuh"
#include "kernels/frozen_linear/frozen_linear_wide.cuh"

namespace lc::kernels {
namespace {

template <int Rows, int Split, bool Gated>
void launch(const Described& d, cudaStream_t queue) {
    using S = WideTraits<Rows, Split, Gated>;
    StreamArgs a = d.args;
    number_tiles(a, Gated, Rows);
    for (int j = 0; j < a.matrices; ++j)
        a.matrix[j].map = matrix_map(d.w[j], a.matrix[j].rows, a.columns, d.stride[j] / 2, S::kBox);
    a.x = matrix_map(d.x, a.batch, a.columns, d.ld_x, a.batch);
    launch_wide<S>(a, queue);
}

// Tiles of these rows, in two halves of the columns, are at most one for a multiprocessor.
bool fits_halved(const Described& d, int rows) {
    StreamArgs a = d.args;
    number_tiles(a, false, rows);
    return 2 * a.tiles <= multiprocessors();
}

void launch_tiles(const Described& d, bool gated, cudaStream_t queue) {
    if (gated) return launch<112, 1, true>(d, queue);
    if (fits_halved(d, 64)) return launch<64, 2, false>(d, queue);
    if (fits_halved(d, 96)) return launch<96, 2, false>(d, queue);
    launch<128, 1, false>(d, queue);
}

// Results and what is added to them are read and written in pairs, rows of W eight at a time.
bool in_pairs(const Described& d) {
    const auto even = [](const void* data, int64_t stride) {
        return reinterpret_cast<uintptr_t>(data) % 4 == 0 && stride % 2 == 0;
    };
    for (int j = 0; j < d.args.matrices; ++j) {
        const StreamMatrix& m = d.args.matrix[j];
        if (m.rows % 8 != 0 || !even(m.y, m.ld_y) || !even(m.b, 0)) return false;
    }
    return even(d.args.residual, d.args.ld_residual);
}

}  // namespace

bool frozen_linear_wide(const FrozenLinear& args, Stream stream) {
    if (args.code != WeightCode::none) return false;
    std::optional<Described> d = describe_frozen(args, kWideRows);
    if (!d || !in_pairs(*d)) return false;
    const cudaStream_t queue = cuda::handle_of(stream);
    DeviceScratch<__nv_bfloat16> normed;
    if (args.norm_weight) {
        normed = DeviceScratch<__nv_bfloat16>(int64_t{d->args.batch} * d->args.columns, stream);
        const NormRowsArgs norm{static_cast<const __nv_bfloat16*>(d->x),
                                d->args.norm_weight,
                                normed.data(),
                                d->ld_x,
                                d->args.columns,
                                d->args.eps,
                                d->args.offset};
        launch_early(norm_rows_kernel, {d->args.batch, kNormThreads}, queue, norm);
        LC_LAUNCHED("frozen_linear", queue);
        d->x = normed.data(), d->ld_x = d->args.columns;
    }
    launch_tiles(*d, args.gated, queue);
    LC_LAUNCHED("frozen_linear", queue);
    return true;
}

}  // namespace lc::kernels
