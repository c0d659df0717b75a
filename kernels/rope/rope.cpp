#include "kernels/rope/rope.h"

#include "kernels/common/dispatch.h"
#include "kernels/rope/rope_naive.h"

namespace lc::kernels {
namespace {

bool row_is_contiguous(const TensorView& view) {
    return view.stride(-1) == 1;
}

template <bool kAccumulate>
void rotate_row(const float* x, const float* cos, const float* sin, float direction, int64_t half, int64_t size,
                float* out) {
    for (int64_t i = 0; i < half; ++i) {
        const float s = direction * sin[i];
        const float low = x[i] * cos[i] - x[i + half] * s, high = x[i + half] * cos[i] + x[i] * s;
        out[i] = kAccumulate ? out[i] + low : low;
        out[i + half] = kAccumulate ? out[i + half] + high : high;
    }
    for (int64_t i = 2 * half; i < size; ++i) out[i] = kAccumulate ? out[i] + x[i] : x[i];
}

// Parallel over (b, t), heads innermost: [B,T,H,D] storage is walked in order and a table row is read once a position.
void rotate_fast(const TensorView& x_view, const TensorView& cos_view, const TensorView& sin_view, int64_t first,
                 const TensorView& positions, float direction, const GradSlot& slot) {
    const auto x = x_view.as<const float, 4>();
    const auto cos = cos_view.as<const float, 2>(), sin = sin_view.as<const float, 2>();
    const auto out = slot.view.as<float, 4>();
    const int64_t heads = x.size(1), length = x.size(2), half = cos.size(1), size = x.size(3);
    const int64_t grain = std::max<int64_t>(1, 8192 / std::max<int64_t>(heads * size, 1));
    parallel_for(x.size(0) * length, grain, [&](int64_t begin, int64_t end) {
        for (int64_t item = begin; item < end; ++item) {
            const int64_t b = item / length, t = item % length, row = first_row(positions, first, b) + t;
            const float *c = &cos(row, 0), *s = &sin(row, 0);
            for (int64_t h = 0; h < heads; ++h) {
                if (slot.accumulate())
                    rotate_row<true>(&x(b, h, t, 0), c, s, direction, half, size, &out(b, h, t, 0));
                else
                    rotate_row<false>(&x(b, h, t, 0), c, s, direction, half, size, &out(b, h, t, 0));
            }
        }
    });
}

void check(const TensorView& x, const TensorView& cos, const TensorView& sin, const TensorView& y, int64_t first,
           const TensorView& positions) {
    LC_CHECK(x.rank() == 4 && x.size(3) % 2 == 0, "rope: x must be [B,H,T,D] with even D, got {}", x.shape());
    LC_CHECK(cos.rank() == 2 && cos.shape() == sin.shape() && cos.size(1) >= 1 && cos.size(1) <= x.size(3) / 2,
             "rope: cos and sin must be [P,R/2] with R at most {}, got {} and {}", x.size(3), cos.shape(), sin.shape());
    LC_CHECK(!positions || (positions.dtype == DType::i64 && positions.shape() == Shape{x.size(0)} &&
                            positions.device == x.device && positions.layout.is_contiguous()),
             "rope: positions must be [{}] of i64 beside x, dense, got {} of {}", x.size(0), positions.shape(),
             name_of(positions.dtype));
    for (int64_t b = 0; b < (positions && x.device.is_cuda() ? 0 : x.size(0)); ++b) {
        const int64_t row = first_row(positions, first, b);
        LC_CHECK(row >= 0 && row + x.size(2) <= cos.size(0),
                 "rope: positions [{},{}) are outside tables of {} positions", row, row + x.size(2), cos.size(0));
    }
    LC_CHECK(!y || y.shape() == x.shape(), "rope: y must be {}, got {}", x.shape(), y.shape());
    require_wide("rope", x, {cos, sin});
}

bool fast_covers(const TensorView& x, const TensorView& cos, const TensorView& sin, const TensorView& y) {
    return use_fast_cpu(x.dtype) && row_is_contiguous(x) && row_is_contiguous(cos) && row_is_contiguous(sin) &&
           row_is_contiguous(y);
}

}  // namespace

void rope_forward(const RopeForward& args, Stream stream) {
    const ProfileZone zone("rope");
    check(args.x, args.cos, args.sin, args.y, args.first, args.positions);
    require_alike("rope", {args.x, args.y});
    if constexpr (cuda::kBuilt)
        if (on_cuda("rope", args.x)) return rope_forward_cuda(args, stream);
    if (fast_covers(args.x, args.cos, args.sin, args.y))
        return rotate_fast(args.x, args.cos, args.sin, args.first, args.positions, 1.0f, {args.y});
    dispatch_compute(args.x.dtype, "rope", [&](auto type) { rope_forward_naive<typename decltype(type)::type>(args); });
}

void rope_backward(const RopeBackward& args, Stream stream) {
    const ProfileZone zone("rope backward");
    if (!args.dx) return;
    check(args.dy, args.cos, args.sin, args.dx.view, args.first, args.positions);
    require_wide("rope", args.dy, {args.dx.view});
    if constexpr (cuda::kBuilt)
        if (on_cuda("rope", args.dy)) return rope_backward_cuda(args, stream);
    if (fast_covers(args.dy, args.cos, args.sin, args.dx.view))
        return rotate_fast(args.dy, args.cos, args.sin, args.first, args.positions, -1.0f, args.dx);
    dispatch_compute(args.dy.dtype, "rope",
                     [&](auto type) { rope_backward_naive<typename decltype(type)::type>(args); });
}

}  // namespace lc::kernels
