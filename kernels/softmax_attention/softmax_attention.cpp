#include "kernels/softmax_attention/softmax_attention.h"

#include "kernels/common/cuda/hopper.h"
#include "kernels/common/dispatch.h"
#include "kernels/softmax_attention/softmax_attention_cpu.h"
#include "kernels/softmax_attention/softmax_attention_naive.h"

namespace lc::kernels {
namespace {

void check(const SoftmaxAttentionForward& a) {
    LC_CHECK(a.q.rank() == 4 && a.k.rank() == 4 && a.k.shape() == a.v.shape(),
             "softmax_attention: q must be [B,H,T,D], k and v [B,H_kv,Tk,D], got {}, {} and {}", a.q.shape(),
             a.k.shape(), a.v.shape());
    LC_CHECK(a.k.size(0) == a.q.size(0) && a.k.size(3) == a.q.size(3) && a.k.size(2) >= a.q.size(2) &&
                 a.k.size(1) > 0 && a.q.size(1) % a.k.size(1) == 0,
             "softmax_attention: k must be [{},H_kv,Tk,{}] with H_kv dividing {} and Tk >= {}, got {}", a.q.size(0),
             a.q.size(3), a.q.size(1), a.q.size(2), a.k.shape());
    LC_CHECK(a.y.shape() == a.q.shape(), "softmax_attention: y must be {}, got {}", a.q.shape(), a.y.shape());
    const Shape rows{a.q.size(0), a.q.size(1), a.q.size(2)};
    LC_CHECK(!a.lse || a.lse.shape() == rows, "softmax_attention: lse must be {}, got {}", rows, a.lse.shape());
    LC_CHECK(a.q.device.is_cpu() || a.q.size(3) <= 512, "softmax_attention: CUDA takes heads of at most 512, got {}",
             a.q.size(3));
    require_alike("softmax_attention", {a.q, a.k, a.v, a.y});
    require_wide("softmax_attention", a.q, {a.lse});
    LC_CHECK(a.window >= 0, "softmax_attention: window must be at least 1, or 0 for none, got {}", a.window);
}

// A window that reaches back to the first key hides none.
SoftmaxAttentionForward without_idle_window(SoftmaxAttentionForward a) {
    if (a.window >= a.k.size(2)) a.window = 0;
    return a;
}

bool fast_applies(const SoftmaxAttentionForward& a) {
    if (!use_fast_cpu(a.q.dtype)) return false;
    const bool fits = is_matrix(a.k) && is_matrix(a.v) && a.q.size(3) > 0;
    if (!fits) profile_count("fallback softmax_attention");
    return fits;
}

// The tensor-core form takes bf16 heads of 64 or 128 in aligned rows.
bool mma_applies(const SoftmaxAttentionForward& a, std::initializer_list<TensorView> more) {
    bool fits = a.q.dtype == DType::bf16 && (a.q.size(3) == 64 || a.q.size(3) == 128);
    for (const TensorView& view : {a.q, a.k, a.v}) fits = fits && has_dense_rows(view);
    for (const TensorView& view : more) fits = fits && has_dense_rows(view);
    if (!fits) profile_count("fallback softmax_attention");
    return fits;
}

// Two products of a query with each key it sees.
double forward_flops(const SoftmaxAttentionForward& a) {
    const auto triangle = [](int64_t n) {
        return n > 0 ? static_cast<double>(n) * static_cast<double>(n + 1) / 2 : 0.0;
    };
    const int64_t keys = a.k.size(2), cached = keys - a.q.size(2), hidden = a.window > 0 ? a.window : keys;
    const double pairs = triangle(keys) - triangle(cached) - (triangle(keys - hidden) - triangle(cached - hidden));
    return 4.0 * a.q.size(0) * a.q.size(1) * a.q.size(3) * pairs;
}

double input_bytes(const SoftmaxAttentionForward& a) {
    return static_cast<double>(size_of(a.q.dtype)) * (2.0 * a.q.numel() + 2.0 * a.k.numel());
}

}  // namespace

void softmax_attention_forward(const SoftmaxAttentionForward& given, Stream stream) {
    check(given);
    const SoftmaxAttentionForward args = without_idle_window(given);
    const ProfileZone zone("softmax_attention_forward", forward_flops(args), input_bytes(args));
    if constexpr (cuda::kBuilt)
        if (on_cuda("softmax_attention", args.q)) {
            if (!mma_applies(args, {args.y})) return softmax_attention_forward_cuda(args, stream);
            if (!hopper_applies({args.q, args.k, args.v, args.y})) return softmax_attention_forward_mma(args, stream);
            return softmax_attention_forward_sm90(args, stream);
        }
    if (fast_applies(args)) return softmax_attention_forward_cpu(args);
    dispatch_compute(args.q.dtype, "softmax_attention",
                     [&](auto type) { softmax_attention_forward_naive<typename decltype(type)::type>(args); });
}

void softmax_attention_backward(const SoftmaxAttentionBackward& given, Stream stream) {
    check(given.forward);
    SoftmaxAttentionBackward args = given;
    args.forward = without_idle_window(given.forward);
    LC_CHECK(args.forward.lse && args.dy.shape() == args.forward.q.shape(),
             "softmax_attention: the backward needs lse and dy of shape {}, got dy {}", args.forward.q.shape(),
             args.dy.shape());
    require_alike("softmax_attention", {args.forward.q, args.dy});
    require_wide("softmax_attention", args.dy, {args.dq.view, args.dk.view, args.dv.view});
    const ProfileZone zone("softmax_attention_backward", 2.5 * forward_flops(args.forward),
                           2 * input_bytes(args.forward));
    if constexpr (cuda::kBuilt)
        if (on_cuda("softmax_attention", args.dy)) {
            const SoftmaxAttentionForward& f = args.forward;
            if (!mma_applies(f, {f.y, args.dy})) return softmax_attention_backward_cuda(args, stream);
            if (!hopper_applies({f.q, f.k, f.v, args.dy})) return softmax_attention_backward_mma(args, stream);
            return softmax_attention_backward_sm90(args, stream);
        }
    if (fast_applies(args.forward)) return softmax_attention_backward_cpu(args);
    dispatch_compute(args.dy.dtype, "softmax_attention",
                     [&](auto type) { softmax_attention_backward_naive<typename decltype(type)::type>(args); });
}

}  // namespace lc::kernels
