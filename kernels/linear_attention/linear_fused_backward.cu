// Fused linear attention on tensor cores, backward: workspace and order of the kernels.
//
// MATHS    linear_attention.h.
// TILING   a walk over the rows, one over the keys (linear_fused_backward_rows.cu, .._keys.cu), then sums over batch and
//          groups.
// COST     22 D^2 FLOPs a row and query head at D = 128, and 2 for maps that train. Workspace: 8 bytes a row and query head,
//          4 D more where a group has several; 4 D F bytes a map and item.
// NUMERICS in the files of the kernels.
// LADDER   1 the chunked form: 6,807 us at 8 x 1024 x 32 heads, D = 128, maps frozen, on an H100.
//          2 this, meant for 600 to 700 us: 812.
// SOURCE   arXiv 2312.06635.
#include "kernels/linear_attention/linear_fused_backward.cuh"

#include "kernels/hybrid_attention/hybrid_fused_key_gradient.cuh"
#include "kernels/linear_attention/linear_as_hybrid.h"
#include "kernels/linear_attention/linear_fused.h"

namespace lc::kernels {

void linear_fused_backward(const LinearAttentionBackward& a, Stream stream) {
    const bool keys = a.dk || a.dv || a.dwk;
    if (!keys && !a.dq && !a.dwq) return;
    const FusedInputs in(as_hybrid(a.forward));
    const FusedShape& s = in.shape;
    const int64_t d = a.forward.q.size(3), rows = s.items * s.blocks * kFusedRows;
    const DeviceScratch<float> numbers(2 * rows, stream);
    const LinearRowResults results{numbers.data(), numbers.data() + rows};
    const auto map_parts = [&](const GradSlot& slot) {
        return slot ? DeviceScratch<float>(s.items * d * kFusedMap, stream) : DeviceScratch<float>();
    };
    const DeviceScratch<float> dwq = map_parts(a.dwq), dwk = map_parts(a.dwk);
    linear_backward_rows(
        {.in = in, .dy = AlignedHeads(a.dy), .results = results, .dq = PairRows(a.dq), .dwq_parts = dwq.data()}, d,
        stream);
    store_map_gradient(dwq.data(), s, s.heads, d, a.dwq, stream);
    if (!keys) return;
    const KeyGradient dk(a.dk, s, d, s.heads, stream), dv(a.dv, s, d, s.heads, stream);
    linear_backward_keys({.in = in,
                          .dy = AlignedHeads(a.dy),
                          .results = results,
                          .dk = PairRows(dk.rows(s, d)),
                          .dv = PairRows(dv.rows(s, d)),
                          .by_query_head = s.heads != s.kv_heads,
                          .dwk_parts = dwk.data()},
                         d, stream);
    finish(dk, dv, s, d, stream);
    store_map_gradient(dwk.data(), s, s.maps, d, a.dwk, stream);
}

}  // namespace lc::kernels
