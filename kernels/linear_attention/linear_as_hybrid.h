// Pure linear attention in the words of hybrid attention without a window: what its forms on the GPU are given.
#pragma once
#include "kernels/hybrid_attention/hybrid_attention.h"
#include "kernels/linear_attention/linear_attention.h"

namespace lc::kernels {

inline HybridAttentionForward as_hybrid(const LinearAttentionForward& a) {
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

inline HybridAttentionBackward as_hybrid(const LinearAttentionBackward& a) {
    return {.forward = as_hybrid(a.forward),
            .dy = a.dy,
            .ds_out = a.ds_out,
            .dz_out = a.dz_out,
            .dq = a.dq,
            .dk = a.dk,
            .dv = a.dv,
            .dwq = a.dwq,
            .dbq = a.dbq,
            .dwk = a.dwk,
            .dbk = a.dbk,
            .dmix_logit = {},
            .ds_in = a.ds_in,
            .dz_in = a.dz_in};
}

}  // namespace lc::kernels
