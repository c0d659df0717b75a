#include "kernels/linear_attention/linear_attention.h"

#include "kernels/common/dispatch.h"
#include "kernels/linear_attention/linear_attention_chunked.h"
#include "kernels/linear_attention/linear_attention_naive.h"

namespace lc::kernels {
namespace {

void check_map(const TensorView& w, const TensorView& b, std::string_view which, const LinearAttentionForward& a) {
    LC_CHECK(w.rank() == 3 && w.size(1) == a.q.size(3) && w.size(2) > 0,
             "linear_attention: {} must be [H,{},F], got {}", which, a.q.size(3), w.shape());
    LC_CHECK(!b || (b.rank() == 2 && b.size(0) == w.size(0) && (b.size(1) == 1 || b.size(1) == w.size(2))),
             "linear_attention: the bias of {} must be [{},1] or [{},{}], got {}", which, w.size(0), w.size(0),
             w.size(2), b.shape());
    LC_CHECK(!a.skip || w.size(2) == w.size(1), "linear_attention: skip needs F = D, got {} {}", which, w.shape());
}

void check_state(const TensorView& s, const TensorView& z, std::string_view which, const LinearAttentionForward& a) {
    LC_CHECK(static_cast<bool>(s) == static_cast<bool>(z), "linear_attention: {}: s and z come together", which);
    if (!s) return;
    const int64_t features = feature_size(a.activation, a.wq.size(2));
    const Shape expected_z{a.q.size(0), a.wk.size(0), features};
    const Shape expected_s{a.q.size(0), a.wk.size(0), features, a.q.size(3)};
    LC_CHECK(s.shape() == expected_s && z.shape() == expected_z,
             "linear_attention: {}: s must be {} and z {}, got {} and {}", which, expected_s, expected_z, s.shape(),
             z.shape());
}

void check(const LinearAttentionForward& a) {
    LC_CHECK(a.q.rank() == 4 && a.k.rank() == 4 && a.k.shape() == a.v.shape(),
             "linear_attention: q must be [B,H,T,D], k and v [B,H_kv,T,D], got {}, {} and {}", a.q.shape(), a.k.shape(),
             a.v.shape());
    const int64_t heads = a.q.size(1), kv_heads = a.k.size(1);
    const Shape keys{a.q.size(0), kv_heads, a.q.size(2), a.q.size(3)};
    LC_CHECK(a.k.shape() == keys && kv_heads > 0 && heads % kv_heads == 0 && a.q.size(3) > 0,
             "linear_attention: k must be [{},divisor of {},{},{}], got {}", a.q.size(0), heads, a.q.size(2),
             a.q.size(3), a.k.shape());
    LC_CHECK(a.y.shape() == a.q.shape(), "linear_attention: y must be {}, got {}", a.q.shape(), a.y.shape());
    check_map(a.wq, a.bq, "wq", a);
    check_map(a.wk, a.bk, "wk", a);
    LC_CHECK(
        a.wq.size(0) == heads && (a.wk.size(0) == heads || a.wk.size(0) == kv_heads) && a.wk.size(2) == a.wq.size(2),
        "linear_attention: wq must be [{},{},F] and wk [{} or {},{},F], got {} and {}", heads, a.q.size(3), heads,
        kv_heads, a.q.size(3), a.wq.shape(), a.wk.shape());
    check_state(a.s_in, a.z_in, "state in", a);
    check_state(a.s_out, a.z_out, "state out", a);
    require_alike("linear_attention", {a.q, a.k, a.v, a.y});
    require_wide("linear_attention", a.q, {a.wq, a.bq, a.wk, a.bk, a.s_in, a.z_in, a.s_out, a.z_out});
}

bool fast_applies(const LinearAttentionForward& a) {
    if (!use_fast_cpu(a.q.dtype)) return false;
    const bool fits = is_matrix(a.q) && is_matrix(a.k) && is_matrix(a.v) && is_matrix(a.wq) && is_matrix(a.wk);
    if (!fits) profile_count("fallback linear_attention");
    return fits;
}

// Maps of q and k, the products with the state, and the triangle inside a chunk.
double forward_flops(const LinearAttentionForward& a) {
    const double rows = static_cast<double>(a.q.size(0)) * a.q.size(2), d = static_cast<double>(a.q.size(3));
    const double f = static_cast<double>(a.wq.size(2));
    const double features = static_cast<double>(feature_size(a.activation, a.wq.size(2)));
    const double a_query = 2 * d * f + 2 * features * d + 2 * (features + d) * kLinearChunk;
    return rows * (a.q.size(1) * a_query + a.wk.size(0) * (2 * d * f + 2 * features * d));
}

double input_bytes(const LinearAttentionForward& a) {
    return static_cast<double>(size_of(a.q.dtype)) * (2.0 * a.q.numel() + 2.0 * a.k.numel());
}

}  // namespace

void linear_attention_forward(const LinearAttentionForward& args, Stream stream) {
    check(args);
    const ProfileZone zone("linear_attention_forward", forward_flops(args), input_bytes(args));
    if constexpr (cuda::kBuilt)
        if (on_cuda("linear_attention", args.q)) return linear_attention_forward_cuda(args, stream);
    require_cpu(args.q, "linear_attention");
    if (fast_applies(args)) return linear_attention_forward_chunked<float>(args);
    dispatch_compute(args.q.dtype, "linear_attention",
                     [&](auto type) { linear_attention_forward_naive<typename decltype(type)::type>(args); });
}

void linear_attention_backward(const LinearAttentionBackward& args, Stream stream) {
    check(args.forward);
    LC_CHECK(args.dy.shape() == args.forward.q.shape(), "linear_attention: dy must be {}, got {}",
             args.forward.q.shape(), args.dy.shape());
    require_alike("linear_attention", {args.forward.q, args.dy});
    require_wide("linear_attention", args.forward.q,
                 {args.ds_out, args.dz_out, args.dq.view, args.dk.view, args.dv.view, args.dwq.view, args.dbq.view,
                  args.dwk.view, args.dbk.view, args.ds_in.view, args.dz_in.view});
    const ProfileZone zone("linear_attention_backward", 2.5 * forward_flops(args.forward),
                           2 * input_bytes(args.forward));
    if constexpr (cuda::kBuilt)
        if (on_cuda("linear_attention", args.forward.q)) return linear_attention_backward_cuda(args, stream);
    require_cpu(args.forward.q, "linear_attention");
    if (fast_applies(args.forward)) return linear_attention_backward_chunked<float>(args);
    dispatch_compute(args.forward.q.dtype, "linear_attention",
                     [&](auto type) { linear_attention_backward_naive<typename decltype(type)::type>(args); });
}

}  // namespace lc::kernels
