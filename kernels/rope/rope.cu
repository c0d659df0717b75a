// Rotary embedding on the GPU.
//
// MATHS    rope.h.
// TILING   a thread has one run of eight pairs (eight elements of the lower half of a row, eight of the upper half) of four heads of one
//          position, and loads the tables' runs for all four once. The four heads lie a quarter of all heads apart, so that the
//          threads of a warp are neighbours: in [B,T,H,D] storage a block reads and writes whole tokens.
//
//            warp, D = 128    8 runs x 4 heads: 128 bytes of each half of heads h .. h+3, then of h + H/4 .. h + H/4 + 3, ...
//
//          Columns behind the tables' are copied by elementwise.cuh. Rows that are no whole runs, or tables in another dtype
//          than f32, go through it over [B,H,T,D/2], where sequences with positions of their own first get their rows of the
//          tables gathered.
// COST     8 bytes an element in f32, 4 in bf16; the tables stay in L2, and what a thread reads of them is half of what it reads of x.
// NUMERICS f32, rounded once. The tables are f32 beside bf16 activations: a bf16 angle is off by up to 2^-9 of a turn's cosine.
// LADDER   1 elementwise.cuh: every run of pairs loads its tables, 64 bytes beside 32 of x in bf16, and waits for each load in turn.
//          2 four heads a thread, all loads under way at once: meant for 0.85 of a copy, 0.91 on an H100 (version 1: 0.69), 0.87 on an H200,
//            where a copy of this size is itself at 0.88 (cudaMemcpy, cold) to 0.91 (16 bytes a thread, one call after the other).
//          3 begun early (early.cuh): 0.91 on an H200 where calls follow each other (34.7 us), k 7.4 instead of 8.0; a call alone as 2.
//          Beside 2 on the H200, alone with a typed store, us at 8 x 1024 tokens of 32 heads of 128 (2: 35.9):
//            one, two or eight heads a thread                   38.0   35.5   59.7   (two, in this file: 36.5, k 9.2 instead of 8.0)
//            tables through shared memory                       36.8
//            a block of runs x heads x positions: no division   36.0
// SOURCE   arXiv 2104.09864.
#include <optional>

#include "kernels/common/cuda/early.cuh"
#include "kernels/common/cuda/elementwise.cuh"
#include "kernels/common/cuda/hopper.h"
#include "kernels/common/cuda/operand.cuh"
#include "kernels/rope/rope.h"

namespace lc::kernels {
namespace {

constexpr int kThreads = 256, kHeads = 4;  // heads of a thread

struct Rotation {
    float direction;
    __device__ void operator()(const float (&in)[4], float (&out)[2]) const {
        const auto [low, high, cos, sine] = in;
        const float sin = direction * sine;
        out[0] = low * cos - high * sin;
        out[1] = high * cos + low * sin;
    }
};

struct HeadArgs {
    Elements x, out;
    bool add;
    const float *cos, *sin;    // row `first`, or row 0 where there are positions
    const int64_t* sequences;  // positions [B], or null
    int64_t x_batch, x_head, x_position, out_batch, out_head, out_position, table_position;
    int heads, positions, rows, runs,
        spread;  // rows of the tables; runs in half a row; heads from one of a thread's to the next
    int items;
    Rotation rotation;
};

// The nearest to `position` from where `length` rows fit a table of `rows`.
__device__ __forceinline__ int64_t start_row(int64_t position, int64_t length, int64_t rows) {
    return max(int64_t{0}, min(position, rows - length));
}

template <class T, bool kSequences>
__global__ void __launch_bounds__(kThreads) head_kernel(const __grid_constant__ HeadArgs a) {
    if constexpr (kSequences)
        start_successor(), wait_for_predecessor();
    else
        join_stream();
    const int item = blockIdx.x * kThreads + threadIdx.x;
    if (item >= a.items) return;
    const int run = item % a.runs, first_head = item / a.runs % a.spread, token = item / a.runs / a.spread;
    const int64_t position = token % a.positions, batch = token / a.positions;
    const int64_t column = int64_t{run} * kRun, half = int64_t{a.runs} * kRun;
    const T* x = reinterpret_cast<const T*>(a.x.base) + batch * a.x_batch + position * a.x_position + column;
    RunBits<T> low[kHeads] = {}, high[kHeads] = {};
#pragma unroll
    for (int k = 0; k < kHeads; ++k) {
        const int head = first_head + k * a.spread;
        if (head >= a.heads) continue;
        low[k] = RunBits<T>::load(x + head * a.x_head);
        high[k] = RunBits<T>::load(x + head * a.x_head + half);
    }
    const int64_t row = position + (kSequences ? start_row(a.sequences[batch], a.positions, a.rows) : 0);
    const auto cos = RunBits<float>::load(a.cos + row * a.table_position + column);
    const auto sin = RunBits<float>::load(a.sin + row * a.table_position + column);
#pragma unroll
    for (int k = 0; k < kHeads; ++k) {
        const int head = first_head + k * a.spread;
        if (head >= a.heads) continue;
        float lower[kRun], upper[kRun];
#pragma unroll
        for (int j = 0; j < kRun; ++j) {
            float pair[2];
            a.rotation({low[k].get(j), high[k].get(j), cos.get(j), sin.get(j)}, pair);
            lower[j] = pair[0], upper[j] = pair[1];
        }
        const int64_t to = batch * a.out_batch + head * a.out_head + position * a.out_position + column;
        store_packed(a.out, to, a.add, lower);
        store_packed(a.out, to + half, a.add, upper);
    }
}

// The first element, if whole runs lie along the last axis from there in every row.
Elements runs_of(const TensorView& view) {
    const int last = view.rank() - 1;
    Elements first{view.base + view.layout.offset * size_of(view.dtype), view.dtype, false};
    first.packed = view.stride(last) == 1 && is_pack_aligned(first.base);
    for (int axis = 0; axis < last; ++axis)
        first.packed = first.packed && (view.size(axis) == 1 || view.stride(axis) % kRun == 0);
    return first;
}

bool rotate_heads(const TensorView& x, const TensorView& cos, const TensorView& sin, const TensorView& positions,
                  float direction, const GradSlot& out, Stream stream) {
    const int64_t runs = x.size(3) / (2 * kRun), spread = ceil_div(x.size(1), kHeads);
    const int64_t items = runs * spread * x.size(0) * x.size(2);
    HeadArgs a{.x = runs_of(x), .out = runs_of(out.view), .add = out.accumulate()};
    const Elements tables[2] = {runs_of(cos), runs_of(sin)};
    if (x.size(3) % (2 * kRun) != 0 || items > (int64_t{1} << 31) - kThreads || cos.stride(0) != sin.stride(0))
        return false;
    if (!a.x.packed || !a.out.packed || !tables[0].packed || !tables[1].packed) return false;
    if (cos.dtype != DType::f32 || sin.dtype != DType::f32) return false;
    a.cos = reinterpret_cast<const float*>(tables[0].base), a.sin = reinterpret_cast<const float*>(tables[1].base);
    a.x_batch = x.stride(0), a.x_head = x.stride(1), a.x_position = x.stride(2);
    a.out_batch = out.view.stride(0), a.out_head = out.view.stride(1), a.out_position = out.view.stride(2);
    a.table_position = cos.stride(0), a.sequences = device_data<const int64_t>(positions);
    a.rows = static_cast<int>(cos.size(0));
    a.heads = static_cast<int>(x.size(1)), a.positions = static_cast<int>(x.size(2));
    a.runs = static_cast<int>(runs), a.spread = static_cast<int>(spread), a.items = static_cast<int>(items);
    a.rotation = {direction};
    const bool early = hopper_applies({});  // beside the end of the product that x comes from
    const cudaStream_t queue = cuda::handle_of(stream);
    dispatch_cuda(x.dtype, "rope", [&](auto type) {
        dispatch_bool(static_cast<bool>(positions), [&](auto sequences) {
            using T = typename decltype(type)::type;
            launch_early(head_kernel<T, sequences()>,
                         {.blocks = ceil_div(items, kThreads), .threads = kThreads, .early = early}, queue, a);
        });
    });
    LC_LAUNCHED("rope", queue);
    return true;
}

TensorView columns_of(TensorView view, int64_t first, int64_t count) {
    if (view) view.layout = view.layout.slice(3, first, count);
    return view;
}

// to [B,T,D/2] from the rows of a table that each sequence wants.
__global__ void gather_kernel(Operand table, const int64_t* positions, int64_t rows, int64_t length, int64_t half,
                              int64_t count, float* to) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (i >= count) return;
    const int64_t row = start_row(positions[i / half / length], length, rows) + i / half % length;
    to[i] = table.load(row * half + i % half);
}

// A table's rows for each sequence, in f32.
class GatheredTable {
  public:
    GatheredTable(const TensorView& table, const TensorView& positions, int64_t length, Stream stream)
        : rows_(positions.size(0) * length * table.size(1), stream) {
        const int64_t half = table.size(1), count = positions.size(0) * length * half;
        gather_kernel<<<grid_x(ceil_div(count, kThreads)), kThreads, 0, cuda::handle_of(stream)>>>(
            Operand(table), device_data<const int64_t>(positions), table.size(0), length, half, count, rows_.data());
        LC_LAUNCHED("rope", cuda::handle_of(stream));
        view_ = {reinterpret_cast<std::byte*>(rows_.data()), Layout::contiguous({positions.size(0), 1, length, half}),
                 DType::f32, stream.device};
    }
    const TensorView& view() const { return view_; }

  private:
    DeviceScratch<float> rows_;
    TensorView view_;
};

void rotate(TensorView x, TensorView cos, TensorView sin, int64_t first, const TensorView& positions, float direction,
            GradSlot out, Stream stream) {
    if (x.numel() == 0) return;
    const int64_t half = cos.size(1), rest = x.size(3) - 2 * half;
    if (rest > 0) {
        elementwise<1, 1>("rope", Identity{}, {columns_of(x, 2 * half, rest)},
                          {{{columns_of(out.view, 2 * half, rest), out.mode}}}, stream);
        x = columns_of(x, 0, 2 * half), out.view = columns_of(out.view, 0, 2 * half);
    }
    if (!positions)
        for (TensorView* table : {&cos, &sin}) table->layout = table->layout.slice(0, first, x.size(2));
    if (rotate_heads(x, cos, sin, positions, direction, out, stream)) return;
    const TensorView low = columns_of(x, 0, half), high = columns_of(x, half, half);
    std::optional<GatheredTable> gathered[2];
    if (positions) {
        cos = gathered[0].emplace(cos, positions, x.size(2), stream).view();
        sin = gathered[1].emplace(sin, positions, x.size(2), stream).view();
    }
    for (TensorView* table : {&cos, &sin}) table->layout = table->layout.expand(low.shape());
    elementwise<4, 2>("rope", Rotation{direction}, {low, high, cos, sin},
                      {{{columns_of(out.view, 0, half), out.mode}, {columns_of(out.view, half, half), out.mode}}},
                      stream);
}

}  // namespace

void rope_forward_cuda(const RopeForward& args, Stream stream) {
    rotate(args.x, args.cos, args.sin, args.first, args.positions, 1.0f, {args.y}, stream);
}

void rope_backward_cuda(const RopeBackward& args, Stream stream) {
    rotate(args.dy, args.cos, args.sin, args.first, args.positions, -1.0f, args.dx, stream);
}

}  // namespace lc::kernels
