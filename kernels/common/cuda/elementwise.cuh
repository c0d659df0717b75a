// out_m (+)= f_m(in_0, ..., in_{N-1}) for each element: what add, mul, swiglu, rope and their backwards are on the GPU.
//
//   struct Product {                                             in f32, whatever the tensors hold
//       __device__ void operator()(const float (&in)[2], float (&out)[1]) const { out[0] = in[0] * in[1]; }
//   };
//   elementwise<2, 1>("mul", Product{}, {a, b}, {{c}}, stream);
//
// f may take a third argument, the element's row-major index. Empty slots are not written. An output may be an input's memory.
// F::Narrow, where F has it, stands in for f where every tensor is bf16: the same formula with less care for bits that bf16 drops.
//
// TILING   a thread takes eight consecutive elements of every tensor, so all loads of a thread are under way before the first
//          use; one element where layouts do not allow runs (walk.cuh). Gap-free bf16 tensors of one order, which most calls of
//          models have, take a kernel that knows it: twice eight elements a thread, no offsets, no dtypes to look at.
// COST     each tensor once: bound by memory, if f and what surrounds it stay under 70 instructions for 10 bytes (H200).
// LADDER   1 one kernel for all: SwiGLU's backward, 10 bytes an element, at 91 % of a copy on an H100 and 77 % on an H200, whose
//            memory is 1.4 times as fast: instructions bind.
//          2 the flat bf16 kernel, predicted 90 %: 99 % (forward 81 -> 99 %), GELU 94 and 99 %; two tensors to one, add, mul: 90 %.
#pragma once
#include <algorithm>
#include <functional>
#include <type_traits>

#include "kernels/common/cuda/launch.h"
#include "kernels/common/cuda/walk.cuh"
#include "kernels/common/grad_write.h"

namespace lc::kernels {

template <int N, int M, class F>
inline constexpr bool kTakesIndex = std::is_invocable_v<const F&, const float (&)[N], float (&)[M], int64_t>;

// Which outputs are added to what is there.
template <int M>
struct AddsUp {
    bool values[M] = {};
};

template <int N, int M>
struct FlatTensors {
    const __nv_bfloat16* in[N];
    __nv_bfloat16* out[M];  // null: absent
    int64_t numel;

    // Whether the walk is such: whole runs of bf16, of one axis that every tensor steps through one by one.
    __host__ static bool covers(const Walk<N + M>& walk) {
        bool flat = walk.rank == 1 && walk.in_runs && walk.numel % kRun == 0;
        for (int v = 0; v < N + M; ++v)
            flat = flat && (!walk.at[v] ? v >= N : walk.at[v].dtype == DType::bf16 && walk.strides[v][0] == 1);
        return flat;
    }
    explicit __host__ FlatTensors(const Walk<N + M>& walk) : numel(walk.numel) {
        for (int n = 0; n < N; ++n) in[n] = reinterpret_cast<const __nv_bfloat16*>(walk.at[n].base);
        for (int m = 0; m < M; ++m) out[m] = reinterpret_cast<__nv_bfloat16*>(walk.at[N + m].base);
    }
};

template <int N, int M, int Width, class F>
__global__ void elementwise_kernel(const __grid_constant__ Walk<N + M> walk, const __grid_constant__ AddsUp<M> adds,
                                   const __grid_constant__ F f) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x * Width;
    int64_t first = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * Width;
    for (; first < walk.numel; first += step) {
        const int count = static_cast<int>(min(static_cast<int64_t>(Width), walk.numel - first));
        int64_t place[N + M];
        walk.locate(first, place);
        float in[N][Width], out[M][Width];
#pragma unroll
        for (int n = 0; n < N; ++n) load_from<Width>(walk, n, place[n], count, in[n]);
#pragma unroll
        for (int j = 0; j < Width; ++j) {
            float x[N], y[M];
#pragma unroll
            for (int n = 0; n < N; ++n) x[n] = in[n][j];
            if constexpr (kTakesIndex<N, M, F>)
                f(x, y, first + j);
            else
                f(x, y);
#pragma unroll
            for (int m = 0; m < M; ++m) out[m][j] = y[m];
        }
#pragma unroll
        for (int m = 0; m < M; ++m) {
            const Elements& to = walk.at[N + m];
            if (!to) continue;
            if constexpr (Width == 1)
                to.store(place[N + m], adds.values[m] ? to.load(place[N + m]) + out[m][0] : out[m][0]);
            else
                store_run(to, place[N + m], count, adds.values[m], out[m]);
        }
    }
}

// Gap-free bf16 tensors: element i of each is kRun-aligned element i of the walk. Absent outputs are not written.
template <int N, int M, class F>
__global__ void __launch_bounds__(256)
    elementwise_flat_kernel(const __grid_constant__ FlatTensors<N, M> tensors, const __grid_constant__ F f) {
    constexpr int kRuns = 2;
    RunBits<__nv_bfloat16> in[kRuns][N];
    const int64_t first = (static_cast<int64_t>(blockIdx.x) * kRuns * blockDim.x + threadIdx.x) * kRun;
    const int64_t step = static_cast<int64_t>(blockDim.x) * kRun;
#pragma unroll
    for (int r = 0; r < kRuns; ++r)
#pragma unroll
        for (int n = 0; n < N; ++n)
            if (first + r * step < tensors.numel) in[r][n] = in[r][n].load(tensors.in[n] + first + r * step);
#pragma unroll
    for (int r = 0; r < kRuns; ++r) {
        if (first + r * step >= tensors.numel) return;
        RunBits<__nv_bfloat16> out[M];
#pragma unroll
        for (int j = 0; j < kRun; ++j) {
            float x[N], y[M];
#pragma unroll
            for (int n = 0; n < N; ++n) x[n] = in[r][n].get(j);
            f(x, y);
#pragma unroll
            for (int m = 0; m < M; ++m) out[m].set(j, y[m]);
        }
#pragma unroll
        for (int m = 0; m < M; ++m)
            if (tensors.out[m]) out[m].store(tensors.out[m] + first + r * step);
    }
}

template <class F>
auto narrow_form(const F& f) {
    if constexpr (requires { typename F::Narrow; })
        return typename F::Narrow{};
    else
        return f;
}

template <int N, int M, class F>
void elementwise(const char* op, const F& f, const std::array<TensorView, N>& inputs,
                 const std::array<GradSlot, M>& outputs, Stream stream) {
    std::array<TensorView, N + M> views;
    std::copy(inputs.begin(), inputs.end(), views.begin());
    AddsUp<M> adds;
    bool wanted = false;
    for (int m = 0; m < M; ++m) {
        views[N + m] = outputs[m].view;
        adds.values[m] = outputs[m].accumulate();
        wanted = wanted || outputs[m];
    }
    if (!wanted) return;
    const Walk<N + M> walk(views, kTakesIndex<N, M, F>);
    if (walk.numel == 0) return;
    constexpr int kThreads = 256;
    const cudaStream_t queue = cuda::handle_of(stream);
    if constexpr (!kTakesIndex<N, M, F>) {
        const bool adds_up = std::ranges::any_of(adds.values, std::identity{});
        if (!adds_up && FlatTensors<N, M>::covers(walk)) {
            const unsigned blocks = grid_x(ceil_div(walk.numel, int64_t{2} * kThreads * kRun));
            elementwise_flat_kernel<N, M><<<blocks, kThreads, 0, queue>>>(FlatTensors<N, M>(walk), narrow_form(f));
            return LC_LAUNCHED(op, queue);
        }
    }
    dispatch_bool(walk.in_runs, [&](auto in_runs) {
        constexpr int kWidth = in_runs() ? kRun : 1;
        const unsigned blocks = grid_x(ceil_div(walk.numel, int64_t{kThreads} * kWidth));
        elementwise_kernel<N, M, kWidth><<<blocks, kThreads, 0, queue>>>(walk, adds, f);
    });
    LC_LAUNCHED(op, queue);
}

// out (+)= in: a copy that converts, or an addition on top.
struct Identity {
    __device__ void operator()(const float (&in)[1], float (&out)[1]) const { out[0] = in[0]; }
};

// A view of one element as a tensor of any shape.
inline TensorView broadcast(TensorView scalar, const Shape& shape) {
    scalar.layout = Layout{.shape = {}, .strides = {}, .offset = scalar.layout.offset}.expand(shape);
    return scalar;
}

}  // namespace lc::kernels
