// Forward of the chunked form; formulas and tiling in linear_attention_block.h.
#include "core/parallel.h"
#include "kernels/linear_attention/linear_attention_block.h"

namespace lc::kernels {
namespace {

template <class T>
void forward_chunk(const LinearAttentionForward& a, const LinearSizes& s, int64_t b, int64_t h, int64_t t0,
                   const T* phi_k, const std::vector<T>& state, const std::vector<T>& z, LinearChunkRoom<T>& room) {
    const auto q = a.q.as<const T, 4>(), v = a.v.as<const T, 4>();
    const auto y = a.y.as<T, 4>();
    const int64_t n = s.rows(t0), hk = h / (s.heads / s.kv_heads);
    T *phi_q = room.phi_q.data(), *out = room.out.data();
    feature_map_block(linear_query_map<T>(a, h), &q(b, h, t0, 0), q.strides[2], n, room.u.data(), phi_q, s.features);
    linear_chunk_weights(phi_q, phi_k, n, s.features, z.data(), room.weights.data(), room.norm.data());
    gemm(Gemm<T>{.m = n,
                 .n = s.d,
                 .k = s.features,
                 .a = phi_q,
                 .lda = s.features,
                 .b = state.data(),
                 .ldb = s.d,
                 .c = out,
                 .ldc = s.d});
    gemm(Gemm<T>{.m = n,
                 .n = s.d,
                 .k = n,
                 .a = room.weights.data(),
                 .lda = kLinearChunk,
                 .b = &v(b, hk, t0, 0),
                 .ldb = v.strides[2],
                 .beta = 1,
                 .c = out,
                 .ldc = s.d});
    for (int64_t i = 0; i < n; ++i)
        for (int64_t c = 0; c < s.d; ++c) y(b, h, t0 + i, c) = out[i * s.d + c] / room.norm[i];
}

template <class T>
void forward_state(const LinearAttentionForward& a, const LinearSizes& s, int64_t b, int64_t hs,
                   LinearChunkRoom<T>& room) {
    const auto k = a.k.as<const T, 4>(), v = a.v.as<const T, 4>();
    const int64_t hk = s.kv_head(hs);
    std::vector<T> phi_k(kLinearChunk * s.features), state(s.features * s.d), z(s.features);
    load_state(a.s_in, a.z_in, b, hs, s.features, s.d, state.data(), z.data());
    for (int64_t t0 = 0; t0 < s.length; t0 += kLinearChunk) {
        const int64_t n = s.rows(t0);
        feature_map_block(linear_key_map<T>(a, hs), &k(b, hk, t0, 0), k.strides[2], n, room.u.data(), phi_k.data(),
                          s.features);
        for (int64_t h = hs * s.group(); h < (hs + 1) * s.group(); ++h)
            forward_chunk(a, s, b, h, t0, phi_k.data(), state, z, room);
        add_to_state<T>(phi_k.data(), n, s.features, &v(b, hk, t0, 0), v.strides[2], s.d, nullptr, state.data(),
                        z.data());
    }
    store_state(state.data(), z.data(), b, hs, s.features, s.d, a.s_out, false, a.z_out, false);
}

}  // namespace

template <class T>
void linear_attention_forward_chunked(const LinearAttentionForward& args) {
    const LinearSizes s(args);
    parallel_for(s.batch * s.states, 1, [&](int64_t begin, int64_t end) {
        LinearChunkRoom<T> room(s);
        for (int64_t item = begin; item < end; ++item) forward_state(args, s, item / s.states, item % s.states, room);
    });
}

template void linear_attention_forward_chunked<float>(const LinearAttentionForward&);
template void linear_attention_forward_chunked<double>(const LinearAttentionForward&);

}  // namespace lc::kernels
