#include "train/next_token.h"

#include <algorithm>
#include <cmath>

#include "autograd/engine.h"
#include "autograd/ops/linear_cross_entropy.h"
#include "autograd/ops/views.h"
#include "train/evaluate.h"

namespace lc::train {

NextTokenStage::NextTokenStage(std::string name, models::Decoder& decoder,
                               const std::vector<models::NamedTensor>& parameters, const PackedChunks& validation,
                               const NextTokenOptions& options)
    : name_(std::move(name)), decoder_(decoder), parameters_(parameters), validation_(validation), options_(options) {
    LC_REQUIRE(BadInput, validation.size() > 0, "the validation data make no chunk of {} tokens", validation.seq_len);
    decoder.set_trainable(parameters_);
}

double NextTokenStage::learn(const Batch& batch, const std::vector<double>& weights) const {
    const int64_t rows = batch.ids.size(0), length = batch.ids.size(1);
    const Tensor labels = shifted_labels(batch.labels).to(decoder_.device());
    const Tensor hidden = decoder_.hidden(batch.ids, options_.forward);
    const Tensor flat = reshape(hidden, {rows * length, hidden.size(2)});

    // One call where the op's own mean, over all labelled tokens, has the right proportions; else one a chunk.
    bool proportional = true;
    double total = 0;
    for (int64_t b = 0; b < rows; ++b) total += weights[static_cast<size_t>(b)];
    for (int64_t b = 0; b < rows; ++b) {
        const auto i = static_cast<size_t>(b);
        const double share = static_cast<double>(batch.predicted[i]) /
                             static_cast<double>(std::max<int64_t>(1, batch.predicted_total()));
        proportional = proportional && std::abs(weights[i] - total * share) <= 1e-12 * total;
    }
    std::vector<Tensor> roots, factors;
    std::vector<double> shares;
    const int64_t parts = proportional ? 1 : rows, part = rows / parts * length;
    for (int64_t p = 0; p < parts; ++p) {
        const Tensor piece = parts == 1 ? flat : slice(flat, 0, p * part, part);
        roots.push_back(
            linear_cross_entropy(piece, decoder_.lm_head(), labels.sliced(0, p * part, part), decoder_.head_bias()));
        const double weight = parts == 1 ? total : weights[static_cast<size_t>(p)];
        factors.push_back(Tensor::full({}, weight, roots.back().dtype(), roots.back().device()));
        shares.push_back(weight);
    }
    backward(roots, factors);
    double loss = 0;  // read last: on a GPU it waits for the device
    for (size_t i = 0; i < roots.size(); ++i) loss += shares[i] * roots[i].item();
    return loss;
}

StepLoss NextTokenStage::accumulate(std::span<const Batch> micro_batches) {
    double chunks = 0, tokens = 0;
    for (const Batch& batch : micro_batches) {
        chunks += static_cast<double>(batch.predicted.size());
        tokens += static_cast<double>(batch.predicted_total());
    }
    StepLoss result;
    for (const Batch& batch : micro_batches) {
        std::vector<double> weights;
        for (int64_t predicted : batch.predicted)
            weights.push_back(options_.token_weighted ? static_cast<double>(predicted) / std::max(tokens, 1.0)
                                                      : 1 / chunks);
        result.loss += learn(batch, weights);
    }
    return result;
}

Validation NextTokenStage::evaluate(const StopCheck& stop) {
    const ChunkLosses losses = chunk_losses(decoder_, validation_, {options_.forward, options_.eval_batch, stop});
    Validation result{.loss = losses.mean_chunk_loss()};
    result.details["perplexity"] = losses.perplexity();
    return result;
}

}  // namespace lc::train
