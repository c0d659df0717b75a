// Rotary embedding on the GPU.
//
// MATHS    rope.h.
// TILING   a thread has one run of eight pairs (eight elements of the lower half of a row, eight of the upper half) of four heads of one
//          position, and loads the tables' runs for all four once. The four heads lie a quarter of all heads apart, so that the
//          threads of a warp are neighbours: in [B,T,H,D] storage a block reads and writes whole tokens.
//
//            warp, D = 128    8 runs x 4 heads: 128 bytes of each half of heads h .. h+3, then of h + H/4 .. h + H/4 + 3, ...
//
//          Rows that are no whole runs, or tables in another dtype than f32: elementwise.cuh over [B,H,T,D/2].
// COST     8 bytes an element in f32, 4 in bf16; the tables stay in L2, and what a thread reads of them is half of what it reads of x.
// NUMERICS f32, rounded once. The tables are f32 beside bf16 activations: a bf16 angle is off by up to 2^-9 of a turn's cosine.
// LADDER   1 elementwise.cuh: every run of pairs loads its tables, 64 bytes beside 32 of x in bf16, and waits for each load in turn.
//          2 four heads a thread, all loads under way at once: meant for 0.85 of a copy, 0.91 on an H100 (version 1: 0.69).
// SOURCE   arXiv 2104.09864.
#include "kernels/common/cuda/elementwise.cuh"
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
    const float *cos, *sin;  // the row of position 0
    int64_t x_batch, x_head, x_position, out_batch, out_head, out_position, table_position;
    int heads, positions, runs, spread;  // runs in half a row; heads from one of a thread's to the next
    int items;
    Rotation rotation;
};

template <class T>
__global__ void __launch_bounds__(kThreads) head_kernel(const __grid_constant__ HeadArgs a) {
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
    const auto cos = RunBits<float>::load(a.cos + position * a.table_position + column);
    const auto sin = RunBits<float>::load(a.sin + position * a.table_position + column);
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

bool rotate_heads(const TensorView& x, const TensorView& cos, const TensorView& sin, float direction,
                  const GradSlot& out, Stream stream) {
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
    a.table_position = cos.stride(0);
    a.heads = static_cast<int>(x.size(1)), a.positions = static_cast<int>(x.size(2));
    a.runs = static_cast<int>(runs), a.spread = static_cast<int>(spread), a.items = static_cast<int>(items);
    a.rotation = {direction};
    if (items == 0) return true;
    const cudaStream_t queue = cuda::handle_of(stream);
    dispatch_cuda(x.dtype, "rope", [&](auto type) {
        head_kernel<typename decltype(type)::type><<<grid_x(ceil_div(items, kThreads)), kThreads, 0, queue>>>(a);
    });
    LC_LAUNCHED("rope", queue);
    return true;
}

TensorView half_of(TensorView view, int which) {
    if (!view) return view;
    const int64_t half = view.size(3) / 2;
    view.layout = view.layout.slice(3, which * half, half);
    return view;
}

void rotate(const TensorView& x, TensorView cos, TensorView sin, int64_t first, float direction, const GradSlot& out,
            Stream stream) {
    for (TensorView* table : {&cos, &sin}) table->layout = table->layout.slice(0, first, x.size(2));
    if (rotate_heads(x, cos, sin, direction, out, stream)) return;
    const TensorView low = half_of(x, 0), high = half_of(x, 1);
    for (TensorView* table : {&cos, &sin}) table->layout = table->layout.expand(low.shape());
    elementwise<4, 2>("rope", Rotation{direction}, {low, high, cos, sin},
                      {{{half_of(out.view, 0), out.mode}, {half_of(out.view, 1), out.mode}}}, stream);
}

}  // namespace

void rope_forward_cuda(const RopeForward& args, Stream stream) {
    rotate(args.x, args.cos, args.sin, args.first, 1.0f, {args.y}, stream);
}

void rope_backward_cuda(const RopeBackward& args, Stream stream) {
    rotate(args.dy, args.cos, args.sin, args.first, -1.0f, args.dx, stream);
}

}  // namespace lc::kernels
