// What the GPU's dense forms of a decode step have in common: their arguments, and how threads share rows.
#pragma once
#include "kernels/common/cuda/early.cuh"
#include "kernels/common/cuda/pack.cuh"
#include "kernels/common/cuda/reduce.cuh"
#include "kernels/feature_map/feature_map.h"
#include "kernels/hybrid_decode/hybrid_decode.h"

namespace lc::kernels {

inline constexpr int kMostFeatures = 256;

// A map's weights, f32 or bf16.
struct Weights {
    const void* data;
    bool narrow;
    __device__ __forceinline__ float load(int64_t i) const {
        return narrow ? to_float(static_cast<const __nv_bfloat16*>(data)[i]) : static_cast<const float*>(data)[i];
    }
};

// T: activations; U: states, float or bf16.
template <class T, class U>
struct Args {
    const T *q, *k, *v;  // [B,H,1,D], [B,H_kv,1,D]
    T *ring_k, *ring_v;  // [B,H_kv,R,D] or null
    T* y;                // [B,H,1,D]
    Weights wq, wk;      // [H,D,F], [Hs,D,F]
    const float* mix_logit;
    U *s, *z;                                        // [B,Hs,F',D], [B,Hs,F']
    int64_t q_b, q_h, k_b, k_h, v_b, v_h, y_b, y_h;  // strides
    const int64_t* positions;
    int64_t slots;
    int heads, kv_heads, states, f, features;
    LinearizedSpec spec;
};

// A lane's share of a row of D numbers.
template <class T, int D>
struct alignas(sizeof(T) * (D / kWarp)) Run {
    static constexpr int kSize = D / kWarp;
    T values[kSize];
    __device__ __forceinline__ float get(int i) const { return to_float(values[i]); }
};
template <int D, class T>
__device__ __forceinline__ Run<T, D> load_run_of(const T* row) {
    return reinterpret_cast<const Run<T, D>*>(row)[threadIdx.x % kWarp];
}

// Four neighbours of a row of S, in f32.
__device__ __forceinline__ float4 load_four(const float* from) {
    return *reinterpret_cast<const float4*>(from);
}
__device__ __forceinline__ void store_four(float* to, float4 four) {
    *reinterpret_cast<float4*>(to) = four;
}
struct alignas(8) FourNarrow {
    __nv_bfloat16 x, y, z, w;
};
__device__ __forceinline__ float4 load_four(const __nv_bfloat16* from) {
    const FourNarrow four = *reinterpret_cast<const FourNarrow*>(from);
    return {to_float(four.x), to_float(four.y), to_float(four.z), to_float(four.w)};
}
__device__ __forceinline__ void store_four(__nv_bfloat16* to, float4 four) {
    using B = __nv_bfloat16;
    *reinterpret_cast<FourNarrow*>(to) = {from_float<B>(four.x), from_float<B>(four.y), from_float<B>(four.z),
                                          from_float<B>(four.w)};
}

// The case that models run: w, ring slots, F, F'.
inline constexpr int kStepWindow = 64, kStepSlots = 2 * kStepWindow, kStepMap = 64, kStepFeatures = 2 * kStepMap;

template <class... Parameters>
void launch(bool early, void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared_bytes,
            cudaStream_t queue, const Parameters&... arguments) {
    launch_early(kernel, {.blocks = blocks, .threads = threads, .shared_bytes = shared_bytes, .early = early}, queue,
                 arguments...);
    LC_LAUNCHED("hybrid_decode", queue);
}

inline int64_t multiprocessors_of(Device device) {
    int count = 0;
    LC_CUDA(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device.index));
    return count;
}

// phi of a row of which lane l has u_l and u_{l+32}: values[k] is phi_{l + 32 k}.
struct StepFeatures {
    float values[4];
    __device__ __forceinline__ StepFeatures(float u, float v) {
        const float high = warp_max(fmaxf(u, v)), low = -warp_max(-fminf(u, v));
        values[0] = expf(u - high), values[1] = expf(v - high), values[2] = expf(low - u), values[3] = expf(low - v);
        const float p = 1 / warp_sum(values[0] + values[1]), n = 1 / warp_sum(values[2] + values[3]);
#pragma unroll
        for (int k = 0; k < 4; ++k) values[k] = fmaxf(values[k] * (k < 2 ? p : n), static_cast<float>(kFeatureEpsilon));
    }
};

inline bool rows_are_packed(const TensorView& x) {  // [B,H,1,D]
    const int64_t unit = 16 / size_of(x.dtype);
    return x.stride(3) == 1 && x.stride(0) % unit == 0 && x.stride(1) % unit == 0 && x.layout.offset % unit == 0;
}

inline bool is_packed(const TensorView& x) {
    return x.layout.is_contiguous() && x.layout.offset * size_of(x.dtype) % 16 == 0;
}
// Is it the case that models run: bf16, heads of 64 or 128, Hedgehog maps with F = 64, terraced windows with w = 64? Then everything
// is dense and on 16 bytes.
inline bool is_model_step(const HybridDecode& a) {
    const LinearizedSpec& spec = a.spec;
    const int64_t d = a.q.size(3);
    if (a.q.dtype != DType::bf16 || (d != 64 && d != 128) || a.wq.size(2) != kStepMap || a.bq || a.bk) return false;
    if (spec.window != WindowKind::terraced || spec.window_size != kStepWindow || spec.skip || spec.affine ||
        spec.window_only || spec.activation != FeatureActivation::softmax_dim)
        return false;
    if (a.mix_logit.dtype != DType::f32 || !a.mix_logit.layout.is_contiguous()) return false;
    for (const TensorView* view : {&a.wq, &a.wk, &a.s, &a.z, &a.ring_k, &a.ring_v})
        if (!is_packed(*view)) return false;
    return rows_are_packed(a.q) && rows_are_packed(a.k) && rows_are_packed(a.v) && rows_are_packed(a.y);
}

template <class T, class U>
Args<T, U> args_of(const HybridDecode& a) {
    const auto weights = [](const TensorView& w) {
        return Weights{w.base + w.layout.offset * size_of(w.dtype), w.dtype == DType::bf16};
    };
    return {.q = device_data<T>(a.q),
            .k = device_data<T>(a.k),
            .v = device_data<T>(a.v),
            .ring_k = device_data<T>(a.ring_k),
            .ring_v = device_data<T>(a.ring_v),
            .y = device_data<T>(a.y),
            .wq = weights(a.wq),
            .wk = weights(a.wk),
            .mix_logit = device_data<float>(a.mix_logit),
            .s = device_data<U>(a.s),
            .z = device_data<U>(a.z),
            .q_b = a.q.stride(0),
            .q_h = a.q.stride(1),
            .k_b = a.k.stride(0),
            .k_h = a.k.stride(1),
            .v_b = a.v.stride(0),
            .v_h = a.v.stride(1),
            .y_b = a.y.stride(0),
            .y_h = a.y.stride(1),
            .positions = device_data<const int64_t>(a.positions),
            .slots = a.ring_k ? a.ring_k.size(2) : 1,
            .heads = static_cast<int>(a.q.size(1)),
            .kv_heads = static_cast<int>(a.k.size(1)),
            .states = static_cast<int>(a.s.size(1)),
            .f = static_cast<int>(a.wq.size(2)),
            .features = static_cast<int>(a.s.size(2)),
            .spec = a.spec};
}

}  // namespace lc::kernels
