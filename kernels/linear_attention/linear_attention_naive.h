// The oracle: the recurrence of linear_attention.h, one position after the other.
#pragma once
#include <vector>

#include "kernels/feature_map/feature_map_naive.h"
#include "kernels/linear_attention/linear_attention.h"

namespace lc::kernels {

// One batch entry and one state with all query heads that read it.
template <class T>
struct LinearStateNaive {
    const LinearAttentionForward& a;
    int64_t b, hs;
    Accessor<const T, 4> q, k, v;
    int64_t length, d, features, group, hk;  // `group` query heads share the state; it reads KV head hk
    FeatureMapForward map_q, map_k;
    std::vector<std::vector<T>> phi_q;  // one [T,F'] a query head of the group
    std::vector<T> phi_k, s, z;         // [T,F'], [F',D], [F']

    LinearStateNaive(const LinearAttentionForward& args, int64_t batch, int64_t state)
        : a(args),
          b(batch),
          hs(state),
          q(a.q.as<const T, 4>()),
          k(a.k.as<const T, 4>()),
          v(a.v.as<const T, 4>()),
          length(q.size(2)),
          d(q.size(3)),
          features(feature_size(a.activation, a.wq.size(2))),
          group(q.size(1) / a.wk.size(0)),
          hk(hs / (a.wk.size(0) / k.size(1))),
          map_q{.x = a.q, .w = a.wq, .b = a.bq, .activation = a.activation, .skip = a.skip},
          map_k{.x = a.k, .w = a.wk, .b = a.bk, .activation = a.activation, .skip = a.skip},
          phi_k(feature_map_head_naive<T>(map_k, b, hs)),
          s(features * d),
          z(features) {
        for (int64_t g = 0; g < group; ++g) phi_q.push_back(feature_map_head_naive<T>(map_q, b, hs * group + g));
        for (int64_t f = 0; f < features && a.s_in; ++f) {
            z[f] = a.z_in.as<const T, 3>()(b, hs, f);
            for (int64_t c = 0; c < d; ++c) s[f * d + c] = a.s_in.as<const T, 4>()(b, hs, f, c);
        }
    }
    const T* phi_q_row(int64_t g, int64_t i) const { return &phi_q[g][i * features]; }
    const T* phi_k_row(int64_t j) const { return &phi_k[j * features]; }

    // S_j, z_j from S_{j-1}, z_{j-1}
    void advance(int64_t j) {
        for (int64_t f = 0; f < features; ++f) {
            z[f] += phi_k_row(j)[f];
            for (int64_t c = 0; c < d; ++c) s[f * d + c] += phi_k_row(j)[f] * v(b, hk, j, c);
        }
    }
    // Z_i; the state must stand at i.
    T normalizer(int64_t g, int64_t i) const {
        T sum = static_cast<T>(kLinearEpsilon);
        for (int64_t f = 0; f < features; ++f) sum += phi_q_row(g, i)[f] * z[f];
        return sum;
    }
};

template <class T>
void linear_attention_forward_naive(const LinearAttentionForward& a) {
    const auto y = a.y.as<T, 4>();
    for (int64_t b = 0; b < y.size(0); ++b)
        for (int64_t hs = 0; hs < a.wk.size(0); ++hs) {
            LinearStateNaive<T> state(a, b, hs);
            for (int64_t i = 0; i < state.length; ++i) {
                state.advance(i);
                for (int64_t g = 0; g < state.group; ++g) {
                    const T norm = state.normalizer(g, i);
                    for (int64_t c = 0; c < state.d; ++c) {
                        T n = 0;
                        for (int64_t f = 0; f < state.features; ++f)
                            n += state.phi_q_row(g, i)[f] * state.s[f * state.d + c];
                        y(b, hs * state.group + g, i, c) = n / norm;
                    }
                }
            }
            for (int64_t f = 0; f < state.features && a.s_out; ++f) {
                a.z_out.as<T, 3>()(b, hs, f) = state.z[f];
                for (int64_t c = 0; c < state.d; ++c) a.s_out.as<T, 4>()(b, hs, f, c) = state.s[f * state.d + c];
            }
        }
}

// Row-major buffers of all gradients; empty where none is wanted.
template <class T>
struct LinearGradientsNaive {
    std::vector<T> dq, dk, dv, dwq, dbq, dwk, dbk, ds, dz;

    explicit LinearGradientsNaive(const LinearAttentionBackward& args)
        : dq(size(args.dq)),
          dk(size(args.dk)),
          dv(size(args.dv)),
          dwq(size(args.dwq)),
          dbq(size(args.dbq)),
          dwk(size(args.dwk)),
          dbk(size(args.dbk)),
          ds(size(args.ds_in)),
          dz(size(args.dz_in)) {}
    void store(const LinearAttentionBackward& args) const {
        store_gradient(dq, args.dq), store_gradient(dk, args.dk), store_gradient(dv, args.dv);
        store_gradient(dwq, args.dwq), store_gradient(dbq, args.dbq);
        store_gradient(dwk, args.dwk), store_gradient(dbk, args.dbk);
        store_gradient(ds, args.ds_in), store_gradient(dz, args.dz_in);
    }
    static T* at(std::vector<T>& buffer, int64_t offset) { return buffer.empty() ? nullptr : &buffer[offset]; }

  private:
    static size_t size(const GradSlot& slot) { return slot ? static_cast<size_t>(slot.view.numel()) : 0; }
};

template <class T>
void linear_state_backward_naive(const LinearAttentionBackward& args, int64_t b, int64_t hs,
                                 LinearGradientsNaive<T>& out) {
    const LinearAttentionForward& a = args.forward;
    const auto y = a.y.as<const T, 4>(), dy = args.dy.as<const T, 4>();
    LinearStateNaive<T> state(a, b, hs);
    const int64_t length = state.length, d = state.d, features = state.features, group = state.group, hk = state.hk;

    // Forward in time: S_i, z_i are needed for dphi_q.
    std::vector<std::vector<T>> dphi_q(group, std::vector<T>(length * features));
    std::vector<T> dn(group * length * d), dnorm(group * length);
    for (int64_t i = 0; i < length; ++i) {
        state.advance(i);
        for (int64_t g = 0; g < group; ++g) {
            const int64_t h = hs * group + g, row = g * length + i;
            const T norm = state.normalizer(g, i);
            for (int64_t c = 0; c < d; ++c) {
                dn[row * d + c] = dy(b, h, i, c) / norm;
                dnorm[row] -= dn[row * d + c] * y(b, h, i, c);
            }
            for (int64_t f = 0; f < features; ++f) {
                T sum = state.z[f] * dnorm[row];
                for (int64_t c = 0; c < d; ++c) sum += state.s[f * d + c] * dn[row * d + c];
                dphi_q[g][i * features + f] = sum;
            }
        }
    }

    // Backward in time: T_j, t_j.
    std::vector<T> big(features * d), small(features), dphi_k(length * features);
    for (int64_t f = 0; f < features && args.ds_out; ++f)
        for (int64_t c = 0; c < d; ++c) big[f * d + c] = args.ds_out.as<const T, 4>()(b, hs, f, c);
    for (int64_t f = 0; f < features && args.dz_out; ++f) small[f] = args.dz_out.as<const T, 3>()(b, hs, f);
    T* dv = out.at(out.dv, (b * a.k.size(1) + hk) * length * d);
    for (int64_t j = length - 1; j >= 0; --j) {
        for (int64_t f = 0; f < features; ++f) {
            for (int64_t g = 0; g < group; ++g) {
                const T phi = state.phi_q_row(g, j)[f];
                small[f] += phi * dnorm[g * length + j];
                for (int64_t c = 0; c < d; ++c) big[f * d + c] += phi * dn[(g * length + j) * d + c];
            }
            T sum = small[f];
            for (int64_t c = 0; c < d; ++c) {
                sum += big[f * d + c] * state.v(b, hk, j, c);
                if (dv) dv[j * d + c] += big[f * d + c] * state.phi_k_row(j)[f];
            }
            dphi_k[j * features + f] = sum;
        }
    }
    if (!out.ds.empty()) std::copy(big.begin(), big.end(), out.at(out.ds, (b * a.wk.size(0) + hs) * features * d));
    if (!out.dz.empty()) std::copy(small.begin(), small.end(), out.at(out.dz, (b * a.wk.size(0) + hs) * features));

    const int64_t w_size = d * a.wq.size(2), bias_q = a.bq ? a.bq.size(1) : 0, bias_k = a.bk ? a.bk.size(1) : 0;
    for (int64_t g = 0; g < group; ++g) {
        const int64_t h = hs * group + g;
        feature_map_head_backward_naive(state.map_q, b, h, state.phi_q[g].data(), dphi_q[g].data(),
                                        out.at(out.dq, (b * a.q.size(1) + h) * length * d), out.at(out.dwq, h * w_size),
                                        out.at(out.dbq, h * bias_q));
    }
    feature_map_head_backward_naive(state.map_k, b, hs, state.phi_k.data(), dphi_k.data(),
                                    out.at(out.dk, (b * a.k.size(1) + hk) * length * d), out.at(out.dwk, hs * w_size),
                                    out.at(out.dbk, hs * bias_k));
}

template <class T>
void linear_attention_backward_naive(const LinearAttentionBackward& args) {
    LinearGradientsNaive<T> gradients(args);
    for (int64_t b = 0; b < args.forward.q.size(0); ++b)
        for (int64_t hs = 0; hs < args.forward.wk.size(0); ++hs) linear_state_backward_naive(args, b, hs, gradients);
    gradients.store(args);
}

}  // namespace lc::kernels
