#include "kernels/feature_map/feature_map.h"

#include <array>

#include "kernels/common/dispatch.h"
#include "kernels/feature_map/feature_map_block.h"
#include "kernels/feature_map/feature_map_naive.h"

namespace lc::kernels {
namespace {

constexpr std::array<std::string_view, 6> kNames = {"softmax_dim", "softmax_half", "exp_dim",
                                                    "exp_half",    "relu",         "pos_elu"};

void check(const FeatureMapForward& a) {
    LC_CHECK(a.x.rank() == 4 && a.w.rank() == 3 && a.w.size(1) == a.x.size(3) && a.w.size(0) % a.x.size(1) == 0,
             "feature_map: w must be [H,D,F] with D={} and H a multiple of {}, got x {} and w {}", a.x.size(3),
             a.x.size(1), a.x.shape(), a.w.shape());
    const Shape phi{a.x.size(0), a.w.size(0), a.x.size(2), feature_size(a.activation, a.w.size(2))};
    LC_CHECK(a.phi.shape() == phi, "feature_map: phi must be {}, got {}", phi, a.phi.shape());
    LC_CHECK(
        !a.b || (a.b.rank() == 2 && a.b.size(0) == a.w.size(0) && (a.b.size(1) == 1 || a.b.size(1) == a.w.size(2))),
        "feature_map: b must be [{},1] or [{},{}], got {}", a.w.size(0), a.w.size(0), a.w.size(2), a.b.shape());
    LC_CHECK(!a.skip || a.w.size(2) == a.x.size(3), "feature_map: skip needs F = D, got w {}", a.w.shape());
    LC_CHECK(a.x.device.is_cpu() || (a.w.size(1) <= kFeatureMapMostColumns && a.w.size(2) <= kFeatureMapMostColumns),
             "feature_map: CUDA takes D and F up to {}, got w {}", kFeatureMapMostColumns, a.w.shape());
    require_alike("feature_map", {a.x, a.phi});
    require_wide("feature_map", a.x, {a.w, a.b});
}

constexpr int64_t kRows = 64;  // of a block

// Parallel over batch x heads and blocks of rows.
void forward_fast(const FeatureMapForward& a) {
    const auto x = a.x.as<const float, 4>();
    const auto phi = a.phi.as<float, 4>();
    const int64_t heads = phi.size(1), t_size = phi.size(2), group = heads / x.size(1);
    const int64_t blocks = (t_size + kRows - 1) / kRows;
    parallel_for(phi.size(0) * heads * blocks, 1, [&](int64_t begin, int64_t end) {
        std::vector<float> u(kRows * a.w.size(2));
        for (int64_t item = begin; item < end; ++item) {
            const int64_t b = item / blocks / heads, h = item / blocks % heads, t0 = item % blocks * kRows;
            feature_map_block(feature_map_head<float>(a.w, a.b, h, a.activation, a.skip), &x(b, h / group, t0, 0),
                              x.strides[2], std::min(kRows, t_size - t0), u.data(), &phi(b, h, t0, 0), phi.strides[2]);
        }
    });
}

// The gradients of one batch and one head of x: all heads that read it, in order, so that dx needs no second writer.
// dw and db point to this batch's own sums over its rows.
void backward_head(const FeatureMapBackward& args, int64_t b, int64_t hx, float* dw, float* db) {
    const FeatureMapForward& a = args.forward;
    const auto x = a.x.as<const float, 4>();
    const auto phi = a.phi.as<const float, 4>(), dphi = args.dphi.as<const float, 4>();
    const int64_t d = x.size(3), f = a.w.size(2), size = phi.size(3), group = phi.size(1) / x.size(1);
    std::vector<float> u(kRows * f), du(kRows * f), g(kRows * size);
    for (int64_t t0 = 0; t0 < x.size(2); t0 += kRows) {
        const int64_t rows = std::min(kRows, x.size(2) - t0);
        for (int64_t h = hx * group; h < (hx + 1) * group; ++h) {
            const auto head = feature_map_head<float>(a.w, a.b, h, a.activation, a.skip);
            for (int64_t r = 0; r < rows; ++r)
                for (int64_t j = 0; j < size; ++j) g[r * size + j] = dphi(b, h, t0 + r, j);
            feature_map_project_block(head, &x(b, hx, t0, 0), x.strides[2], rows, u.data());
            FeatureMapBlockGrad<float> out{.dw = dw ? dw + h * d * f : nullptr,
                                           .db = db ? db + h * a.b.size(1) : nullptr};
            if (args.dx) {
                const auto dx = args.dx.view.as<float, 4>();
                out.dx = &dx(b, hx, t0, 0), out.lddx = dx.strides[2];
                out.dx_beta = h > hx * group ? 1.0f : args.dx.beta();
            }
            feature_map_block_backward(head, &x(b, hx, t0, 0), x.strides[2], rows, u.data(), &phi(b, h, t0, 0),
                                       phi.strides[2], g.data(), du.data(), out);
        }
    }
}

// Parallel over batch x heads of x. Each batch has its own dw and db; they are added in the order of the batch.
void backward_fast(const FeatureMapBackward& args) {
    const FeatureMapForward& a = args.forward;
    const int64_t batch = a.x.size(0), heads_x = a.x.size(1);
    const int64_t dw_size = args.dw ? a.w.numel() : 0, db_size = args.db ? a.b.numel() : 0;
    std::vector<float> dw(batch * dw_size), db(batch * db_size);
    parallel_for(batch * heads_x, 1, [&](int64_t begin, int64_t end) {
        for (int64_t item = begin; item < end; ++item) {
            const int64_t b = item / heads_x;
            backward_head(args, b, item % heads_x, dw_size ? &dw[b * dw_size] : nullptr,
                          db_size ? &db[b * db_size] : nullptr);
        }
    });
    store_batch_sum(dw, batch, args.dw);
    store_batch_sum(db, batch, args.db);
}

bool fast_forward_applies(const FeatureMapForward& a) {
    if (!use_fast_cpu(a.x.dtype)) return false;
    const bool fits = is_matrix(a.x) && is_matrix(a.phi) && is_matrix(a.w) && a.w.size(1) > 0 && a.w.size(2) > 0;
    if (!fits) profile_count("fallback feature_map");
    return fits;
}

}  // namespace

std::string_view name_of(FeatureActivation activation) {
    return kNames[static_cast<size_t>(activation)];
}

FeatureActivation feature_activation_from(std::string_view name) {
    if (name == "hedgehog") return FeatureActivation::softmax_dim;
    if (name == "t2r") return FeatureActivation::relu;
    for (size_t i = 0; i < kNames.size(); ++i)
        if (kNames[i] == name) return static_cast<FeatureActivation>(i);
    fail(ErrorKind::Usage, "unknown feature map '{}'; known: hedgehog, t2r, {}", name, fmt::join(kNames, ", "));
}

void feature_map_forward(const FeatureMapForward& args, Stream stream) {
    const ProfileZone zone("feature_map");
    check(args);
    if constexpr (cuda::kBuilt)
        if (on_cuda("feature_map", args.x)) return feature_map_forward_cuda(args, stream);
    if (fast_forward_applies(args)) return forward_fast(args);
    dispatch_compute(args.x.dtype, "feature_map",
                     [&](auto type) { feature_map_forward_naive<typename decltype(type)::type>(args); });
}

void feature_map_backward(const FeatureMapBackward& args, Stream stream) {
    const ProfileZone zone("feature_map backward");
    check(args.forward);
    LC_CHECK(args.dphi.shape() == args.forward.phi.shape(), "feature_map: dphi must be {}, got {}",
             args.forward.phi.shape(), args.dphi.shape());
    require_alike("feature_map", {args.forward.x, args.dphi});
    require_wide("feature_map", args.forward.x, {args.dx.view, args.dw.view, args.db.view});
    if constexpr (cuda::kBuilt)
        if (on_cuda("feature_map", args.dphi)) return feature_map_backward_cuda(args, stream);
    if (fast_forward_applies(args.forward) && (!args.dx || is_matrix(args.dx.view))) return backward_fast(args);
    dispatch_compute(args.dphi.dtype, "feature_map",
                     [&](auto type) { feature_map_backward_naive<typename decltype(type)::type>(args); });
}

}  // namespace lc::kernels
