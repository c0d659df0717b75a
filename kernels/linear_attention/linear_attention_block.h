// What both directions of the fast CPU linear attention share; linear_attention_{forward,backward}_cpu.cpp are the rest.
//
// MATHS     linear_attention.h, cut into chunks of C = 64 positions; S, z: state before the chunk, M: causal mask.
//             forward      A = M (phi_q phi_k^T)      Z = A 1 + phi_q z + eps      Y = (A V + phi_q S) / Z
//                          S += phi_k^T V,  z += phi_k^T 1
//             sweep 1      dN, dZ;  G = M (dN V^T + dZ 1^T);  dphi_q = G phi_k + dN S^T + dZ z^T
//             (forward)    within the chunk: dphi_k = G^T phi_q, dv = A^T dN;  its share of T, t: phi_q^T dN, phi_q^T dZ
//             sweep 2      dphi_k += V T^T + 1 t^T,  dv += phi_k T;  then the chunk's share is added to T, t
//             (reverse)
// TILING    Forward: one work item is (batch, state) with all query heads of that state; backward: (batch, KV head) with all
//           its states in order, so dk and dv have one writer. dW and db are summed for each batch entry alone and then over
//           the batch in order: no atomics, repeatable bit by bit.
// COST      FLOPs a row and query head: forward 4 D F (maps) + 4 F' D (state) + 2 C (F' + D), backward about 2.5 times
//           that. Memory: forward O(C) a thread; backward O(T) a thread: phi_k, u_k, dphi_k, dk, dv and one state a chunk,
//           (2 F' + F + 2 D + F' D / C) T numbers. Storing the chunks' shares of T costs less than a second pass over q.
// NUMERICS  T throughout (f32, or f64 in tests); exp_approx in f32. Z > 0: features are at least 1e-12 and eps is added.
#pragma once
#include <algorithm>
#include <vector>

#include "kernels/common/linear_state.h"
#include "kernels/feature_map/feature_map_block.h"
#include "kernels/linear_attention/linear_attention_chunked.h"

namespace lc::kernels {

struct LinearSizes {
    int64_t batch, heads, kv_heads, states, length, d, f, features;
    explicit LinearSizes(const LinearAttentionForward& a)
        : batch(a.q.size(0)),
          heads(a.q.size(1)),
          kv_heads(a.k.size(1)),
          states(a.wk.size(0)),
          length(a.q.size(2)),
          d(a.q.size(3)),
          f(a.wq.size(2)),
          features(feature_size(a.activation, a.wq.size(2))) {}
    int64_t group() const { return heads / states; }  // query heads of a state
    int64_t kv_head(int64_t hs) const { return hs / (states / kv_heads); }
    int64_t chunks() const { return (length + kLinearChunk - 1) / kLinearChunk; }
    int64_t rows(int64_t t0) const { return std::min(kLinearChunk, length - t0); }
};

// Everything of one chunk and one query head.
template <class T>
struct LinearChunkRoom {
    std::vector<T> u, phi_q, weights, norm, out;
    explicit LinearChunkRoom(const LinearSizes& s)
        : u(kLinearChunk * s.f),
          phi_q(kLinearChunk * s.features),
          weights(kLinearChunk * kLinearChunk),
          norm(kLinearChunk),
          out(kLinearChunk * s.d) {}
};

// weights [n,n] = causal phi_q phi_k^T, norm [n] = Z. Rows of weights are kLinearChunk apart.
template <class T>
void linear_chunk_weights(const T* phi_q, const T* phi_k, int64_t n, int64_t features, const T* z, T* weights,
                          T* norm) {
    gemm(Gemm<T>{.op_b = Op::Transpose,
                 .m = n,
                 .n = n,
                 .k = features,
                 .a = phi_q,
                 .lda = features,
                 .b = phi_k,
                 .ldb = features,
                 .c = weights,
                 .ldc = kLinearChunk});
    for (int64_t i = 0; i < n; ++i) {
        T* row = weights + i * kLinearChunk;
        std::fill(row + i + 1, row + n, T{0});
        norm[i] = row_sum(row, i + 1) + row_dot(phi_q + i * features, z, features) + static_cast<T>(kLinearEpsilon);
    }
}

template <class T>
FeatureMapHead<T> linear_query_map(const LinearAttentionForward& a, int64_t h) {
    return feature_map_head<T>(a.wq, a.bq, h, a.activation, a.skip);
}
template <class T>
FeatureMapHead<T> linear_key_map(const LinearAttentionForward& a, int64_t hs) {
    return feature_map_head<T>(a.wk, a.bk, hs, a.activation, a.skip);
}

}  // namespace lc::kernels
