#include "kernels/layer_norm/layer_norm.h"

#include "kernels/common/dispatch.h"
#include "kernels/common/lane_sum.h"
#include "kernels/layer_norm/layer_norm_naive.h"

namespace lc::kernels {
namespace {

// Rows a parallel piece holds at least: enough work to pay for handing it out.
int64_t row_grain(int64_t columns) {
    return std::max<int64_t>(1, 8192 / std::max<int64_t>(columns, 1));
}

void forward_fast(const LayerNormForward& args) {
    const InRows<float> x(args.x);
    const FlatInput<float> weight(args.weight), bias(args.bias);
    const OutRows<float> y(args.y);
    float *means = args.mean.data<float>(), *rstds = args.rstd.data<float>();
    const int64_t d = x.columns;
    const float columns = static_cast<float>(d), eps = static_cast<float>(args.eps);
    parallel_for(x.rows, row_grain(d), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
            const float *s = x.row(r), *w = weight.data(), *b = bias.data();
            const float mean = lane_sum(d, [s](int64_t c) { return s[c]; }) / columns;
            const float squares = lane_sum(d, [=](int64_t c) { return (s[c] - mean) * (s[c] - mean); });
            const float rstd = 1 / std::sqrt(squares / columns + eps);
            float* out = y.row(r);
            for (int64_t c = 0; c < d; ++c) out[c] = (s[c] - mean) * rstd * w[c] + b[c];
            means[r] = mean, rstds[r] = rstd;
        }
    });
    y.finish();
}

void backward_rows(const LayerNormBackward& args, const Rows<const float>& x, const Rows<const float>& dy,
                   const OutRows<float>& dx) {
    const FlatInput<float> weight(args.weight);
    const float *means = args.mean.data<float>(), *rstds = args.rstd.data<float>();
    const int64_t d = x.columns;
    parallel_for(x.rows, row_grain(d), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
            const float *s = x.row(r), *g = dy.row(r), *w = weight.data();
            const float mean = means[r], rstd = rstds[r];
            const float mean_g = lane_sum(d, [=](int64_t c) { return g[c] * w[c]; }) / static_cast<float>(d);
            const float mean_gh =
                lane_sum(d, [=](int64_t c) { return g[c] * w[c] * (s[c] - mean); }) * rstd / static_cast<float>(d);
            float* out = dx.row(r);
            const auto ds = [=](int64_t c) { return rstd * (g[c] * w[c] - mean_g - (s[c] - mean) * rstd * mean_gh); };
            if (dx.beta() != 0)
                for (int64_t c = 0; c < d; ++c) out[c] += ds(c);
            else
                for (int64_t c = 0; c < d; ++c) out[c] = ds(c);
        }
    });
}

// Each thread owns some columns and walks all rows in order: the bits do not depend on the number of threads.
void backward_weight(const LayerNormBackward& args, const Rows<const float>& x, const Rows<const float>& dy,
                     const OutRows<float>& dweight) {
    const float *means = args.mean.data<float>(), *rstds = args.rstd.data<float>();
    parallel_for(x.columns, 64, [&](int64_t begin, int64_t end) {
        std::vector<float> sum(static_cast<size_t>(end - begin));
        for (int64_t r = 0; r < x.rows; ++r) {
            const float *s = x.row(r) + begin, *g = dy.row(r) + begin;
            for (int64_t c = 0; c < end - begin; ++c) sum[c] += g[c] * (s[c] - means[r]) * rstds[r];
        }
        for (int64_t c = begin; c < end; ++c) dweight.put(0, c, sum[c - begin]);
    });
}

void backward_fast(const LayerNormBackward& args) {
    const InRows<float> x(args.x), dy(args.dy);
    const OutRows<float> dx(args.dx), dweight(args.dweight), dbias(args.dbias);
    if (dx) backward_rows(args, x, dy, dx);
    if (dweight) backward_weight(args, x, dy, dweight);
    if (dbias) sum_rows(dy, dbias);
    dx.finish(), dweight.finish(), dbias.finish();
}

}  // namespace

void layer_norm_forward(const LayerNormForward& args, Stream stream) {
    const ProfileZone zone("layer_norm");
    const Shape width{args.x.rank() ? args.x.size(-1) : 0};
    LC_CHECK(args.x.rank() >= 1 && args.weight.shape() == width && args.bias.shape() == width,
             "layer_norm: weight and bias must be {}, got x {}, weight {} and bias {}", width, args.x.shape(),
             args.weight.shape(), args.bias.shape());
    const int64_t rows = row_count(args.x.shape());
    LC_CHECK(args.y.shape() == args.x.shape() && args.mean.numel() == rows && args.rstd.numel() == rows,
             "layer_norm: y must be {}, mean and rstd [{}], got {}, {} and {}", args.x.shape(), rows, args.y.shape(),
             args.mean.shape(), args.rstd.shape());
    require_alike("layer_norm", {args.x, args.y});
    require_wide("layer_norm", args.x, {args.weight, args.bias, args.mean, args.rstd});
    if constexpr (cuda::kBuilt)
        if (on_cuda("layer_norm", args.x)) return layer_norm_forward_cuda(args, stream);
    if (use_fast_cpu(args.x.dtype)) return forward_fast(args);
    dispatch_compute(args.x.dtype, "layer_norm",
                     [&](auto type) { layer_norm_forward_naive<typename decltype(type)::type>(args); });
}

void layer_norm_backward(const LayerNormBackward& args, Stream stream) {
    const ProfileZone zone("layer_norm backward");
    LC_CHECK(args.dy.shape() == args.x.shape(), "layer_norm: dy must be {}, got {}", args.x.shape(), args.dy.shape());
    require_alike("layer_norm", {args.x, args.dy});
    require_wide("layer_norm", args.x,
                 {args.weight, args.mean, args.rstd, args.dx.view, args.dweight.view, args.dbias.view});
    if constexpr (cuda::kBuilt)
        if (on_cuda("layer_norm", args.x)) return layer_norm_backward_cuda(args, stream);
    if (use_fast_cpu(args.x.dtype)) return backward_fast(args);
    dispatch_compute(args.x.dtype, "layer_norm",
                     [&](auto type) { layer_norm_backward_naive<typename decltype(type)::type>(args); });
}

}  // namespace lc::kernels
