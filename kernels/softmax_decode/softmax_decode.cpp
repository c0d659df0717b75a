#include "kernels/softmax_decode/softmax_decode.h"

#include "core/parallel.h"
#include "kernels/common/dispatch.h"
#include "kernels/softmax_attention/softmax_attention.h"
#include "kernels/softmax_decode/softmax_decode_naive.h"

namespace lc::kernels {
namespace {

void check(const SoftmaxDecode& a) {
    LC_CHECK(a.q.rank() == 4 && a.q.size(2) == 1, "softmax_decode: q must be [B,H,1,D], got {}", a.q.shape());
    const int64_t batch = a.q.size(0), heads = a.q.size(1), d = a.q.size(3);
    LC_CHECK(a.k.rank() == 4 && a.k.size(1) > 0 && heads % a.k.size(1) == 0,
             "softmax_decode: k must be [{},divisor of {},1,{}], got {}", batch, heads, d, a.k.shape());
    const Shape kv{batch, a.k.size(1), 1, d};
    LC_CHECK(a.k.shape() == kv && a.v.shape() == kv && a.y.shape() == a.q.shape(),
             "softmax_decode: k and v must be {}, y {}, got {}, {} and {}", kv, a.q.shape(), a.k.shape(), a.v.shape(),
             a.y.shape());
    const Shape memory{batch, a.k.size(1), a.keys.rank() == 4 ? a.keys.size(2) : 0, d};
    LC_CHECK(a.keys.shape() == memory && a.values.shape() == memory && memory[2] >= 1,
             "softmax_decode: keys and values must be [{},{},C,{}], got {} and {}", batch, a.k.size(1), d,
             a.keys.shape(), a.values.shape());
    LC_CHECK(a.positions.dtype == DType::i64 && a.positions.shape() == Shape{batch} &&
                 a.positions.device == a.q.device && (batch <= 1 || a.positions.stride(0) == 1),
             "softmax_decode: positions must be [{}] of i64 beside q, dense, got {} of {}", batch, a.positions.shape(),
             name_of(a.positions.dtype));
    LC_CHECK(a.q.device.is_cpu() || d <= 512, "softmax_decode: CUDA takes heads of at most 512, got {}", d);
    LC_CHECK(a.window >= 0, "softmax_decode: window {}", a.window);
    require_alike("softmax_decode", {a.q, a.k, a.v, a.keys, a.values, a.y});
}

TensorView part(const TensorView& x, int64_t b, int64_t first, int64_t length) {
    TensorView view = x;
    view.layout = view.layout.slice(0, b, 1).slice(2, first, length);
    return view;
}

// Each sequence's row through softmax_attention's fast form.
void softmax_decode_fast(const SoftmaxDecode& a, Stream stream) {
    const auto attend = [&](int64_t b) {
        const int64_t position = a.positions.as<const int64_t, 1>()(b);
        if (position < 0) return fill_strided(part(a.y, b, 0, 1), 0);
        softmax_decode_append_naive<float>(a, b, position);
        const int64_t first = SoftmaxDecode::first_seen(position, a.window);
        softmax_attention_forward({.q = part(a.q, b, 0, 1),
                                   .k = part(a.keys, b, first, position + 1 - first),
                                   .v = part(a.values, b, first, position + 1 - first),
                                   .y = part(a.y, b, 0, 1),
                                   .lse = {}},
                                  stream);
    };
    const int64_t batch = a.q.size(0);
    if (batch == 1) return attend(0);  // on all threads
    parallel_for(batch, 1, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b) attend(b);
    });
}

}  // namespace

void softmax_decode(const SoftmaxDecode& args, Stream stream) {
    check(args);
    const ProfileZone zone("softmax_decode");
    if constexpr (cuda::kBuilt)
        if (on_cuda("softmax_decode", args.q)) return softmax_decode_cuda(args, stream);
    require_cpu(args.q, "softmax_decode");
    const auto positions = args.positions.as<const int64_t, 1>();
    for (int64_t b = 0; b < args.q.size(0); ++b)
        LC_CHECK(positions(b) < args.keys.size(2), "softmax_decode: position {} in a memory of {}", positions(b),
                 args.keys.size(2));
    if (use_fast_cpu(args.q.dtype)) return softmax_decode_fast(args, stream);
    dispatch_compute(args.q.dtype, "softmax_decode",
                     [&](auto type) { softmax_decode_naive<typename decltype(type)::type>(args); });
}

}  // namespace lc::kernels
