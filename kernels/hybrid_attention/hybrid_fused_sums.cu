// The ends of the fused gradients: what one thread block has a part of is added up in a fixed order.
//
// MATHS    dW[map] = sum over batch entries, the map's heads and their segments; da_h = (1-gamma) sum over batch entries and
//          segments; dk, dv of a KV head = sum over the parts of its query heads.
// TILING   one thread an element of dW or da; one thread eight elements of dk or dv, both by one launch.
// COST     reads each part once: 4 D F bytes an item and segment, 4 D bytes a row and query head of dk and dv together.
// NUMERICS f32 sums (da: f64) in order of batch, head, segment. A head's share of dk and dv is rounded to bf16 on the way: the
//          sum of r shares then carries r roundings of 2^-9 of a share, where bf16 gradients carry one of their sum anyway.
// LADDER   1 dk and dv of each query head (H200, 8x1024 tokens, 32 heads of 128, 8 KV heads: 25 us each).
//          2 (not kept) a cluster for the heads of a group, which add by the copy engine in turn, each told by the one before that its
//            stores are finished: 15x1024, whole backward 903 to 859; 943 if told once a block for dk and dv together. Of 132 SMs
//            clusters of four reach 120: with 256 thread blocks that is a third wave.
//          3 this: heads that one thread block walks one after the other are added up by it (hybrid_fused_backward_keys_sm90.cu), which
//            needs no turns: 18 us each for the two that are left.
//          4 both by one launch, without 64-bit divisions, 16 bytes a store, what was written last first: 36 to 26 us for both (predicted:
//            24, what memory takes for 100 MB less what the cache still holds).
// SOURCE   derived here.
#include "kernels/hybrid_attention/hybrid_fused_sums.cuh"

namespace lc::kernels {
namespace {

constexpr int kThreads = 256;

// `shares`: of one batch entry, those of a map one after the other. Some are loaded at once, and added in their order.
__global__ void map_sum_kernel(const float* parts, int batch, int shares, int maps, int size, Operand out) {
    const int i = static_cast<int>(blockIdx.x * kThreads + threadIdx.x), map = blockIdx.y;
    if (i >= size) return;
    constexpr int kAtOnce = 8;
    const int members = shares / maps, count = batch * members;
    const float* from = parts + static_cast<int64_t>(map) * members * size + i;
    float sum = 0;
    for (int first = 0; first < count; first += kAtOnce) {
        float x[kAtOnce];
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k) {
            const int n = first + k;
            x[k] = n < count ? from[(static_cast<int64_t>(n / members) * shares + n % members) * size] : 0;
        }
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k) sum += x[k];
    }
    out.put(static_cast<int64_t>(map) * size + i, sum);
}

__global__ void mix_sum_kernel(const double* parts, int64_t batch, int heads, int segments, Operand mix_logit,
                               LinearizedSpec spec, Operand out) {
    const int h = static_cast<int>(blockIdx.x) * kThreads + threadIdx.x;
    if (h >= heads) return;
    double sum = 0;
    for (int64_t b = 0; b < batch; ++b)
        for (int i = 0; i < segments; ++i) sum += parts[(b * heads + h) * segments + i];
    out.put(h, static_cast<float>(DeviceMix(mix_logit, spec, h).dlogit * sum));
}

struct GroupSums {
    struct {
        const __nv_bfloat16* parts;
        PairRows out;
    } of[2];  // dk, dv
};

// Thread block = 64 rows of a KV head (x) of dk or dv (z). The walks ended with the first rows of all heads: what the cache still holds of
// them is read first.
__global__ void __launch_bounds__(kThreads)
    group_sum_kernel(const __grid_constant__ GroupSums sums, int length, int blocks, int kv_heads, int group, int d) {
    const auto& sum = sums.of[blockIdx.z];
    if (!sum.out) return;
    const int head = static_cast<int>(blockIdx.x), first = static_cast<int>(blockIdx.y) * kFusedRows, chunks = d / 8;
    const int64_t next_part = int64_t{blocks} * kFusedRows * d;
    const __nv_bfloat16* from = sum.parts + head * (group * next_part) + int64_t{first} * d;
    const int b = head / kv_heads, h = head % kv_heads, here = min(kFusedRows, length - first) * chunks;
#pragma unroll 2
    for (int i = static_cast<int>(threadIdx.x); i < here; i += kThreads) {
        float x[8] = {};
#pragma unroll 4
        for (int j = 0; j < group; ++j) {
            const auto part = load_pack(from + j * next_part + 8 * i);
#pragma unroll
            for (int e = 0; e < 8; ++e) x[e] += part.get(e);
        }
        sum.out.put(b, h, first + i / chunks, i % chunks * 8, x);
    }
}

}  // namespace

FusedRowScratch::FusedRowScratch(const FusedShape& shape, int64_t d, Stream stream, bool has_dn)
    : rows_(shape.items * shape.blocks * kFusedRows), numbers_(4 * rows_, stream) {
    if (has_dn) dn_ = {rows_ * d, stream};
}

void store_map_gradient(const float* parts, const FusedShape& s, int64_t maps, int64_t d, const GradSlot& slot,
                        Stream stream) {
    if (!slot) return;
    const int size = static_cast<int>(d) * kFusedMap;
    const dim3 grid(grid_x(ceil_div(size, kThreads)), static_cast<unsigned>(maps));
    map_sum_kernel<<<grid, kThreads, 0, cuda::handle_of(stream)>>>(
        parts, static_cast<int>(s.items / s.heads), s.heads * s.segments, static_cast<int>(maps), size, Operand(slot));
    LC_LAUNCHED("hybrid_attention", cuda::handle_of(stream));
}

void store_mix_gradient(const double* parts, const FusedInputs& in, const GradSlot& slot, Stream stream) {
    if (!slot) return;
    const FusedShape& s = in.shape;
    mix_sum_kernel<<<grid_x(ceil_div(s.heads, kThreads)), kThreads, 0, cuda::handle_of(stream)>>>(
        parts, s.items / s.heads, s.heads, s.segments, in.mix_logit, in.spec, Operand(slot));
    LC_LAUNCHED("hybrid_attention", cuda::handle_of(stream));
}

void store_group_sums(const GroupParts& dk, const GroupParts& dv, const FusedShape& s, int64_t heads, int64_t d,
                      Stream stream) {
    if (!dk.parts && !dv.parts) return;
    GroupSums sums{};
    if (dk.parts) sums.of[0] = {dk.parts, PairRows(dk.slot)};
    if (dv.parts) sums.of[1] = {dv.parts, PairRows(dv.slot)};
    const int64_t batch = s.items / s.heads;
    const dim3 grid(grid_x(batch * s.kv_heads), static_cast<unsigned>(s.blocks), 2);
    group_sum_kernel<<<grid, kThreads, 0, cuda::handle_of(stream)>>>(
        sums, s.length, s.blocks, s.kv_heads, static_cast<int>(heads / s.kv_heads), static_cast<int>(d));
    LC_LAUNCHED("hybrid_attention", cuda::handle_of(stream));
}

}  // namespace lc::kernels
