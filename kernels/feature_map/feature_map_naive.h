// The oracle: loops as the formulas of feature_map.h read.
#pragma once
#include <vector>

#include "kernels/feature_map/feature_map.h"
#include "kernels/feature_map/feature_map_row.h"

namespace lc::kernels {

// u[F] = x[D] W[D,F] + b (+ x)
template <class T>
void feature_map_project(const FeatureMapForward& a, int64_t batch, int64_t h, int64_t t, T* u) {
    const auto x = a.x.as<const T, 4>();
    const auto w = a.w.as<const T, 3>();
    const int64_t d = x.size(3), f = w.size(2), group = w.size(0) / x.size(1);
    for (int64_t j = 0; j < f; ++j) {
        T sum = 0;
        for (int64_t i = 0; i < d; ++i) sum += x(batch, h / group, t, i) * w(h, i, j);
        if (a.b) sum += a.b.as<const T, 2>()(h, a.b.size(1) == 1 ? 0 : j);
        if (a.skip) sum += x(batch, h / group, t, j);
        u[j] = sum;
    }
}

template <class T>
void feature_map_forward_naive(const FeatureMapForward& a) {
    const auto phi = a.phi.as<T, 4>();
    const int64_t f = a.w.size(2);
    std::vector<T> u(f), row(phi.size(3));
    for (int64_t b = 0; b < phi.size(0); ++b)
        for (int64_t h = 0; h < phi.size(1); ++h)
            for (int64_t t = 0; t < phi.size(2); ++t) {
                feature_map_project(a, b, h, t, u.data());
                feature_map_row(a.activation, u.data(), f, row.data());
                for (int64_t j = 0; j < phi.size(3); ++j) phi(b, h, t, j) = row[j];
            }
}

// phi [T,F'] of one head.
template <class T>
std::vector<T> feature_map_head_naive(const FeatureMapForward& a, int64_t b, int64_t h) {
    const int64_t f = a.w.size(2), size = feature_size(a.activation, f), length = a.x.size(2);
    std::vector<T> u(f), phi(length * size);
    for (int64_t t = 0; t < length; ++t) {
        feature_map_project(a, b, h, t, u.data());
        feature_map_row(a.activation, u.data(), f, &phi[t * size]);
    }
    return phi;
}

// The way back through the map of one head: dphi [T,F'] (overwritten) adds to dx [T,D], dw [D,F] and db [1] or [F], each
// null if unwanted.
template <class T>
void feature_map_head_backward_naive(const FeatureMapForward& a, int64_t b, int64_t h, const T* phi, T* dphi, T* dx,
                                     T* dw, T* db) {
    const auto x = a.x.as<const T, 4>();
    const auto w = a.w.as<const T, 3>();
    const int64_t d = x.size(3), f = w.size(2), size = feature_size(a.activation, f), hx = h / (w.size(0) / x.size(1));
    std::vector<T> u(f), du(f);
    for (int64_t t = 0; t < x.size(2); ++t) {
        feature_map_project(a, b, h, t, u.data());
        feature_map_row_backward(a.activation, u.data(), phi + t * size, f, dphi + t * size, du.data());
        for (int64_t j = 0; j < f; ++j) {
            for (int64_t i = 0; i < d && dw; ++i) dw[i * f + j] += x(b, hx, t, i) * du[j];
            for (int64_t i = 0; i < d && dx; ++i) dx[t * d + i] += w(h, i, j) * du[j];
            if (dx && a.skip) dx[t * d + j] += du[j];
            if (db) db[a.b.size(1) == 1 ? 0 : j] += du[j];
        }
    }
}

template <class T>
void feature_map_backward_naive(const FeatureMapBackward& args) {
    const FeatureMapForward& a = args.forward;
    const auto phi = a.phi.as<const T, 4>(), dphi = args.dphi.as<const T, 4>();
    const int64_t heads = phi.size(1), length = phi.size(2), size = phi.size(3), group = heads / a.x.size(1);
    const int64_t d = a.x.size(3), f = a.w.size(2), bias = a.b ? a.b.size(1) : 0;
    std::vector<T> p(length * size), g(length * size);
    std::vector<T> dx(args.dx ? a.x.numel() : 0), dw(args.dw ? a.w.numel() : 0), db(args.db ? a.b.numel() : 0);
    const auto at = [](std::vector<T>& buffer, int64_t offset) { return buffer.empty() ? nullptr : &buffer[offset]; };
    for (int64_t b = 0; b < phi.size(0); ++b)
        for (int64_t h = 0; h < heads; ++h) {
            for (int64_t i = 0; i < length * size; ++i) {
                p[i] = phi(b, h, i / size, i % size);
                g[i] = dphi(b, h, i / size, i % size);
            }
            feature_map_head_backward_naive(a, b, h, p.data(), g.data(),
                                            at(dx, (b * a.x.size(1) + h / group) * length * d), at(dw, h * d * f),
                                            at(db, h * bias));
        }
    store_gradient(dx, args.dx);
    store_gradient(dw, args.dw);
    store_gradient(db, args.db);
}

}  // namespace lc::kernels
