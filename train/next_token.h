// The next-token loss over packed chunks, shared by stage 2 and by pretraining: position t predicts the label at t+1.
// Mean over the labelled tokens of a chunk, then over the chunks of a step (the reference's weighting), or over all
// labelled tokens of the step.
#pragma once
#include <vector>

#include "train/stage.h"

namespace lc::train {

struct NextTokenOptions {
    models::Decoder::ForwardOptions forward;
    bool token_weighted = false;
    int64_t eval_batch = 1;
};

// A stage that trains `parameters` of a decoder with this loss. Validation loss: mean over chunks, and beside it the
// perplexity exp(sum of NLL / labelled tokens).
class NextTokenStage final : public Stage {
  public:
    // Freezes all other parameters. Keeps references.
    NextTokenStage(std::string name, models::Decoder& decoder, const std::vector<models::NamedTensor>& parameters,
                   const PackedChunks& validation, const NextTokenOptions& options);

    std::string name() const override { return name_; }
    std::vector<ParameterGroup> groups() const override { return group_by_layer(parameters_); }
    StepLoss accumulate(std::span<const Batch> micro_batches) override;
    Validation evaluate(const StopCheck& stop) override;

  private:
    // Adds gradients of sum over the batch's chunks of weight[chunk] * mean NLL; returns that sum.
    double learn(const Batch& batch, const std::vector<double>& weights) const;

    std::string name_;
    models::Decoder& decoder_;
    std::vector<models::NamedTensor> parameters_;
    const PackedChunks& validation_;
    NextTokenOptions options_;
};

}  // namespace lc::train
