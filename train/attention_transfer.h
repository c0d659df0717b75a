// Stage 1, attention transfer: learn feature maps (and window factors) so that linearized attention gives what softmax
// attention gave, layer by layer, everything else frozen (LoLCATs, arXiv 2410.10254, section 3.2).
//
//   loss = 1000 / M' * sum over converted layers of mean((y - y*)^2)       y, y* [B,H,T,D] before o_proj
//
// Teacher forcing: each layer hands the teacher's output on, so the layers are independent problems and no more than
// one layer's tape is alive. What a layer learns is nobody's input, so on a GPU the student works beside the rest of the layer
// and is waited for at its end. The walk ends at the last converted layer, whose o_proj and MLP nobody needs.
#pragma once
#include "core/cuda/side_work.h"
#include "train/stage.h"

namespace lc::train {

// The factor matters through Adam's eps and clipping only; it is the reference's.
inline constexpr double kTransferFactor = 1000;

class AttentionTransfer final : public Stage {
  public:
    // `decoder` must be linearized. Freezes all but the feature maps. Keeps references. With `fp8` the frozen layers multiply e4m3
    // codes, of their weights (made here, beside the weights) and of what comes to them.
    AttentionTransfer(models::Decoder& decoder, const PackedChunks& validation, int64_t eval_batch, bool fp8 = false);

    std::string name() const override { return "transfer"; }
    bool has_layer_losses() const override { return true; }
    std::vector<ParameterGroup> groups() const override;
    StepLoss accumulate(std::span<const Batch> micro_batches) override;
    Validation evaluate(const StopCheck& stop) override;

  private:
    // factor * MSE of each converted layer for one micro-batch, [M']. With `train`, gradients of their sum are added. The losses stay
    // where they were made: reading them waits for the device.
    Tensor walk(const Tensor& ids, double factor, bool train);

    models::Decoder& decoder_;
    models::Decoder teacher_;  // shares all tensors with decoder_, but for codes in place of its weights
    const PackedChunks& validation_;
    int64_t eval_batch_;
    std::vector<int64_t> layers_;  // the converted ones
    cuda::SideQueue side_;         // of the student
};

// gamma = sigmoid(window factor), the mean over the heads of each converted layer; empty for pure linear attention.
std::vector<double> mean_gamma(const models::Decoder& decoder);

}  // namespace lc::train
