#include "kernels/rms_norm/rms_norm.h"

#include "kernels/common/dispatch.h"
#include "kernels/common/lane_sum.h"
#include "kernels/rms_norm/rms_norm_naive.h"

namespace lc::kernels {
namespace {

// Rows a parallel piece holds at least: enough work to pay for handing it out.
int64_t row_grain(int64_t columns) {
    return std::max<int64_t>(1, 8192 / std::max<int64_t>(columns, 1));
}

void forward_fast(const RmsNormForward& args) {
    const InRows<float> x(args.x);
    const InRows<float> residual(args.residual ? args.residual : args.x);
    const FlatInput<float> weight(args.weight);
    const OutRows<float> y(args.y), sum(args.sum);
    float* rstd = args.rstd.data<float>();
    const float offset = static_cast<float>(args.offset);
    const int64_t d = x.columns;
    parallel_for(x.rows, row_grain(d), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
            const float* s = x.row(r);
            if (sum) {
                const float *a = x.row(r), *b = residual.row(r);
                float* out = sum.row(r);
                for (int64_t c = 0; c < d; ++c) out[c] = a[c] + b[c];
                s = out;
            }
            const float squares = lane_sum(d, [s](int64_t c) { return s[c] * s[c]; });
            const float scale = 1 / std::sqrt(squares / static_cast<float>(d) + static_cast<float>(args.eps));
            const float* w = weight.data();
            float* out = y.row(r);
            for (int64_t c = 0; c < d; ++c) out[c] = s[c] * scale * (offset + w[c]);
            rstd[r] = scale;
        }
    });
    y.finish(), sum.finish();
}

// ds of one row into out, over it or on top of it.
void backward_row(const float* s, const float* dy, const float* dsum, const float* w, float offset, float rstd,
                  int64_t d, bool accumulate, float* out) {
    const float dot = dy ? lane_sum(d, [=](int64_t c) { return dy[c] * (offset + w[c]) * s[c]; }) : 0.0f;
    const float shrink = rstd * rstd * rstd * dot / static_cast<float>(d);  // r h mean(g h) = r^3 s mean(g s)
    const auto write = [&](auto ds) {
        if (accumulate)
            for (int64_t c = 0; c < d; ++c) out[c] += ds(c);
        else
            for (int64_t c = 0; c < d; ++c) out[c] = ds(c);
    };
    if (dy && dsum)
        write([=](int64_t c) { return rstd * dy[c] * (offset + w[c]) - shrink * s[c] + dsum[c]; });
    else if (dy)
        write([=](int64_t c) { return rstd * dy[c] * (offset + w[c]) - shrink * s[c]; });
    else if (dsum)
        write([=](int64_t c) { return dsum[c]; });
    else
        write([](int64_t) { return 0.0f; });
}

// Each thread owns some columns and walks all rows in order: the bits do not depend on the number of threads.
void backward_weight(const Rows<const float>& s, const Rows<const float>& dy, const float* rstd, bool has_dy,
                     const OutRows<float>& dweight) {
    parallel_for(s.columns, 64, [&](int64_t begin, int64_t end) {
        std::vector<float> sum(static_cast<size_t>(end - begin));
        for (int64_t r = 0; r < s.rows && has_dy; ++r) {
            const float *s_row = s.row(r) + begin, *dy_row = dy.row(r) + begin;
            for (int64_t c = 0; c < end - begin; ++c) sum[c] += dy_row[c] * s_row[c] * rstd[r];
        }
        for (int64_t c = begin; c < end; ++c) dweight.put(0, c, sum[c - begin]);
    });
}

void backward_fast(const RmsNormBackward& args) {
    const bool has_dy = static_cast<bool>(args.dy), has_dsum = static_cast<bool>(args.dsum);
    const InRows<float> s(args.s), dy(has_dy ? args.dy : args.s), dsum(has_dsum ? args.dsum : args.s);
    const FlatInput<float> weight(args.weight);
    const float* rstd = args.rstd.data<float>();
    const OutRows<float> dx(args.dx), dresidual(args.dresidual), dweight(args.dweight);
    for (const OutRows<float>* out : {&dx, &dresidual}) {
        if (!*out) continue;
        parallel_for(s.rows, row_grain(s.columns), [&](int64_t begin, int64_t end) {
            for (int64_t r = begin; r < end; ++r)
                backward_row(s.row(r), has_dy ? dy.row(r) : nullptr, has_dsum ? dsum.row(r) : nullptr, weight.data(),
                             static_cast<float>(args.offset), rstd[r], s.columns, out->beta() != 0, out->row(r));
        });
    }
    if (dweight) backward_weight(s, dy, rstd, has_dy, dweight);
    dx.finish(), dresidual.finish(), dweight.finish();
}

}  // namespace

void rms_norm_forward(const RmsNormForward& args, Stream stream) {
    const ProfileZone zone("rms_norm");
    LC_CHECK(args.x.rank() >= 1 && args.weight.shape() == Shape{args.x.size(-1)},
             "rms_norm: weight must be [{}], got x {} and weight {}", args.x.rank() ? args.x.size(-1) : 0,
             args.x.shape(), args.weight.shape());
    LC_CHECK(args.y.shape() == args.x.shape() && args.rstd.numel() == row_count(args.x.shape()),
             "rms_norm: y must be {} and rstd [{}], got {} and {}", args.x.shape(), row_count(args.x.shape()),
             args.y.shape(), args.rstd.shape());
    LC_CHECK(static_cast<bool>(args.residual) == static_cast<bool>(args.sum) &&
                 (!args.residual || (args.residual.shape() == args.x.shape() && args.sum.shape() == args.x.shape())),
             "rms_norm: residual and sum must both be {}, got {} and {}", args.x.shape(), args.residual.shape(),
             args.sum.shape());
    require_alike("rms_norm", {args.x, args.residual, args.y, args.sum});
    require_wide("rms_norm", args.x, {args.weight, args.rstd});
    if constexpr (cuda::kBuilt)
        if (on_cuda("rms_norm", args.x)) return rms_norm_forward_cuda(args, stream);
    if (use_fast_cpu(args.x.dtype)) return forward_fast(args);
    dispatch_compute(args.x.dtype, "rms_norm",
                     [&](auto type) { rms_norm_forward_naive<typename decltype(type)::type>(args); });
}

void rms_norm_backward(const RmsNormBackward& args, Stream stream) {
    const ProfileZone zone("rms_norm backward");
    LC_CHECK((!args.dy || args.dy.shape() == args.s.shape()) && (!args.dsum || args.dsum.shape() == args.s.shape()),
             "rms_norm: dy and dsum must be {}, got {} and {}", args.s.shape(), args.dy.shape(), args.dsum.shape());
    require_alike("rms_norm", {args.s, args.dy, args.dsum});
    require_wide("rms_norm", args.s, {args.weight, args.rstd, args.dx.view, args.dresidual.view, args.dweight.view});
    if constexpr (cuda::kBuilt)
        if (on_cuda("rms_norm", args.s)) return rms_norm_backward_cuda(args, stream);
    if (use_fast_cpu(args.s.dtype)) return backward_fast(args);
    dispatch_compute(args.s.dtype, "rms_norm",
                     [&](auto type) { rms_norm_backward_naive<typename decltype(type)::type>(args); });
}

}  // namespace lc::kernels
