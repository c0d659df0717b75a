#include "train/attention_transfer.h"

#include <cmath>
#include <numeric>

#include "autograd/engine.h"
#include "autograd/grad_mode.h"
#include "autograd/ops/transfer_loss.h"
#include "core/profile.h"

namespace lc::train {

using models::AttentionMode;
using models::DecoderLayer;

AttentionTransfer::AttentionTransfer(models::Decoder& decoder, const PackedChunks& validation, int64_t eval_batch,
                                     bool fp8)
    : decoder_(decoder), teacher_(decoder), validation_(validation), eval_batch_(eval_batch), side_(decoder.device()) {
    if (fp8) teacher_.encode_projections(models::WeightCode::fp8, true);
    teacher_.fuse_gates();
    for (int64_t l = 0; l < decoder.num_layers(); ++l)
        if (decoder.layer(l).linearized) layers_.push_back(l);
    LC_REQUIRE(Usage, !layers_.empty(), "attention transfer: no layer is converted, so there is nothing to learn");
    LC_REQUIRE(BadInput, validation.size() > 0, "the validation data make no chunk of {} tokens", validation.seq_len);
    decoder.set_trainable(decoder.feature_map_parameters());
}

std::vector<ParameterGroup> AttentionTransfer::groups() const {
    std::vector<ParameterGroup> groups;
    for (int64_t l : layers_) groups.push_back({fmt::format("layers.{}", l), decoder_.feature_map_parameters(l)});
    return groups;
}

Tensor AttentionTransfer::walk(const Tensor& ids, double factor, bool train) {
    const kernels::LinearizedSpec spec = decoder_.attention()->kernel_spec();
    const auto converted = static_cast<int64_t>(layers_.size());
    Tensor losses;
    int64_t done = 0;
    const NoGrad frozen;
    Tensor h = teacher_.embed(ids);
    for (int64_t l = 0; done < converted; ++l) {
        const ProfileRange range("layer", l);
        const DecoderLayer& layer = decoder_.layer(l);
        const models::Qkv qkv = teacher_.project(l, h);
        const Tensor target = teacher_.attend(l, qkv, AttentionMode::Softmax);
        const cuda::SideWork student(side_, [&] {
            if (!layer.linearized) return;
            const ProfileZone zone("transfer_loss");
            const GradModeGuard learning(train);
            const Tensor loss = transfer_loss(qkv.q, qkv.k, qkv.v, target, layer.maps, layer.mix_logit, spec, factor);
            if (train) backward(loss);
            if (!losses.defined()) losses = Tensor::empty({converted}, loss.dtype(), loss.device());
            losses.sliced(0, done++, 1).copy_from(loss.reshaped({1}));
        });
        if (done < converted) h = teacher_.finish(l, h, target);
    }
    return losses;
}

StepLoss AttentionTransfer::accumulate(std::span<const Batch> micro_batches) {
    const double share = 1.0 / static_cast<double>(micro_batches.size());
    const double factor = kTransferFactor / static_cast<double>(layers_.size());
    StepLoss result{0, std::vector<double>(layers_.size())};
    std::vector<Tensor> losses;
    for (const Batch& batch : micro_batches) losses.push_back(walk(batch.ids, factor * share, true));
    for (const Tensor& of_batch : losses) {
        const std::vector<double> values = of_batch.to_vector<double>();
        for (size_t i = 0; i < values.size(); ++i) result.layer_losses[i] += values[i] / factor;
    }
    result.loss = factor * std::accumulate(result.layer_losses.begin(), result.layer_losses.end(), 0.0);
    return result;
}

Validation AttentionTransfer::evaluate(const StopCheck& stop) {
    Validation result{.layer_losses = std::vector<double>(layers_.size())};
    const int64_t n = validation_.size();
    for (int64_t begin = 0; begin < n; begin += eval_batch_) {
        throw_if_stopped(stop);
        std::vector<int64_t> chunks(static_cast<size_t>(std::min(eval_batch_, n - begin)));
        std::iota(chunks.begin(), chunks.end(), begin);
        const std::vector<double> losses = walk(make_batch(validation_, chunks).ids, 1.0, false).to_vector<double>();
        const double share = static_cast<double>(chunks.size()) / static_cast<double>(n);
        for (size_t i = 0; i < losses.size(); ++i) result.layer_losses[i] += losses[i] * share;
    }
    const double factor = kTransferFactor / static_cast<double>(layers_.size());
    result.loss = factor * std::accumulate(result.layer_losses.begin(), result.layer_losses.end(), 0.0);
    result.details["gamma"] = mean_gamma(decoder_);
    return result;
}

std::vector<double> mean_gamma(const models::Decoder& decoder) {
    std::vector<double> means;
    for (int64_t l = 0; l < decoder.num_layers(); ++l) {
        const Tensor& logit = decoder.layer(l).mix_logit;
        if (!logit.defined()) continue;
        double sum = 0;
        for (double a : logit.to_vector<double>()) sum += 1 / (1 + std::exp(-a));
        means.push_back(sum / static_cast<double>(logit.numel()));
    }
    return means;
}

}  // namespace lc::train
