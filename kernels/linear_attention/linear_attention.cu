// Pure linear attention on the GPU: the fused form (linear_fused.h) where it applies, else the chunked form of
// hybrid_attention without a window.
//
// MATHS    linear_attention.h = hybrid_attention.h with window none: every key of a row is far, lambda = 1, Z has an
//          epsilon.
// TILING   fused: linear_fused_forward.cu. Chunked: kernels/hybrid_attention/hybrid_chunked.cuh, where chunks have 64 rows
//          and the span of a chunk is the chunk itself.
// COST     fused: linear_fused_forward.cu. Chunked: hybrid_chunked.cu with span = 64 and without scores.
// NUMERICS linear_fused_forward.cu; hybrid_chunked.cu.
// LADDER   1 chunked, in f32 and bf16. 2 fused, for bf16 and the paper's maps (linear_fused_forward.cu).
// SOURCE   arXiv 2312.06635 (chunked form).
#include "core/profile.h"
#include "kernels/linear_attention/linear_as_hybrid.h"
#include "kernels/linear_attention/linear_fused.h"

namespace lc::kernels {

void linear_attention_forward_cuda(const LinearAttentionForward& args, Stream stream) {
    if (linear_fused_covers(args)) return linear_fused_forward(args, stream);
    profile_count("fallback linear_attention");
    hybrid_attention_forward_cuda(as_hybrid(args), stream);
}

void linear_attention_backward_cuda(const LinearAttentionBackward& args, Stream stream) {
    if (linear_fused_covers(args)) return linear_fused_backward(args, stream);
    profile_count("fallback linear_attention");
    hybrid_attention_backward_cuda(as_hybrid(args), stream);
}

}  // namespace lc::kernels
