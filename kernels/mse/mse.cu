// Mean squared error on the GPU.
//
// MATHS    mse.h.
// TILING   sum.cuh. The backward makes both gradients in one pass: gap-free tensors of one order two runs a thread, all loads under
//          way at once; others by elementwise.cuh, the loss's gradient a broadcast input.
// COST     forward 8 bytes an element in f32, 4 in bf16; backward 8 (4) and each wanted gradient once.
// NUMERICS differences, squares and sums in f64, rounded once to the f32 loss.
// LADDER   1 a run at a time, each load awaited before the next one starts: bound by latency.
//          2 two runs of each tensor under way: meant for 0.85 of a copy.
// SOURCE   derived here.
#include "kernels/common/cuda/elementwise.cuh"
#include "kernels/common/cuda/operand.cuh"
#include "kernels/common/cuda/sum.cuh"
#include "kernels/mse/mse.h"

namespace lc::kernels {
namespace {

struct SquaredDifference {
    __device__ double operator()(const float (&in)[2]) const {
        const double difference = static_cast<double>(in[0]) - static_cast<double>(in[1]);
        return difference * difference;
    }
};

struct MseGradient {
    float factor;  // 2 / n
    __device__ void operator()(const float (&in)[3], float (&out)[2]) const {
        const auto [y, target, dloss] = in;
        out[0] = factor * dloss * (y - target);
        out[1] = -out[0];
    }
};

constexpr int kThreads = 256, kRuns = 2;

struct FlatArgs {
    Walk<4> walk;  // y, target, dy, dtarget
    AddsUp<2> adds;
    Operand dloss;
    MseGradient gradient;
};

template <class T>
__global__ void __launch_bounds__(kThreads) flat_gradient_kernel(const __grid_constant__ FlatArgs a) {
    const int64_t first = (static_cast<int64_t>(blockIdx.x) * kRuns * kThreads + threadIdx.x) * kRun;
    RunBits<T> in[kRuns][2];
#pragma unroll
    for (int r = 0; r < kRuns; ++r)
#pragma unroll
        for (int n = 0; n < 2; ++n) {
            const int64_t i = first + r * kThreads * kRun;
            if (i + kRun <= a.walk.numel)
                in[r][n] = RunBits<T>::load(reinterpret_cast<const T*>(a.walk.at[n].base) + i);
        }
    const float dloss = a.dloss.load(0);
#pragma unroll
    for (int r = 0; r < kRuns; ++r) {
        const int64_t i = first + r * kThreads * kRun;
        if (i >= a.walk.numel) return;
        const int count = static_cast<int>(min(int64_t{kRun}, a.walk.numel - i));
        float y[kRun], target[kRun], out[2][kRun];
        if (count == kRun) {
#pragma unroll
            for (int j = 0; j < kRun; ++j) y[j] = in[r][0].get(j), target[j] = in[r][1].get(j);
        } else {
            load_run(a.walk.at[0], i, count, y), load_run(a.walk.at[1], i, count, target);
        }
#pragma unroll
        for (int j = 0; j < kRun; ++j) {
            float gradients[2];
            a.gradient({y[j], target[j], dloss}, gradients);
            out[0][j] = gradients[0], out[1][j] = gradients[1];
        }
#pragma unroll
        for (int m = 0; m < 2; ++m)
            if (a.walk.at[2 + m]) store_run(a.walk.at[2 + m], i, count, a.adds.values[m], out[m]);
    }
}

// False where the tensors are not gap-free in one order, aligned and of one dtype.
bool flat_backward(const MseBackward& args, const MseGradient& gradient, Stream stream) {
    const std::array<TensorView, 4> views{args.y, args.target, args.dy.view, args.dtarget.view};
    const FlatArgs a{
        Walk<4>(views, false), {args.dy.accumulate(), args.dtarget.accumulate()}, Operand(args.dloss), gradient};
    if (!a.walk.in_runs || a.walk.rank != 1 || args.y.dtype != args.target.dtype) return false;
    for (int v = 0; v < 4; ++v)
        if (views[v] && a.walk.strides[v][0] != 1) return false;
    const int64_t blocks = ceil_div(a.walk.numel, int64_t{kThreads} * kRuns * kRun);
    if (blocks != grid_x(blocks)) return false;
    const cudaStream_t queue = cuda::handle_of(stream);
    dispatch_cuda(args.y.dtype, "mse", [&](auto type) {
        flat_gradient_kernel<typename decltype(type)::type><<<grid_x(blocks), kThreads, 0, queue>>>(a);
    });
    LC_LAUNCHED("mse", queue);
    return true;
}

}  // namespace

void mse_forward_cuda(const MseForward& args, Stream stream) {
    const int64_t n = args.y.numel(), count = sum_parts(n);
    const DeviceScratch<double> parts(count, stream);
    sum_terms<2>("mse", SquaredDifference{}, {args.y, args.target}, parts.data(), stream);
    sum_total(parts.data(), count, 1.0 / static_cast<double>(n), args.loss, stream);
}

void mse_backward_cuda(const MseBackward& args, Stream stream) {
    if (!args.dy && !args.dtarget) return;
    const MseGradient gradient{static_cast<float>(2.0 / static_cast<double>(args.y.numel()))};
    if (flat_backward(args, gradient, stream)) return;
    elementwise<3, 2>("mse", gradient, {args.y, args.target, broadcast(args.dloss, args.y.shape())},
                      {args.dy, args.dtarget}, stream);
}

}  // namespace lc::kernels
