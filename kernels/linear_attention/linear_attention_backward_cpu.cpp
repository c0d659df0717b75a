// Backward of the chunked form; formulas and tiling in linear_attention_block.h.
#include "core/parallel.h"
#include "kernels/linear_attention/linear_attention_block.h"

namespace lc::kernels {
namespace {

// Which families of gradients somebody wants.
struct Wanted {
    bool q, k, v, state;
    explicit Wanted(const LinearAttentionBackward& a)
        : q(a.dq || a.dwq || a.dbq), k(a.dk || a.dwk || a.dbk), v(static_cast<bool>(a.dv)), state(a.ds_in || a.dz_in) {}
    bool later_queries() const { return k || v || state; }  // T and t
};

// Parameter gradients of one batch entry; null where unwanted.
template <class T>
struct ParameterGrad {
    T *dwq = nullptr, *dbq = nullptr, *dwk = nullptr, *dbk = nullptr;
};

template <class T>
struct BackwardRoom {
    LinearChunkRoom<T> chunk;
    std::vector<T> dphi_q, du, grads, dn, dnorm;                // one chunk and query head
    std::vector<T> state, z, later, later_z;                    // S, z and T, t
    std::vector<T> phi_k, u_k, dphi_k, dk, dv, share, share_z;  // the whole length; share: what a chunk adds to T, t
    explicit BackwardRoom(const LinearSizes& s)
        : chunk(s),
          dphi_q(kLinearChunk * s.features),
          du(kLinearChunk * s.f),
          grads(kLinearChunk * kLinearChunk),
          dn(kLinearChunk * s.d),
          dnorm(kLinearChunk),
          state(s.features * s.d),
          z(s.features),
          later(s.features * s.d),
          later_z(s.features),
          phi_k(s.length * s.features),
          u_k(s.length * s.f),
          dphi_k(s.length * s.features),
          dk(s.length * s.d),
          dv(s.length * s.d),
          share(s.chunks() * s.features * s.d),
          share_z(s.chunks() * s.features) {}
};

// dphi_q -> dq, dW_q, db_q
template <class T>
void query_gradients(const LinearAttentionBackward& args, const LinearSizes& s, int64_t b, int64_t h, int64_t t0,
                     const ParameterGrad<T>& parameters, BackwardRoom<T>& room) {
    const LinearAttentionForward& a = args.forward;
    const auto q = a.q.as<const T, 4>();
    const int64_t n = s.rows(t0);
    FeatureMapBlockGrad<T> out{.dw = parameters.dwq ? parameters.dwq + h * s.d * s.f : nullptr,
                               .db = parameters.dbq ? parameters.dbq + h * a.bq.size(1) : nullptr};
    if (args.dq) out.dx = room.chunk.out.data(), out.lddx = s.d;
    feature_map_block_backward(linear_query_map<T>(a, h), &q(b, h, t0, 0), q.strides[2], n, room.chunk.u.data(),
                               room.chunk.phi_q.data(), s.features, room.dphi_q.data(), room.du.data(), out);
    if (!args.dq) return;
    const auto dq = args.dq.view.as<T, 4>();
    for (int64_t i = 0; i < n; ++i)
        for (int64_t c = 0; c < s.d; ++c) {
            T& to = dq(b, h, t0 + i, c);
            to = room.chunk.out[i * s.d + c] + (args.dq.accumulate() ? to : T{0});
        }
}

// Sweep 1 of one chunk and query head.
template <class T>
void backward_chunk(const LinearAttentionBackward& args, const LinearSizes& s, const Wanted& wanted, int64_t b,
                    int64_t h, int64_t t0, const ParameterGrad<T>& parameters, BackwardRoom<T>& room) {
    const LinearAttentionForward& a = args.forward;
    const auto q = a.q.as<const T, 4>(), v = a.v.as<const T, 4>(), y = a.y.as<const T, 4>(),
               dy = args.dy.as<const T, 4>();
    const int64_t n = s.rows(t0), hk = h / (s.heads / s.kv_heads), chunk = t0 / kLinearChunk;
    const T* phi_k = &room.phi_k[t0 * s.features];
    T *phi_q = room.chunk.phi_q.data(), *weights = room.chunk.weights.data(), *dn = room.dn.data();
    T *grads = room.grads.data(), *dphi_q = room.dphi_q.data();
    feature_map_block(linear_query_map<T>(a, h), &q(b, h, t0, 0), q.strides[2], n, room.chunk.u.data(), phi_q,
                      s.features);
    linear_chunk_weights(phi_q, phi_k, n, s.features, room.z.data(), weights, room.chunk.norm.data());
    for (int64_t i = 0; i < n; ++i) {
        T sum = 0;
        for (int64_t c = 0; c < s.d; ++c) {
            dn[i * s.d + c] = dy(b, h, t0 + i, c) / room.chunk.norm[i];
            sum += dn[i * s.d + c] * y(b, h, t0 + i, c);
        }
        room.dnorm[i] = -sum;
    }
    if (wanted.v)
        gemm(Gemm<T>{.op_a = Op::Transpose,
                     .m = n,
                     .n = s.d,
                     .k = n,
                     .a = weights,
                     .lda = kLinearChunk,
                     .b = dn,
                     .ldb = s.d,
                     .beta = 1,
                     .c = &room.dv[t0 * s.d],
                     .ldc = s.d});
    if (wanted.q || wanted.k) {
        gemm(Gemm<T>{.op_b = Op::Transpose,
                     .m = n,
                     .n = n,
                     .k = s.d,
                     .a = dn,
                     .lda = s.d,
                     .b = &v(b, hk, t0, 0),
                     .ldb = v.strides[2],
                     .c = grads,
                     .ldc = kLinearChunk});
        for (int64_t i = 0; i < n; ++i)
            for (int64_t j = 0; j < n; ++j)
                grads[i * kLinearChunk + j] = j <= i ? grads[i * kLinearChunk + j] + room.dnorm[i] : T{0};
    }
    if (wanted.k)
        gemm(Gemm<T>{.op_a = Op::Transpose,
                     .m = n,
                     .n = s.features,
                     .k = n,
                     .a = grads,
                     .lda = kLinearChunk,
                     .b = phi_q,
                     .ldb = s.features,
                     .beta = 1,
                     .c = &room.dphi_k[t0 * s.features],
                     .ldc = s.features});
    if (wanted.later_queries())
        add_to_state(phi_q, n, s.features, dn, s.d, s.d, room.dnorm.data(), &room.share[chunk * s.features * s.d],
                     &room.share_z[chunk * s.features]);
    if (!wanted.q) return;
    gemm(Gemm<T>{.m = n,
                 .n = s.features,
                 .k = n,
                 .a = grads,
                 .lda = kLinearChunk,
                 .b = phi_k,
                 .ldb = s.features,
                 .c = dphi_q,
                 .ldc = s.features});
    gemm(Gemm<T>{.op_b = Op::Transpose,
                 .m = n,
                 .n = s.features,
                 .k = s.d,
                 .a = dn,
                 .lda = s.d,
                 .b = room.state.data(),
                 .ldb = s.d,
                 .beta = 1,
                 .c = dphi_q,
                 .ldc = s.features});
    for (int64_t i = 0; i < n; ++i) row_axpy(room.z.data(), dphi_q + i * s.features, s.features, room.dnorm[i]);
    query_gradients(args, s, b, h, t0, parameters, room);
}

// Sweep 1: S, z forward in time.
template <class T>
void sweep_forward(const LinearAttentionBackward& args, const LinearSizes& s, const Wanted& wanted, int64_t b,
                   int64_t hs, const ParameterGrad<T>& parameters, BackwardRoom<T>& room) {
    const LinearAttentionForward& a = args.forward;
    const auto k = a.k.as<const T, 4>(), v = a.v.as<const T, 4>();
    const int64_t hk = s.kv_head(hs);
    for (std::vector<T>* sums : {&room.dphi_k, &room.share, &room.share_z}) std::fill(sums->begin(), sums->end(), T{0});
    load_state(a.s_in, a.z_in, b, hs, s.features, s.d, room.state.data(), room.z.data());
    for (int64_t t0 = 0; t0 < s.length; t0 += kLinearChunk) {
        const int64_t n = s.rows(t0);
        T* phi_k = &room.phi_k[t0 * s.features];
        feature_map_block(linear_key_map<T>(a, hs), &k(b, hk, t0, 0), k.strides[2], n, &room.u_k[t0 * s.f], phi_k,
                          s.features);
        for (int64_t h = hs * s.group(); h < (hs + 1) * s.group(); ++h)
            backward_chunk(args, s, wanted, b, h, t0, parameters, room);
        add_to_state<T>(phi_k, n, s.features, &v(b, hk, t0, 0), v.strides[2], s.d, nullptr, room.state.data(),
                        room.z.data());
    }
}

// Sweep 2: T, t backward in time.
template <class T>
void sweep_reverse(const LinearAttentionBackward& args, const LinearSizes& s, const Wanted& wanted, int64_t b,
                   int64_t hs, const ParameterGrad<T>& parameters, BackwardRoom<T>& room) {
    const LinearAttentionForward& a = args.forward;
    const auto k = a.k.as<const T, 4>(), v = a.v.as<const T, 4>();
    const int64_t hk = s.kv_head(hs);
    load_state(args.ds_out, args.dz_out, b, hs, s.features, s.d, room.later.data(), room.later_z.data());
    for (int64_t chunk = s.chunks() - 1; chunk >= 0; --chunk) {
        const int64_t t0 = chunk * kLinearChunk, n = s.rows(t0);
        const T* phi_k = &room.phi_k[t0 * s.features];
        if (wanted.k) {
            T* dphi_k = &room.dphi_k[t0 * s.features];
            gemm(Gemm<T>{.op_b = Op::Transpose,
                         .m = n,
                         .n = s.features,
                         .k = s.d,
                         .a = &v(b, hk, t0, 0),
                         .lda = v.strides[2],
                         .b = room.later.data(),
                         .ldb = s.d,
                         .beta = 1,
                         .c = dphi_k,
                         .ldc = s.features});
            for (int64_t j = 0; j < n; ++j) row_axpy(room.later_z.data(), dphi_k + j * s.features, s.features, T{1});
            FeatureMapBlockGrad<T> out{.dw = parameters.dwk ? parameters.dwk + hs * s.d * s.f : nullptr,
                                       .db = parameters.dbk ? parameters.dbk + hs * a.bk.size(1) : nullptr};
            if (args.dk) out.dx = &room.dk[t0 * s.d], out.lddx = s.d, out.dx_beta = 1;
            feature_map_block_backward(linear_key_map<T>(a, hs), &k(b, hk, t0, 0), k.strides[2], n, &room.u_k[t0 * s.f],
                                       phi_k, s.features, dphi_k, room.du.data(), out);
        }
        if (wanted.v)
            gemm(Gemm<T>{.m = n,
                         .n = s.d,
                         .k = s.features,
                         .a = phi_k,
                         .lda = s.features,
                         .b = room.later.data(),
                         .ldb = s.d,
                         .beta = 1,
                         .c = &room.dv[t0 * s.d],
                         .ldc = s.d});
        row_axpy(&room.share[chunk * s.features * s.d], room.later.data(), s.features * s.d, T{1});
        row_axpy(&room.share_z[chunk * s.features], room.later_z.data(), s.features, T{1});
    }
    store_state(room.later.data(), room.later_z.data(), b, hs, s.features, s.d, args.ds_in.view,
                args.ds_in.accumulate(), args.dz_in.view, args.dz_in.accumulate());
}

template <class T>
void store_keys(const std::vector<T>& rows, const GradSlot& slot, int64_t b, int64_t hk) {
    if (!slot) return;
    const auto to = slot.view.as<T, 4>();
    for (int64_t j = 0; j < to.size(2); ++j)
        for (int64_t c = 0; c < to.size(3); ++c) {
            T& target = to(b, hk, j, c);
            target = rows[j * to.size(3) + c] + (slot.accumulate() ? target : T{0});
        }
}

// All states of one KV head, in order.
template <class T>
void backward_kv_head(const LinearAttentionBackward& args, const LinearSizes& s, int64_t b, int64_t hk,
                      const ParameterGrad<T>& parameters, BackwardRoom<T>& room) {
    const Wanted wanted(args);
    const int64_t states = s.states / s.kv_heads;
    std::fill(room.dk.begin(), room.dk.end(), T{0});
    std::fill(room.dv.begin(), room.dv.end(), T{0});
    for (int64_t hs = hk * states; hs < (hk + 1) * states; ++hs) {
        sweep_forward(args, s, wanted, b, hs, parameters, room);
        if (wanted.later_queries()) sweep_reverse(args, s, wanted, b, hs, parameters, room);
    }
    store_keys(room.dk, args.dk, b, hk);
    store_keys(room.dv, args.dv, b, hk);
}

// One gradient of a parameter, a part a batch entry.
template <class T>
struct BatchParts {
    std::vector<T> values;
    int64_t size = 0;
    BatchParts(const GradSlot& slot, int64_t batch) : size(slot ? slot.view.numel() : 0) {
        values.resize(batch * size);
    }
    T* of(int64_t b) { return size ? &values[b * size] : nullptr; }
};

}  // namespace

template <class T>
void linear_attention_backward_chunked(const LinearAttentionBackward& args) {
    const LinearSizes s(args.forward);
    BatchParts<T> dwq(args.dwq, s.batch), dbq(args.dbq, s.batch), dwk(args.dwk, s.batch), dbk(args.dbk, s.batch);
    parallel_for(s.batch * s.kv_heads, 1, [&](int64_t begin, int64_t end) {
        BackwardRoom<T> room(s);
        for (int64_t item = begin; item < end; ++item) {
            const int64_t b = item / s.kv_heads;
            const ParameterGrad<T> parameters{.dwq = dwq.of(b), .dbq = dbq.of(b), .dwk = dwk.of(b), .dbk = dbk.of(b)};
            backward_kv_head(args, s, b, item % s.kv_heads, parameters, room);
        }
    });
    store_batch_sum(dwq.values, s.batch, args.dwq);
    store_batch_sum(dbq.values, s.batch, args.dbq);
    store_batch_sum(dwk.values, s.batch, args.dwk);
    store_batch_sum(dbk.values, s.batch, args.dbk);
}

template void linear_attention_backward_chunked<float>(const LinearAttentionBackward&);
template void linear_attention_backward_chunked<double>(const LinearAttentionBackward&);

}  // namespace lc::kernels
