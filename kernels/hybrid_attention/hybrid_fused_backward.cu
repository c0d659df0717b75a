// Fused hybrid attention on tensor cores, backward: workspace and order of the kernels.
//
// MATHS    hybrid_attention.h.
// TILING   a walk over the rows, one over the keys (hybrid_fused_backward_rows.cu, .._keys.cu), then sums over batch and groups.
// COST     30 D^2 FLOPs a row and query head at D = 128, 6 D^2 more in segments. Workspace: 16 bytes a row and query head, 2 D more for dN,
//          4 D more where a group has several (less where a thread block adds some up); 4 D F bytes a map, item and segment; the
//          states that segments begin with (hybrid_fused_segments.cu).
// NUMERICS in the files of the kernels.
// LADDER   1 this.
//          2 on Hopper the walk over the keys in roles (hybrid_fused_backward_keys_sm90.cu). H200, 8x1024 tokens, 32 heads of 128, 8 KV
//            heads, us: 1,072 to 737, of which the rows 580 under the profiler and the sums over groups 50.
//          3 that over the rows too (hybrid_fused_backward_rows_sm90.cu): 403 to 238 of it.
//          4 neither waits for what it could have made or loaded before, dN stays on the chip, heads are added up where they are made:
//            477 to 409 (rows 191, keys 173, sums over groups 36); with gradients of maps 640 to 476, D = 64 356 to 312.
//          5 less waiting in either walk, sums over groups by one launch: 412 to 402 before the last of it; on an H100 434 to 424.
// SOURCE   arXiv 2410.10254.
#include "kernels/hybrid_attention/hybrid_fused_backward.cuh"

#include "kernels/common/cuda/hopper.h"
#include "kernels/hybrid_attention/hybrid_fused.h"
#include "kernels/hybrid_attention/hybrid_fused_key_gradient.cuh"
#include "kernels/hybrid_attention/hybrid_fused_segments.cuh"

namespace lc::kernels {

void hybrid_fused_backward(const HybridAttentionBackward& a, Stream stream) {
    FusedInputs in(a.forward);
    in.shape.segments = segments_of(in.shape, a.forward.q.device);
    const FusedShape& s = in.shape;
    const int64_t d = a.forward.q.size(3), map_size = d * kFusedMap;
    const bool has_keys = a.dk || a.dv || a.dwk;
    const bool rows_sm90 = fused_rows_sm90_applies(a);
    // A slot that the copy engine does not reach gets a sum of parts that it does, but where there is nothing to sum.
    const bool direct = fused_keys_sm90_applies(a.forward, {a.dk, a.dv}), grouped = s.heads != s.kv_heads;
    const bool keys_sm90 = rows_sm90 && fused_keys_sm90_applies(a.forward, {}) && (direct || grouped);
    const int together = keys_sm90 && direct ? fused_keys_sm90_heads_together(s) : 1, key_heads = s.heads / together;
    const KeyGradient dk(a.dk, s, d, key_heads, stream), dv(a.dv, s, d, key_heads, stream);
    const GradSlot dk_rows = dk.rows(s, d), dv_rows = dv.rows(s, d);
    const bool needs_dn = !rows_sm90 || (has_keys && (!keys_sm90 || s.segments > 1));
    const FusedRowScratch rows(s, d, stream, needs_dn);
    const SegmentStarts starts(in, d, stream);
    const DeviceScratch<double> da(s.parts(), stream);
    const auto map_parts = [&](const GradSlot& slot) {
        return slot ? DeviceScratch<float>(s.parts() * map_size, stream) : DeviceScratch<float>();
    };
    const DeviceScratch<float> dwq = map_parts(a.dwq), dwk = map_parts(a.dwk);
    const FusedRowsArgs over_rows{.in = in,
                                  .y = AlignedHeads(a.forward.y),
                                  .dy = AlignedHeads(a.dy),
                                  .results = rows.results(),
                                  .dq = PairRows(a.dq),
                                  .dwq_parts = dwq.data(),
                                  .da_parts = da.data(),
                                  .starts = starts.of_keys()};
    if (rows_sm90)
        fused_backward_rows_sm90(over_rows, a, stream);
    else
        fused_backward_rows(over_rows, d, stream);
    store_map_gradient(dwq.data(), s, s.heads, d, a.dwq, stream);
    store_mix_gradient(da.data(), in, a.dmix_logit, stream);
    if (!has_keys) return;
    const FusedKeysArgs keys{.in = in,
                             .results = rows.results(),
                             .dk = PairRows(dk_rows),
                             .dv = PairRows(dv_rows),
                             .key_heads = key_heads,
                             .heads_together = together,
                             .dwk_parts = dwk.data(),
                             .starts = starts.of_queries(rows.results(), s.blocks, 1)};
    if (keys_sm90)
        fused_backward_keys_sm90(keys, a, dk_rows, dv_rows, stream);
    else
        fused_backward_keys(keys, d, stream);
    finish(dk, dv, s, d, stream);
    store_map_gradient(dwk.data(), s, s.maps, d, a.dwk, stream);
}

}  // namespace lc::kernels
