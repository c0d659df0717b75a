#include "kernels/hybrid_decode/hybrid_decode.h"

#include "core/allocator.h"
#include "kernels/common/dispatch.h"
#include "kernels/hybrid_decode/hybrid_decode_naive.h"

namespace lc::kernels {
namespace {

void check(const HybridDecode& a) {
    LC_CHECK(a.q.rank() == 4 && a.q.size(2) == 1, "hybrid_decode: q must be [B,H,1,D], got {}", a.q.shape());
    const int64_t batch = a.q.size(0), heads = a.q.size(1), d = a.q.size(3), w = a.spec.window_size;
    LC_CHECK(a.k.rank() == 4 && a.k.size(1) > 0 && heads % a.k.size(1) == 0,
             "hybrid_decode: k must be [{},divisor of {},1,{}], got {}", batch, heads, d, a.k.shape());
    const int64_t kv_heads = a.k.size(1);
    const Shape kv{batch, kv_heads, 1, d};
    LC_CHECK(a.k.shape() == kv && a.v.shape() == kv, "hybrid_decode: k and v must be {}, got {} and {}", kv,
             a.k.shape(), a.v.shape());
    LC_CHECK(a.y.shape() == a.q.shape(), "hybrid_decode: y must be {}, got {}", a.q.shape(), a.y.shape());
    LC_CHECK(a.wq.rank() == 3 && a.wq.size(0) == heads && a.wq.size(1) == d,
             "hybrid_decode: wq must be [{},{},F], got {}", heads, d, a.wq.shape());
    const int64_t f = a.wq.size(2), features = feature_size(a.spec.activation, f);
    LC_CHECK(a.wk.rank() == 3 && (a.wk.size(0) == heads || a.wk.size(0) == kv_heads) && a.wk.size(1) == d &&
                 a.wk.size(2) == f,
             "hybrid_decode: wk must be [{} or {},{},{}], got {}", heads, kv_heads, d, f, a.wk.shape());
    LC_CHECK(!a.spec.skip || f == d, "hybrid_decode: skip needs F = D, got {}", a.wq.shape());
    for (const auto& [bias, maps] : {std::pair{a.bq, heads}, {a.bk, a.wk.size(0)}})
        LC_CHECK(!bias || (bias.rank() == 2 && bias.size(0) == maps && (bias.size(1) == 1 || bias.size(1) == f)),
                 "hybrid_decode: a bias must be [{},1] or [{},{}], got {}", maps, maps, f, bias.shape());
    const Shape z{batch, a.wk.size(0), features}, s{batch, a.wk.size(0), features, d};
    LC_CHECK(a.s.shape() == s && a.z.shape() == z, "hybrid_decode: s must be {} and z {}, got {} and {}", s, z,
             a.s.shape(), a.z.shape());
    LC_CHECK(a.positions.dtype == DType::i64 && a.positions.shape() == Shape{batch} &&
                 a.positions.device == a.q.device && (batch <= 1 || a.positions.stride(0) == 1),
             "hybrid_decode: positions must be [{}] of i64 beside q, dense, got {} of {}", batch, a.positions.shape(),
             name_of(a.positions.dtype));
    const bool windowed = a.spec.window != WindowKind::none;
    LC_CHECK(static_cast<bool>(a.ring_k) == windowed && static_cast<bool>(a.ring_v) == windowed,
             "hybrid_decode: a ring is given exactly when there is a window");
    if (windowed) {
        const Shape ring{batch, kv_heads, a.spec.window == WindowKind::terraced ? 2 * w : w, d};
        LC_CHECK(w > 0 && a.ring_k.shape() == ring && a.ring_v.shape() == ring,
                 "hybrid_decode: rings must be {}, got {} and {}", ring, a.ring_k.shape(), a.ring_v.shape());
        LC_CHECK(a.mix_logit && a.mix_logit.shape() == Shape{heads}, "hybrid_decode: mix_logit must be [{}], got {}",
                 heads, a.mix_logit.shape());
    }
    require_alike("hybrid_decode", {a.q, a.k, a.v, a.ring_k, a.ring_v, a.y});
    require_wide("hybrid_decode", a.q, {a.wq, a.bq, a.wk, a.bk, a.mix_logit});
    LC_CHECK(a.s.dtype == a.z.dtype && a.s.device == a.q.device && a.z.device == a.q.device &&
                 (a.s.dtype == statistics_dtype(a.q.dtype) || a.s.dtype == DType::bf16),
             "hybrid_decode: s and z must be {} or bf16 beside q, got {} and {}", name_of(statistics_dtype(a.q.dtype)),
             name_of(a.s.dtype), name_of(a.z.dtype));
}

// The fast form reads rows where they lie.
bool fast_form_covers(const HybridDecode& a) {
    for (const TensorView& view : {a.q, a.k, a.v, a.wq, a.wk, a.s, a.z, a.y, a.ring_k, a.ring_v}) {
        if (!view) continue;
        if (view.stride(-1) != 1 && view.size(-1) != 1) return false;
        if (view.size(-2) > 1 && view.stride(-2) < view.size(-1)) return false;
    }
    return true;
}

// A dense copy of x in `dtype`, in memory that lasts as long as `block`.
TensorView copy_of(const TensorView& x, DType dtype, Stream stream, std::shared_ptr<std::byte>& block) {
    block = allocator(x.device).allocate(x.numel() * size_of(dtype), stream);
    const TensorView copy{block.get(), Layout::contiguous(x.shape()), dtype, x.device};
    copy_strided(x, copy);
    return copy;
}

// For forms that compute on wide states only: on copies of narrow ones. What no step folds keeps its bits there and back.
void on_wide_states(const HybridDecode& args, Stream stream) {
    std::shared_ptr<std::byte> s, z;
    HybridDecode on_copies = args;
    on_copies.s = copy_of(args.s, statistics_dtype(args.q.dtype), stream, s);
    on_copies.z = copy_of(args.z, statistics_dtype(args.q.dtype), stream, z);
    hybrid_decode(on_copies, stream);
    copy_strided(on_copies.s, args.s), copy_strided(on_copies.z, args.z);
}

}  // namespace

void hybrid_decode(const HybridDecode& args, Stream stream) {
    check(args);
    const bool narrow = args.s.dtype == DType::bf16;
    if (narrow && args.q.device.is_cpu()) return on_wide_states(args, stream);
    const ProfileZone zone("hybrid_decode");
    if constexpr (cuda::kBuilt)
        if (on_cuda("hybrid_decode", args.q)) {
            if (args.q.size(0) == 0 || hybrid_decode_sm90(args, stream) || hybrid_decode_packed(args, stream)) return;
            profile_count("fallback hybrid_decode");
            return narrow ? on_wide_states(args, stream) : hybrid_decode_cuda(args, stream);
        }
    require_cpu(args.q, "hybrid_decode");
    if (use_fast_cpu(args.q.dtype)) {
        if (fast_form_covers(args)) return hybrid_decode_fast(args);
        profile_count("fallback hybrid_decode");
    }
    dispatch_compute(args.q.dtype, "hybrid_decode",
                     [&](auto type) { hybrid_decode_naive<typename decltype(type)::type>(args); });
}

}  // namespace lc::kernels
