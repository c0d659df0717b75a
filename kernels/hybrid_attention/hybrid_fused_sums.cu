// The ends of the fused gradients: what one thread block has a part of is added up in a fixed order.
//
// MATHS    dW[map] = sum over batch entries, the map's heads and their segments; da_h = (1-gamma) sum over batch entries and
//          segments; dk, dv of a KV head = sum over its query heads.
// TILING   one thread an element of dW or da; one thread eight elements of dk or dv.
// COST     reads each part once: 4 D F bytes an item and segment, 4 D bytes a row and query head of dk and dv together.
// NUMERICS f32 sums (da: f64) in order of batch, head, segment. A head's share of dk and dv is rounded to bf16 on the way: the
//          sum of r shares then carries r roundings of 2^-9 of a share, where bf16 gradients carry one of their sum anyway.
// LADDER   1 this. A thread block cluster for the heads of a group would add dk and dv up before they leave the chip.
// SOURCE   derived here.
#include "kernels/hybrid_attention/hybrid_fused_sums.cuh"

namespace lc::kernels {
namespace {

constexpr int kThreads = 256;

// `shares`: of one batch entry, those of a map one after the other.
__global__ void map_sum_kernel(const float* parts, int64_t batch, int64_t shares, int64_t maps, int64_t size,
                               Operand out) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (i >= maps * size) return;
    const int64_t map = i / size, members = shares / maps;
    float sum = 0;
    for (int64_t b = 0; b < batch; ++b)
        for (int64_t j = 0; j < members; ++j) sum += parts[(b * shares + map * members + j) * size + i % size];
    out.put(i, sum);
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

__global__ void group_sum_kernel(const __nv_bfloat16* parts, FusedShape s, int64_t batch, int d, PairRows out) {
    const int chunks = d / 8, group = s.heads / s.kv_heads;
    const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (i >= batch * s.kv_heads * s.length * chunks) return;
    const int column = static_cast<int>(i % chunks) * 8;
    const int64_t t = i / chunks % s.length, head = i / chunks / s.length, rows = int64_t{s.blocks} * kFusedRows;
    float sum[8] = {};
    for (int j = 0; j < group; ++j) {
        const auto part = load_pack(parts + ((head * group + j) * rows + t) * d + column);
#pragma unroll
        for (int e = 0; e < 8; ++e) sum[e] += part.get(e);
    }
#pragma unroll
    for (int e = 0; e < 8; e += 2)
        out.put(head / s.kv_heads, head % s.kv_heads, t, column + e, make_float2(sum[e], sum[e + 1]));
}

}  // namespace

FusedRowScratch::FusedRowScratch(const FusedShape& shape, int64_t d, Stream stream)
    : rows_(shape.items * shape.blocks * kFusedRows), dn_(rows_ * d, stream), numbers_(3 * rows_, stream) {}

void store_map_gradient(const float* parts, const FusedShape& s, int64_t maps, int64_t d, const GradSlot& slot,
                        Stream stream) {
    if (!slot) return;
    const int64_t size = d * kFusedMap;
    map_sum_kernel<<<grid_x(ceil_div(maps * size, kThreads)), kThreads, 0, cuda::handle_of(stream)>>>(
        parts, s.items / s.heads, int64_t{s.heads} * s.segments, maps, size, Operand(slot));
    LC_LAUNCHED("hybrid_attention", cuda::handle_of(stream));
}

void store_mix_gradient(const double* parts, const FusedInputs& in, const GradSlot& slot, Stream stream) {
    if (!slot) return;
    const FusedShape& s = in.shape;
    mix_sum_kernel<<<grid_x(ceil_div(s.heads, kThreads)), kThreads, 0, cuda::handle_of(stream)>>>(
        parts, s.items / s.heads, s.heads, s.segments, in.mix_logit, in.spec, Operand(slot));
    LC_LAUNCHED("hybrid_attention", cuda::handle_of(stream));
}

void store_group_sum(const __nv_bfloat16* parts, const FusedShape& s, int64_t d, const GradSlot& slot, Stream stream) {
    if (!slot) return;
    const int64_t batch = s.items / s.heads, count = batch * s.kv_heads * s.length * d / 8;
    group_sum_kernel<<<grid_x(ceil_div(count, kThreads)), kThreads, 0, cuda::handle_of(stream)>>>(
        parts, s, batch, static_cast<int>(d), PairRows(slot));
    LC_LAUNCHED("hybrid_attention", cuda::handle_of(stream));
}

}  // namespace lc::kernels
