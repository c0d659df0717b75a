#include "kernels/linear_cross_entropy/linear_cross_entropy.h"

#include <numeric>

#include "kernels/common/dispatch.h"
#include "kernels/common/gemm.h"
#include "kernels/common/lane_sum.h"
#include "kernels/common/vexp.h"
#include "kernels/linear_cross_entropy/linear_cross_entropy_naive.h"

namespace lc::kernels {
namespace {

// Rows of logits alive at once: many enough for the GEMMs, at most 64 MiB.
int64_t block_rows(int64_t vocabulary) {
    return std::clamp<int64_t>((int64_t{1} << 24) / std::max<int64_t>(vocabulary, 1), 16, 256);
}

// nll of one row; turns the logits into dlogits = (softmax - onehot) * scale if asked.
double loss_row(float* logits, int64_t vocabulary, int64_t label, bool want_gradient, float scale) {
    const float high = lane_max(vocabulary, logits);
    const float at_label = logits[label];
    exp_array(logits, logits, vocabulary, high);
    const float sum = lane_sum(vocabulary, [logits](int64_t v) { return logits[v]; });
    if (want_gradient) {
        const float factor = scale / sum;
        for (int64_t v = 0; v < vocabulary; ++v) logits[v] *= factor;
        logits[label] -= scale;
    }
    return std::log(static_cast<double>(sum)) + static_cast<double>(high) - static_cast<double>(at_label);
}

// Ignored rows need no logits: the valid ones are gathered, block by block.
struct Fast {
    const LinearCrossEntropyForward& args;
    InRows<float> hidden{args.hidden}, weight{args.weight};
    OutRows<float> dhidden{args.dhidden}, dweight{args.dweight};
    std::optional<FlatInput<float>> bias = args.bias ? std::make_optional<FlatInput<float>>(args.bias) : std::nullopt;
    std::vector<int64_t> labels = read_ids("linear_cross_entropy", args.labels, args.weight.size(0), true);
    std::vector<int64_t> valid{};  // row numbers
    std::vector<double> nll{};     // of every row
    Scratch<float> logits{}, h{}, dh{};

    void run() {
        nll.assign(labels.size(), 0.0);
        for (size_t i = 0; i < labels.size(); ++i)
            if (labels[i] != kIgnoreLabel) valid.push_back(static_cast<int64_t>(i));
        clear_gradients();
        const int64_t n = static_cast<int64_t>(valid.size()), step = std::min(block_rows(weight.rows), n);
        logits = Scratch<float>(step * weight.rows), h = Scratch<float>(step * hidden.columns);
        dh = Scratch<float>(step * hidden.columns);
        for (int64_t first = 0; first < n; first += step) block(first, std::min(step, n - first));
        dhidden.finish(), dweight.finish();
        if (args.loss)
            *args.loss.data<float>() =
                n > 0 ? static_cast<float>(std::accumulate(nll.begin(), nll.end(), 0.0) / static_cast<double>(n))
                      : 0.0f;
        if (args.nll) store_gradient(std::vector<float>(nll.begin(), nll.end()), {args.nll});
    }

    // Rows that are ignored, and dweight and dbias when no block will write them.
    void clear_gradients() {
        for (int64_t r = 0; r < hidden.rows && dhidden; ++r)
            if (labels[r] == kIgnoreLabel) std::fill_n(dhidden.row(r), hidden.columns, 0.0f);
        for (int64_t v = 0; v < weight.rows && dweight && valid.empty(); ++v)
            std::fill_n(dweight.row(v), weight.columns, 0.0f);
        if (valid.empty()) store_gradient(std::vector<float>(static_cast<size_t>(weight.rows)), {args.dbias});
    }

    void block(int64_t first, int64_t rows) {
        const int64_t vocabulary = weight.rows, d = hidden.columns;
        for (int64_t r = 0; r < rows; ++r) std::copy_n(hidden.row(valid[first + r]), d, h.data() + r * d);
        for (int64_t r = 0; r < rows && bias; ++r)
            std::copy_n(bias->data(), vocabulary, logits.data() + r * vocabulary);
        gemm(Gemm<float>{.op_b = Op::Transpose,
                         .m = rows,
                         .n = vocabulary,
                         .k = d,
                         .a = h.data(),
                         .lda = d,
                         .b = weight.data,
                         .ldb = weight.stride,
                         .beta = bias ? 1.0f : 0.0f,
                         .c = logits.data(),
                         .ldc = vocabulary});
        const bool want_gradient = dhidden || dweight || args.dbias;
        const float scale = 1.0f / static_cast<float>(valid.size());
        parallel_for(rows, 1, [&](int64_t begin, int64_t end) {
            for (int64_t r = begin; r < end; ++r) {
                const int64_t row = valid[first + r];
                nll[row] = loss_row(logits.data() + r * vocabulary, vocabulary, labels[row], want_gradient, scale);
            }
        });
        if (dhidden) {
            gemm(Gemm<float>{.m = rows,
                             .n = d,
                             .k = vocabulary,
                             .a = logits.data(),
                             .lda = vocabulary,
                             .b = weight.data,
                             .ldb = weight.stride,
                             .c = dh.data(),
                             .ldc = d});
            for (int64_t r = 0; r < rows; ++r) std::copy_n(dh.data() + r * d, d, dhidden.row(valid[first + r]));
        }
        if (dweight)
            gemm(Gemm<float>{.op_a = Op::Transpose,
                             .m = vocabulary,
                             .n = d,
                             .k = rows,
                             .a = logits.data(),
                             .lda = vocabulary,
                             .b = h.data(),
                             .ldb = d,
                             .beta = first > 0 ? 1.0f : 0.0f,
                             .c = dweight.data,
                             .ldc = dweight.stride});
        if (args.dbias) {
            const OutRows<float> db(GradSlot{args.dbias, first > 0 ? GradWrite::Accumulate : GradWrite::Overwrite});
            sum_rows({logits.data(), rows, vocabulary, vocabulary}, db);
            db.finish();
        }
    }
};

}  // namespace

void linear_cross_entropy_forward(const LinearCrossEntropyForward& args, Stream stream) {
    const ProfileZone zone("linear_cross_entropy");
    LC_CHECK(args.hidden.rank() == 2 && args.weight.rank() == 2 && args.hidden.size(1) == args.weight.size(1) &&
                 args.weight.size(0) > 0,
             "linear_cross_entropy: hidden must be [N,D] and weight [V,D], got {} and {}", args.hidden.shape(),
             args.weight.shape());
    LC_CHECK(args.labels.shape() == Shape{args.hidden.size(0)}, "linear_cross_entropy: labels must be [{}], got {}",
             args.hidden.size(0), args.labels.shape());
    require_alike("linear_cross_entropy", {args.hidden, args.dhidden});
    LC_CHECK(!args.bias || args.bias.shape() == Shape{args.weight.size(0)},
             "linear_cross_entropy: bias must be [{}], got {}", args.weight.size(0), args.bias.shape());
    require_wide("linear_cross_entropy", args.hidden,
                 {args.weight, args.bias, args.loss, args.nll, args.dweight, args.dbias});
    if constexpr (cuda::kBuilt)
        if (on_cuda("linear_cross_entropy", args.hidden)) {
            LC_CHECK(args.labels.device == args.hidden.device &&
                         (args.labels.dtype == DType::i32 || args.labels.dtype == DType::i64),
                     "linear_cross_entropy: labels must be i32 or i64 on {}, got {} on {}", args.hidden.device.str(),
                     name_of(args.labels.dtype), args.labels.device.str());
            return linear_cross_entropy_forward_cuda(args, stream);
        }
    if (use_fast_cpu(args.hidden.dtype)) return Fast{args}.run();
    dispatch_compute(args.hidden.dtype, "linear_cross_entropy",
                     [&](auto type) { linear_cross_entropy_forward_naive<typename decltype(type)::type>(args); });
}

void linear_cross_entropy_backward(const LinearCrossEntropyBackward& args, Stream stream) {
    const ProfileZone zone("linear_cross_entropy backward");
    if constexpr (cuda::kBuilt)
        if (on_cuda("linear_cross_entropy", args.dloss)) return linear_cross_entropy_backward_cuda(args, stream);
    on_cpu("linear_cross_entropy", {args.dloss, args.unit_dhidden, args.unit_dweight, args.unit_dbias},
           [&](auto type) { linear_cross_entropy_backward_naive<typename decltype(type)::type>(args); });
}

}  // namespace lc::kernels
