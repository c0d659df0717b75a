// Which calls of pure linear attention the fused form takes.
//
// MATHS    linear_attention.h.
// TILING   linear_fused_steps.cuh.
// COST     a few host instructions a call.
// NUMERICS linear_fused_forward.cu.
// LADDER   1 this.
// SOURCE   derived here.
#include "kernels/linear_attention/linear_fused.h"

#include "kernels/hybrid_attention/hybrid_fused.cuh"
#include "kernels/hybrid_attention/hybrid_fused.h"
#include "kernels/linear_attention/linear_as_hybrid.h"

namespace lc::kernels {
namespace {

// Tensors, maps and device are taken as hybrid attention's fused form takes them; the window is what differs.
HybridAttentionForward with_window(HybridAttentionForward args) {
    args.spec.window = WindowKind::terraced, args.spec.window_size = kFusedRows;
    return args;
}

}  // namespace

bool linear_fused_covers(const LinearAttentionForward& a) {
    return hybrid_fused_covers(with_window(as_hybrid(a)));
}

bool linear_fused_covers(const LinearAttentionBackward& a) {
    HybridAttentionBackward args = as_hybrid(a);
    args.forward = with_window(args.forward);
    return hybrid_fused_covers(args);
}

}  // namespace lc::kernels
