// Few rows times weights that stream through the SMs: a decode step (sm_90a).
//
// MATHS    frozen_linear.h. mma.sync with the weights as left operand: y^T [16 rows of W, 8 rows of x] += W x^T. A norm's factor comes
//          last: n = r x w, and r, one number a row of x, multiplies the finished sum.
// TILING   a tile is 32 or 48 rows of W and all columns; a block an SM takes tiles gridDim apart. One thread copies (TMA, one box of W and
//          one of x a stage), eight warps multiply, each another 32 columns of a stage, and add up through shared memory when the tile is
//          done; where codes must be decoded, two groups of eight take turns at the stages:
//
//            stage    [ 4 panels of 32 rows of W x 128 bytes ][ 8 rows of x ][ norm weight ]      21 KiB, or 25 of codes
//            ring     10 stages (8 of codes): 160 KiB of W under way an SM; 30 would keep the memory busy
//            warp w   half of panel w / 2; x's operand is read once for all rows of W
//
//          Which tile is taken (of 32 or 48 rows) follows from how evenly tiles divide among the SMs: 4096, 6144, 28672 and 128256 rows
//          leave at most 3 % of 132 SMs without work, so no sum is split between blocks. Gated: half of a tile is gate, half up.
//          Weights depend on nobody: the next kernel of the stream may begin while this one ends (programmatic dependent launch), and
//          its blocks fill their rings before they wait for x.
// COST     bytes of W, once; x from L2 once a tile: rows of x / rows of a tile on top. A pair of codes becomes bf16 in four instructions.
// NUMERICS f32 sums: a warp in the order of columns, then the warps in order; the same for any number of rows and any tile. x w is
//          rounded to bf16 before the product as the norm's result is. Codes are exact in bf16; scales multiply the sum.
// LADDER   us of the four products of a layer of Llama-3-8B, 436 MB in bf16, one row, in a graph; H200, copy 4.2 TB/s (104 us):
//          1 rows of W by plain bulk copies: 281 in pieces of 512 bytes, 150 of 1 KiB. An SM's engine takes 22 pieces a microsecond.
//          2 boxes by tensor maps, the ring half an SM, so that the next kernel's blocks fit beside: 127; without early launch 122.
//          3 the ring all of an SM: 112 = 93 % of copy, 16 rows 119; int8 97, fp8 92, 32 rows of int8 159.
//          4 sixteen warps for codes, all at every stage: 99 and 95. Not decoding at all (wrong numbers): 76. One arrival a warp in place
//            of one a thread: no change. In bf16 without early launch 123. With tiles of 32 rows for 32 rows of x, x squared by the first
//            tile only and weighed by one instruction, together: 147.
//          5 this: two groups of eight warps take turns at the stages of codes: int8 94, fp8 86, 56 and 61 % of copy for half the bytes,
//            where 60 to 70 us were predicted; 32 rows 145, 140. What binds codes now is not known. bf16 111 = 94 %, 8 rows 110, 16 rows
//            116 = 90 %.
// SOURCE   PTX ISA, "cp.async.bulk", "griddepcontrol".
#include <algorithm>
#include <limits>

#include "core/profile.h"
#include "kernels/common/cuda/hopper.h"
#include "kernels/common/cuda/launch.h"
#include "kernels/common/rows.h"
#include "kernels/frozen_linear/frozen_linear_described.cuh"

namespace lc::kernels {
namespace {

constexpr int64_t kMostRows = std::numeric_limits<int>::max() / 2;

template <class T>
T* start_of(const TensorView& view, const Layout& layout) {
    return reinterpret_cast<T*>(view.base) + layout.offset;
}

bool on_sixteen(const void* pointer, int64_t row_bytes) {
    return reinterpret_cast<uintptr_t>(pointer) % 16 == 0 && row_bytes % 16 == 0;
}

bool is_vector(const TensorView& view) {
    return !view || view.size(0) <= 1 || view.stride(0) == 1;
}

// False where the kernel cannot read or write matrix j.
bool describe(const FrozenLinear& a, size_t j, Described& out) {
    const FrozenMatrix& m = a.matrices[j];
    const std::optional<Layout> w = row_layout(m.w);
    if (!w || !is_vector(m.b) || m.w.size(0) > kMostRows) return false;
    const int64_t width = size_of(m.w.dtype);
    out.w[j] = m.w.base + w->offset * width, out.stride[j] = w->strides[0] * width;
    StreamMatrix& matrix = out.args.matrix[j];
    matrix.rows = static_cast<int>(m.w.size(0));
    matrix.scale = device_data<const float>(m.scale), matrix.b = device_data<const __nv_bfloat16>(m.b);
    if (!on_sixteen(out.w[j], out.stride[j])) return false;
    if (j >= a.y.size()) return true;
    const std::optional<Layout> y = row_layout(a.y[j]);
    if (!y) return false;
    matrix.y = start_of<__nv_bfloat16>(a.y[j], *y), matrix.ld_y = y->strides[0];
    return true;
}

}  // namespace

std::optional<Described> describe_frozen(const FrozenLinear& a, int64_t most_rows) {
    const int64_t rows = row_count(a.x.shape()), columns = a.x.size(-1);
    const int64_t panel = a.code == WeightCode::none ? kPanel / 2 : kPanel;
    if (a.x.dtype != DType::bf16 || rows > most_rows || columns % panel != 0 || columns > kMostRows ||
        !hopper_applies({}))
        return std::nullopt;
    if (a.norm_weight && (a.norm_weight.dtype != DType::bf16 || !is_vector(a.norm_weight))) return std::nullopt;
    const std::optional<Layout> x = row_layout(a.x);
    const std::optional<Layout> residual = a.residual ? row_layout(a.residual) : Layout();
    if (!x || !residual) return std::nullopt;
    Described out;
    StreamArgs& args = out.args;
    out.x = start_of<const __nv_bfloat16>(a.x, *x), out.ld_x = x->strides[0];
    args.norm_weight = device_data<const __nv_bfloat16>(a.norm_weight);
    if (!on_sixteen(out.x, out.ld_x * 2) || !on_sixteen(args.norm_weight, 0)) return std::nullopt;
    if (a.residual)
        args.residual = start_of<const __nv_bfloat16>(a.residual, *residual), args.ld_residual = residual->strides[0];
    args.matrices = static_cast<int>(a.matrices.size()), args.batch = static_cast<int>(rows);
    args.columns = static_cast<int>(columns);
    args.eps = static_cast<float>(a.norm_eps), args.offset = static_cast<float>(a.norm_offset);
    for (size_t j = 0; j < a.matrices.size(); ++j)
        if (!describe(a, j, out)) return std::nullopt;
    return out;
}

void number_tiles(StreamArgs& a, bool gated, int rows) {
    if (gated) {
        a.tiles = static_cast<int>(ceil_div(a.matrix[0].rows, rows / 2));
        return;
    }
    a.tiles = 0;
    for (int j = 0; j < a.matrices; ++j) {
        a.matrix[j].first_tile = a.tiles;
        a.tiles += static_cast<int>(ceil_div(a.matrix[j].rows, rows));
    }
}

namespace {

// Rows that the busiest SM takes.
int64_t longest_share(StreamArgs a, int rows) {
    number_tiles(a, false, rows);
    return ceil_div(a.tiles, multiprocessors()) * rows;
}

template <WeightCode Code, int RowTiles, int BatchTiles, bool Gated>
void launch(const Described& d, cudaStream_t queue) {
    using S = StreamTraits<Code, RowTiles, BatchTiles, Gated>;
    StreamArgs a = d.args;
    number_tiles(a, Gated, S::kRows);
    for (int j = 0; j < a.matrices; ++j)
        a.matrix[j].map = panel_map(d.w[j], S::kWidth, a.matrix[j].rows, a.columns, d.stride[j], S::kBox, kPanels);
    a.x = panel_map(d.x, 2, a.batch, a.columns, d.ld_x * 2, S::kBatch, S::kInputPanels);
    launch_stream<S>(a, queue);
}

template <WeightCode Code, int BatchTiles>
void launch_rows(const Described& d, bool gated, cudaStream_t queue) {
    if (gated) return launch<Code, 2, BatchTiles, true>(d, queue);
    if constexpr (BatchTiles <= 2)
        if (longest_share(d.args, 48) < longest_share(d.args, 32)) return launch<Code, 3, BatchTiles, false>(d, queue);
    launch<Code, 2, BatchTiles, false>(d, queue);
}

template <WeightCode Code>
void launch_batch(const Described& d, bool gated, cudaStream_t queue) {
    if (d.args.batch <= 8) return launch_rows<Code, 1>(d, gated, queue);
    if (d.args.batch <= 16) return launch_rows<Code, 2>(d, gated, queue);
    if constexpr (Code != WeightCode::none) launch_rows<Code, 4>(d, gated, queue);
}

}  // namespace

bool frozen_linear_stream(const FrozenLinear& args, Stream stream) {
    const std::optional<Described> d = describe_frozen(args, streamed_rows(args.code));
    if (!d) return false;
    const cudaStream_t queue = cuda::handle_of(stream);
    switch (args.code) {
        case WeightCode::none:
            launch_batch<WeightCode::none>(*d, args.gated, queue);
            break;
        case WeightCode::int8:
            launch_batch<WeightCode::int8>(*d, args.gated, queue);
            break;
        case WeightCode::fp8:
            launch_batch<WeightCode::fp8>(*d, args.gated, queue);
            break;
    }
    LC_LAUNCHED("frozen_linear", queue);
    return true;
}

}  // namespace lc::kernels
