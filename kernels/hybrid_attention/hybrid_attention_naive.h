// The oracle: every weight of every row, as the formulas of hybrid_attention.h read. O(T^2) time, O(T) memory.
#pragma once
#include <limits>
#include <vector>

#include "kernels/feature_map/feature_map_naive.h"
#include "kernels/hybrid_attention/hybrid_attention.h"
#include "kernels/hybrid_attention/hybrid_mix.h"

namespace lc::kernels {

// One batch entry and query head. Keys and rows are counted from 0 within the call.
template <class T>
struct HybridHeadNaive {
    const HybridAttentionForward& a;
    int64_t b, h;
    Accessor<const T, 4> q, k, v;
    int64_t rows, keys, d, features;
    int64_t hk, hs;  // KV head and state (k-map) of this query head
    HybridMix<T> mix;
    FeatureMapForward map_q, map_k;
    std::vector<T> phi_q, phi_k;  // [T,F'], [Tk,F']

    HybridHeadNaive(const HybridAttentionForward& args, int64_t batch, int64_t head)
        : a(args),
          b(batch),
          h(head),
          q(a.q.as<const T, 4>()),
          k(a.k.as<const T, 4>()),
          v(a.v.as<const T, 4>()),
          rows(q.size(2)),
          keys(k.size(2)),
          d(q.size(3)),
          features(feature_size(a.spec.activation, a.wq.size(2))),
          hk(h / (q.size(1) / k.size(1))),
          hs(h / (q.size(1) / a.wk.size(0))),
          mix(hybrid_mix<T>(a.mix_logit, a.spec, h)),
          map_q{.x = a.q, .w = a.wq, .b = a.bq, .phi = {}, .activation = a.spec.activation, .skip = a.spec.skip},
          map_k{.x = a.k, .w = a.wk, .b = a.bk, .phi = {}, .activation = a.spec.activation, .skip = a.spec.skip},
          phi_q(rows * features),
          phi_k(keys * features) {
        const int64_t f = a.wq.size(2);
        std::vector<T> u(f);
        for (int64_t i = 0; i < rows; ++i) {
            feature_map_project(map_q, b, h, i, u.data());
            feature_map_row(a.spec.activation, u.data(), f, &phi_q[i * features]);
        }
        for (int64_t j = 0; j < keys; ++j) {
            feature_map_project(map_k, b, hs, j, u.data());
            feature_map_row(a.spec.activation, u.data(), f, &phi_k[j * features]);
        }
    }

    // R(i) = [0, far_end(i)) and the state; W(i) = [far_end(i), causal_end(i)).
    int64_t causal_end(int64_t i) const { return keys - rows + i + 1; }
    int64_t far_end(int64_t i) const { return state_end(a.spec, a.first_key + causal_end(i)) - a.first_key; }

    T phi_dot(int64_t i, int64_t j) const {
        T sum = 0;
        for (int64_t f = 0; f < features; ++f) sum += phi_q[i * features + f] * phi_k[j * features + f];
        return sum;
    }
    T score(int64_t i, int64_t j) const {
        T sum = 0;
        for (int64_t x = 0; x < d; ++x) sum += q(b, h, i, x) * k(b, hk, j, x);
        return sum / std::sqrt(static_cast<T>(d));
    }
    // Scores s_ij of the window, the weights c_ij of all keys of row i (p in W, l in R), and Z_i.
    struct Row {
        std::vector<T> s, c;
        T max = 0, z = 0;
    };
    Row row(int64_t i) const {
        Row r{std::vector<T>(keys), std::vector<T>(keys), -std::numeric_limits<T>::infinity(), 0};
        const int64_t far = far_end(i), end = causal_end(i);
        for (int64_t j = 0; j < far; ++j) r.z += r.c[j] = mix.lambda * phi_dot(i, j);
        if (a.z_in)
            for (int64_t f = 0; f < features; ++f)
                r.z += mix.lambda * phi_q[i * features + f] * a.z_in.as<const T, 3>()(b, hs, f);
        for (int64_t j = far; j < end; ++j) r.max = std::max(r.max, r.s[j] = score(i, j));
        for (int64_t j = far; j < end; ++j) r.z += r.c[j] = mix.gamma * std::exp(r.s[j] - r.max);
        if (a.spec.window == WindowKind::none) r.z += static_cast<T>(kLinearEpsilon);
        return r;
    }
};

// s_out, z_out of one state: the state handed in and the keys before state_end.
template <class T>
void hybrid_state_naive(const HybridHeadNaive<T>& head) {
    const HybridAttentionForward& a = head.a;
    const auto s = a.s_out.as<T, 4>();
    const auto z = a.z_out.as<T, 3>();
    const int64_t b = head.b, hs = head.hs, end = head.far_end(head.rows - 1);
    for (int64_t f = 0; f < head.features; ++f) {
        T sum = a.z_in ? a.z_in.as<const T, 3>()(b, hs, f) : T{0};
        for (int64_t j = 0; j < end; ++j) sum += head.phi_k[j * head.features + f];
        z(b, hs, f) = sum;
        for (int64_t x = 0; x < head.d; ++x) {
            T product = a.s_in ? a.s_in.as<const T, 4>()(b, hs, f, x) : T{0};
            for (int64_t j = 0; j < end; ++j) product += head.phi_k[j * head.features + f] * head.v(b, head.hk, j, x);
            s(b, hs, f, x) = product;
        }
    }
}

template <class T>
void hybrid_attention_forward_naive(const HybridAttentionForward& a) {
    const auto y = a.y.as<T, 4>();
    const int64_t heads = y.size(1), group = heads / a.wk.size(0);
    for (int64_t b = 0; b < y.size(0); ++b)
        for (int64_t h = 0; h < heads; ++h) {
            const HybridHeadNaive<T> head(a, b, h);
            for (int64_t i = 0; i < head.rows; ++i) {
                const auto row = head.row(i);
                for (int64_t x = 0; x < head.d; ++x) {
                    T n = 0;
                    for (int64_t j = 0; j < head.causal_end(i); ++j) n += row.c[j] * head.v(b, head.hk, j, x);
                    for (int64_t f = 0; f < head.features && a.s_in; ++f)
                        n += head.mix.lambda * head.phi_q[i * head.features + f] *
                             a.s_in.as<const T, 4>()(b, head.hs, f, x);
                    y(b, h, i, x) = n / row.z;
                }
            }
            if (a.s_out && h % group == 0) hybrid_state_naive(head);
        }
}

// All gradients as row-major buffers; empty ones are not wanted.
template <class T>
struct HybridGradients {
    std::vector<T> dq, dk, dv, dwq, dbq, dwk, dbk, dmix_logit, ds, dz;

    explicit HybridGradients(const HybridAttentionBackward& args)
        : dq(size(args.dq)),
          dk(size(args.dk)),
          dv(size(args.dv)),
          dwq(size(args.dwq)),
          dbq(size(args.dbq)),
          dwk(size(args.dwk)),
          dbk(size(args.dbk)),
          dmix_logit(size(args.dmix_logit)),
          ds(size(args.ds_in)),
          dz(size(args.dz_in)) {}
    void store(const HybridAttentionBackward& args) const {
        store_gradient(dq, args.dq), store_gradient(dk, args.dk), store_gradient(dv, args.dv);
        store_gradient(dwq, args.dwq), store_gradient(dbq, args.dbq), store_gradient(dwk, args.dwk);
        store_gradient(dbk, args.dbk), store_gradient(dmix_logit, args.dmix_logit);
        store_gradient(ds, args.ds_in), store_gradient(dz, args.dz_in);
    }

  private:
    static size_t size(const GradSlot& slot) { return slot ? static_cast<size_t>(slot.view.numel()) : 0; }
};

// The rows of one query head, and what the handed-on state's gradient gives to keys and the state handed in
// (once a state).
template <class T>
void hybrid_head_backward_naive(const HybridAttentionBackward& args, const HybridHeadNaive<T>& head,
                                HybridGradients<T>& g) {
    const HybridAttentionForward& a = args.forward;
    const auto y = a.y.as<const T, 4>(), dy = args.dy.as<const T, 4>();
    const int64_t b = head.b, h = head.h, d = head.d, features = head.features, rows = head.rows, keys = head.keys;
    const int64_t states = a.wk.size(0), group = a.q.size(1) / states;
    const T lambda = head.mix.lambda, scale = 1 / std::sqrt(static_cast<T>(d));
    const auto at = [](std::vector<T>& buffer, int64_t offset) { return buffer.empty() ? nullptr : &buffer[offset]; };
    T* dq = at(g.dq, (b * a.q.size(1) + h) * rows * d);
    T* dk = at(g.dk, (b * a.k.size(1) + head.hk) * keys * d);
    T* dv = at(g.dv, (b * a.k.size(1) + head.hk) * keys * d);
    T* ds0 = at(g.ds, (b * states + head.hs) * features * d);
    T* dz0 = at(g.dz, (b * states + head.hs) * features);
    std::vector<T> dphi_q(rows * features), dphi_k(keys * features), dn(d), dc(keys);
    for (int64_t i = 0; i < rows; ++i) {
        const auto row = head.row(i);
        const int64_t far = head.far_end(i), end = head.causal_end(i);
        const T* phi = &head.phi_q[i * features];
        T* dphi = &dphi_q[i * features];
        T dz = 0;
        for (int64_t x = 0; x < d; ++x) dn[x] = dy(b, h, i, x) / row.z, dz -= dn[x] * y(b, h, i, x);
        for (int64_t j = 0; j < end; ++j) {
            dc[j] = dz;
            for (int64_t x = 0; x < d; ++x) dc[j] += dn[x] * head.v(b, head.hk, j, x);
            for (int64_t x = 0; x < d && dv; ++x) dv[j * d + x] += row.c[j] * dn[x];
        }
        for (int64_t f = 0; f < features; ++f) {
            for (int64_t j = 0; j < far; ++j) {
                dphi[f] += lambda * dc[j] * head.phi_k[j * features + f];
                dphi_k[j * features + f] += lambda * dc[j] * phi[f];
            }
            if (a.z_in) dphi[f] += lambda * dz * a.z_in.as<const T, 3>()(b, head.hs, f);
            for (int64_t x = 0; x < d && a.s_in; ++x)
                dphi[f] += lambda * dn[x] * a.s_in.as<const T, 4>()(b, head.hs, f, x);
            if (dz0) dz0[f] += lambda * phi[f] * dz;
            for (int64_t x = 0; x < d && ds0; ++x) ds0[f * d + x] += lambda * phi[f] * dn[x];
        }
        T total = 0, ties = 0;
        for (int64_t j = far; j < end; ++j) total += row.c[j] * dc[j], ties += row.s[j] == row.max ? 1 : 0;
        for (int64_t j = far; j < end; ++j) {
            const T ds = scale * (row.c[j] * dc[j] - (row.s[j] == row.max ? total / ties : T{0}));
            for (int64_t x = 0; x < d && dq; ++x) dq[i * d + x] += ds * head.k(b, head.hk, j, x);
            for (int64_t x = 0; x < d && dk; ++x) dk[j * d + x] += ds * head.q(b, h, i, x);
        }
        if (!g.dmix_logit.empty()) g.dmix_logit[h] += head.mix.dlogit * total;
    }
    if (args.ds_out && h % group == 0) {
        const auto ds = args.ds_out.as<const T, 4>();
        for (int64_t j = 0; j < head.far_end(rows - 1); ++j)
            for (int64_t f = 0; f < features; ++f)
                for (int64_t x = 0; x < d; ++x) {
                    dphi_k[j * features + f] += ds(b, head.hs, f, x) * head.v(b, head.hk, j, x);
                    if (dv) dv[j * d + x] += head.phi_k[j * features + f] * ds(b, head.hs, f, x);
                }
        for (int64_t i = 0; i < features * d && ds0; ++i) ds0[i] += ds(b, head.hs, i / d, i % d);
    }
    if (args.dz_out && h % group == 0) {
        const auto dz = args.dz_out.as<const T, 3>();
        for (int64_t j = 0; j < head.far_end(rows - 1); ++j)
            for (int64_t f = 0; f < features; ++f) dphi_k[j * features + f] += dz(b, head.hs, f);
        for (int64_t f = 0; f < features && dz0; ++f) dz0[f] += dz(b, head.hs, f);
    }
    const int64_t f = a.wq.size(2), bias_q = a.bq ? a.bq.size(1) : 0, bias_k = a.bk ? a.bk.size(1) : 0;
    feature_map_head_backward_naive(head.map_q, b, h, head.phi_q.data(), dphi_q.data(), dq, at(g.dwq, h * d * f),
                                    at(g.dbq, h * bias_q));
    feature_map_head_backward_naive(head.map_k, b, head.hs, head.phi_k.data(), dphi_k.data(), dk,
                                    at(g.dwk, head.hs * d * f), at(g.dbk, head.hs * bias_k));
}

template <class T>
void hybrid_attention_backward_naive(const HybridAttentionBackward& args) {
    HybridGradients<T> gradients(args);
    for (int64_t b = 0; b < args.forward.q.size(0); ++b)
        for (int64_t h = 0; h < args.forward.q.size(1); ++h)
            hybrid_head_backward_naive(args, HybridHeadNaive<T>(args.forward, b, h), gradients);
    gradients.store(args);
}

}  // namespace lc::kernels
