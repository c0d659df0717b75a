// Pure linear attention on the GPU: the chunked form of hybrid_attention without a window.
//
// MATHS    linear_attention.h = hybrid_attention.h with window none: every key of a row is far, lambda = 1, Z has an epsilon.
// TILING   kernels/hybrid_attention/hybrid_chunked.cuh: chunks of 64 rows, the span of a chunk is the chunk itself.
// COST     hybrid_chunked.cu with span = 64 and without scores.
// NUMERICS hybrid_chunked.cu.
// LADDER   1 this.
// SOURCE   arXiv 2312.06635 (chunked form).
#include "kernels/hybrid_attention/hybrid_attention.h"
#include "kernels/linear_attention/linear_attention.h"

namespace lc::kernels {
namespace {

HybridAttentionForward as_hybrid(const LinearAttentionForward& a) {
    return {.q = a.q,
            .k = a.k,
            .v = a.v,
            .wq = a.wq,
            .bq = a.bq,
            .wk = a.wk,
            .bk = a.bk,
            .mix_logit = {},
            .s_in = a.s_in,
            .z_in = a.z_in,
            .y = a.y,
            .s_out = a.s_out,
            .z_out = a.z_out,
            .spec = {.window = WindowKind::none, .activation = a.activation, .skip = a.skip}};
}

}  // namespace

void linear_attention_forward_cuda(const LinearAttentionForward& args, Stream stream) {
    hybrid_attention_forward_cuda(as_hybrid(args), stream);
}

void linear_attention_backward_cuda(const LinearAttentionBackward& args, Stream stream) {
    hybrid_attention_backward_cuda({.forward = as_hybrid(args.forward),
                                    .dy = args.dy,
                                    .ds_out = args.ds_out,
                                    .dz_out = args.dz_out,
                                    .dq = args.dq,
                                    .dk = args.dk,
                                    .dv = args.dv,
                                    .dwq = args.dwq,
                                    .dbq = args.dbq,
                                    .dwk = args.dwk,
                                    .dbk = args.dbk,
                                    .dmix_logit = {},
                                    .ds_in = args.ds_in,
                                    .dz_in = args.dz_in},
                                   stream);
}

}  // namespace lc::kernels
