// Weights in eight bits on the GPU: one block a row.
//
// MATHS    weight_code.h; the rule for one number is weight_code_naive.h's.
// TILING   encode: a block reads its row twice, for the largest magnitude and for the codes, the second time from L2; decode: once.
//          A thread has 8 consecutive numbers, or 1 where rows are not aligned.
// COST     encode 2 + 1 bytes a number of bf16, once when a model is read, and for rows that meet coded weights as codes each time; decode 1 + 2: where many rows multiply a coded matrix.
// NUMERICS f32; a maximum has no order. A decoded weight is rounded once.
// LADDER   1 this.
// SOURCE   arXiv 2209.05433 (the format).
#include "kernels/common/cuda/reduce.cuh"
#include "kernels/common/cuda/run.cuh"
#include "kernels/weight_code/weight_code_naive.h"

namespace lc::kernels {
namespace {

constexpr int kThreads = 256;

struct Args {
    Elements w;
    uint8_t* codes;
    float* scale;
    int64_t rows, columns, stride;
    WeightCode code;
    bool by_runs;  // else number by number
};

template <class Matrix>
Args args_of(const Matrix& w, const TensorView& codes, const TensorView& scale, WeightCode code) {
    Args a{.w = {static_cast<std::byte*>(const_cast<void*>(static_cast<const void*>(w.data))), w.dtype, true},
           .codes = device_data<uint8_t>(codes),
           .scale = device_data<float>(scale),
           .rows = w.rows,
           .columns = w.columns,
           .stride = w.stride,
           .code = code,
           .by_runs = false};
    a.by_runs = a.columns % kRun == 0 && a.stride % kRun == 0 && reinterpret_cast<uintptr_t>(w.data) % 16 == 0 &&
                reinterpret_cast<uintptr_t>(a.codes) % 8 == 0;
    return a;
}

// f(first column, values) of this thread's runs of a row; a run of the slow form is one number.
template <class F>
__device__ void for_each_run(const Args& a, int64_t row, F&& f) {
    if (a.by_runs) {
        for (int64_t i = threadIdx.x * kRun; i < a.columns; i += kThreads * kRun) {
            float values[kRun];
            load_packed(a.w, row * a.stride + i, values);
            f(i, values, std::integral_constant<int, kRun>{});
        }
    } else {
        for (int64_t i = threadIdx.x; i < a.columns; i += kThreads) {
            float values[1] = {a.w.load(row * a.stride + i)};
            f(i, values, std::integral_constant<int, 1>{});
        }
    }
}

__device__ float largest_of_block(float most) {
    __shared__ float parts[kThreads / kWarp];
    for (int step = kWarp / 2; step > 0; step /= 2)
        most = larger_magnitude(most, __shfl_xor_sync(0xffffffffu, most, step));
    __syncthreads();
    if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = most;
    __syncthreads();
    for (const float part : parts) most = larger_magnitude(most, part);
    return most;
}

__global__ void __launch_bounds__(kThreads) encode_kernel(const __grid_constant__ Args a) {
    for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
        float most = 0;
        for_each_run(a, row, [&](int64_t, const auto& values, auto) {
            for (const float value : values) most = larger_magnitude(most, value);
        });
        const float scale = largest_of_block(most) / most_of(a.code);
        if (threadIdx.x == 0) a.scale[row] = scale;
        for_each_run(a, row, [&](int64_t first, const auto& values, auto count) {
            alignas(8) uint8_t codes[count];
            for (int j = 0; j < count; ++j) codes[j] = encode_weight(values[j], scale, a.code);
            uint8_t* to = a.codes + row * a.columns + first;
            if constexpr (count == kRun)
                *reinterpret_cast<uint2*>(to) = *reinterpret_cast<const uint2*>(codes);
            else
                *to = codes[0];
        });
    }
}

__global__ void __launch_bounds__(kThreads) decode_kernel(const __grid_constant__ Args a) {
    for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
        const float scale = a.scale[row];
        const uint8_t* codes = a.codes + row * a.columns;
        if (a.by_runs) {
            for (int64_t i = threadIdx.x * kRun; i < a.columns; i += kThreads * kRun) {
                const uint2 bits = *reinterpret_cast<const uint2*>(codes + i);
                float values[kRun];
#pragma unroll
                for (int j = 0; j < kRun; ++j)
                    values[j] =
                        scale * code_value(static_cast<uint8_t>((j < 4 ? bits.x : bits.y) >> j % 4 * 8), a.code);
                store_packed(a.w, row * a.stride + i, false, values);
            }
        } else {
            for (int64_t i = threadIdx.x; i < a.columns; i += kThreads)
                a.w.store(row * a.stride + i, scale * code_value(codes[i], a.code));
        }
    }
}

}  // namespace

void encode_weights_cuda(const EncodeWeights& args, Stream stream) {
    if (args.w.numel() == 0) return;
    const DeviceRows w(args.w, args.w.dtype);
    const Args a = args_of(w, args.codes, args.scale, args.code);
    encode_kernel<<<grid_x(a.rows), kThreads, 0, cuda::handle_of(stream)>>>(a);
    LC_LAUNCHED("encode_weights", cuda::handle_of(stream));
}

void decode_weights_cuda(const DecodeWeights& args, Stream stream) {
    if (args.w.numel() == 0) return;
    const DeviceOutRows w(args.w);
    const Args a = args_of(w, args.codes, args.scale, args.code);
    decode_kernel<<<grid_x(a.rows), kThreads, 0, cuda::handle_of(stream)>>>(a);
    LC_LAUNCHED("decode_weights", cuda::handle_of(stream));
    w.finish();
}

}  // namespace lc::kernels
