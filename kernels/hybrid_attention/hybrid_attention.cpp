#include "kernels/hybrid_attention/hybrid_attention.h"

#include "kernels/common/dispatch.h"
#include "kernels/hybrid_attention/hybrid_attention_blocks.h"
#include "kernels/hybrid_attention/hybrid_attention_naive.h"

namespace lc::kernels {
namespace {

void check_map(const TensorView& w, const TensorView& b, std::string_view which, int64_t d, const LinearizedSpec& spec,
               std::string_view op) {
    LC_CHECK(w.rank() == 3 && w.size(1) == d && w.size(2) > 0, "{}: {} must be [H,{},F], got {}", op, which, d,
             w.shape());
    LC_CHECK(!b || (b.rank() == 2 && b.size(0) == w.size(0) && (b.size(1) == 1 || b.size(1) == w.size(2))),
             "{}: the bias of {} must be [{},1] or [{},{}], got {}", op, which, w.size(0), w.size(0), w.size(2),
             b.shape());
    LC_CHECK(!spec.skip || w.size(2) == d, "{}: skip needs F = D, got {} {}", op, which, w.shape());
}

void check_state(const TensorView& s, const TensorView& z, std::string_view which, const HybridAttentionForward& a,
                 std::string_view op) {
    LC_CHECK(static_cast<bool>(s) == static_cast<bool>(z), "{}: {}: s and z come together", op, which);
    if (!s) return;
    const int64_t features = feature_size(a.spec.activation, a.wq.size(2));
    const Shape expected_z{a.q.size(0), a.wk.size(0), features},
        expected_s{a.q.size(0), a.wk.size(0), features, a.q.size(3)};
    LC_CHECK(s.shape() == expected_s && z.shape() == expected_z, "{}: {}: s must be {} and z {}, got {} and {}", op,
             which, expected_s, expected_z, s.shape(), z.shape());
}

bool use_blocks(const HybridAttentionForward& a) {
    if (!use_fast_cpu(a.q.dtype)) return false;
    if (hybrid_blocks_cover(a)) return true;
    profile_count("fallback hybrid_attention");
    return false;
}

}  // namespace

void check_hybrid_attention(const HybridAttentionForward& a, std::string_view op) {
    LC_CHECK(a.q.rank() == 4 && a.k.rank() == 4, "{}: q must be [B,H,T,D] and k [B,H_kv,Tk,D], got {} and {}", op,
             a.q.shape(), a.k.shape());
    const int64_t heads = a.q.size(1), rows = a.q.size(2), d = a.q.size(3), keys = a.k.size(2), w = a.spec.window_size;
    LC_CHECK(
        a.k.size(1) > 0 && heads % a.k.size(1) == 0 && a.k.size(0) == a.q.size(0) && a.k.size(3) == d && keys >= rows,
        "{}: k must be [{},divisor of {},>={},{}], got {}", op, a.q.size(0), heads, rows, d, a.k.shape());
    LC_CHECK(rows > 0 && d > 0, "{}: q must not be empty, got {}", op, a.q.shape());
    LC_CHECK(a.v.shape() == a.k.shape(), "{}: v must be {}, got {}", op, a.k.shape(), a.v.shape());
    LC_CHECK(!a.y || a.y.shape() == a.q.shape(), "{}: y must be {}, got {}", op, a.q.shape(), a.y.shape());
    check_map(a.wq, a.bq, "wq", d, a.spec, op);
    check_map(a.wk, a.bk, "wk", d, a.spec, op);
    LC_CHECK(
        a.wq.size(0) == heads && (a.wk.size(0) == heads || a.wk.size(0) == a.k.size(1)) && a.wk.size(2) == a.wq.size(2),
        "{}: wq must be [{},{},F] and wk [{} or {},{},F], got {} and {}", op, heads, d, heads, a.k.size(1), d,
        a.wq.shape(), a.wk.shape());
    check_state(a.s_in, a.z_in, "state in", a, op);
    check_state(a.s_out, a.z_out, "state out", a, op);
    LC_CHECK(a.spec.window != WindowKind::none || !a.spec.window_only, "{}: window_only without a window", op);
    if (a.spec.window != WindowKind::none) {
        LC_CHECK(w > 0, "{}: the window size must be positive, got {}", op, w);
        LC_CHECK(a.mix_logit && a.mix_logit.shape() == Shape{heads}, "{}: mix_logit must be [{}], got {}", op, heads,
                 a.mix_logit.shape());
    }
    const int64_t begin = state_end(a.spec, a.first_key + keys - rows + 1);
    LC_CHECK(a.first_key >= 0 && (a.spec.window != WindowKind::terraced || a.first_key % w == 0),
             "{}: first_key must be a multiple of the window size {}, got {}", op, w, a.first_key);
    LC_CHECK(a.first_key <= begin, "{}: the first query's window begins at position {}, the keys only at {}", op, begin,
             a.first_key);
    LC_CHECK(a.first_key == 0 || a.s_in || a.spec.window_only,
             "{}: the keys begin at position {}, so the state over the positions before must be given", op,
             a.first_key);
    require_alike(op, {a.q, a.k, a.v, a.y});
    require_wide(op, a.q, {a.wq, a.bq, a.wk, a.bk, a.mix_logit, a.s_in, a.z_in, a.s_out, a.z_out});
}

void hybrid_attention_forward(const HybridAttentionForward& args, Stream stream) {
    check_hybrid_attention(args, "hybrid_attention");
    const ProfileZone zone("hybrid_attention");
    if constexpr (cuda::kBuilt)
        if (on_cuda("hybrid_attention", args.q)) return hybrid_attention_forward_cuda(args, stream);
    require_cpu(args.q, "hybrid_attention");
    if (use_blocks(args)) return hybrid_attention_forward_blocks(args);
    dispatch_compute(args.q.dtype, "hybrid_attention",
                     [&](auto type) { hybrid_attention_forward_naive<typename decltype(type)::type>(args); });
}

void hybrid_attention_backward(const HybridAttentionBackward& args, Stream stream) {
    check_hybrid_attention(args.forward, "hybrid_attention");
    LC_CHECK(args.dy.shape() == args.forward.q.shape(), "hybrid_attention: dy must be {}, got {}",
             args.forward.q.shape(), args.dy.shape());
    require_alike("hybrid_attention", {args.forward.q, args.dy});
    require_wide("hybrid_attention", args.forward.q,
                 {args.ds_out, args.dz_out, args.dq.view, args.dk.view, args.dv.view, args.dwq.view, args.dbq.view,
                  args.dwk.view, args.dbk.view, args.dmix_logit.view, args.ds_in.view, args.dz_in.view});
    const ProfileZone zone("hybrid_attention backward");
    if constexpr (cuda::kBuilt)
        if (on_cuda("hybrid_attention", args.forward.q)) return hybrid_attention_backward_cuda(args, stream);
    require_cpu(args.forward.q, "hybrid_attention");
    if (use_blocks(args.forward)) return hybrid_attention_backward_blocks(args);
    dispatch_compute(args.forward.q.dtype, "hybrid_attention",
                     [&](auto type) { hybrid_attention_backward_naive<typename decltype(type)::type>(args); });
}

}  // namespace lc::kernels
