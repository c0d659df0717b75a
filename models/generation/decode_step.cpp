#include "models/generation/decode_step.h"

#include "autograd/grad_mode.h"
#include "core/log.h"
#include "core/profile.h"
#include "models/generation/cached_attention.h"

namespace lc::models {

DecodeStep::DecodeStep(const Decoder& decoder, std::vector<LayerCache> layers, Terms terms)
    : decoder_(decoder), layers_(std::move(layers)), terms_(terms) {
    LC_CHECK(std::ssize(layers_) == decoder.num_layers() && decoder.num_layers() > 0,
             "decode step: {} caches for {} layers", layers_.size(), decoder.num_layers());
    for (const LayerCache& cache : layers_) LC_CHECK(cache.s.defined(), "decode step: a layer is not linearized");
    const int64_t batch = layers_.front().s.size(0);
    // Profiling waits for every op, and what is recorded is no op any more.
    recordable_ = decoder.device().is_cuda() && cuda::Graph::possible() && !profile_enabled();
    ids_ = Tensor::zeros({batch, 1}, DType::i32, decoder.device());
    positions_ = Tensor::zeros({batch}, DType::i64, decoder.device());
}

Tensor DecodeStep::compute() const {
    const kernels::LinearizedSpec spec = effective_spec(*decoder_.attention(), terms_);
    Tensor h = decoder_.embed(ids_);
    for (int64_t i = 0; i < decoder_.num_layers(); ++i) {
        const Qkv qkv = decoder_.project(i, h, positions_);
        const Tensor y = attention_output(qkv.q);
        decode_linearized(decoder_.layer(i), qkv, spec, positions_, layers_[static_cast<size_t>(i)], y);
        h = decoder_.finish(i, h, y);
    }
    return decoder_.logits_of(h);
}

Tensor DecodeStep::run(const Tensor& ids, std::span<const int64_t> positions) {
    const int64_t limit = decoder_.config().max_positions;
    LC_CHECK(ids.shape() == ids_.shape() && std::ssize(positions) == ids_.size(0),
             "decode step: ids must be {} and positions as many, got {} and {}", ids_.shape(), ids.shape(),
             positions.size());
    for (const int64_t position : positions)
        LC_REQUIRE(Usage, position < limit, "{} tokens are more than the model allows (max_position_embeddings {})",
                   position + 1, limit);
    const NoGrad no_grad;
    ids_.copy_from(ids);
    positions_.copy_from(Tensor::from(positions, positions_.shape()));
    if (!recordable_) return compute();
    if (graph_) {
        graph_->launch(current_stream(decoder_.device()));
        return logits_;
    }
    return record();
}

// The step itself, and beside it the recording for those that follow.
Tensor DecodeStep::record() {
    auto graph = std::make_unique<cuda::Graph>(decoder_.device());
    Tensor first;
    try {
        graph->record([&] {
            Tensor& result = first.defined() ? logits_ : first;
            result = compute();
        });
        graph_ = std::move(graph);
    } catch (const Error& error) {
        if (!first.defined()) throw;
        recordable_ = false;
        log_line(LogLevel::Warning, fmt::format("decode steps are launched op by op: {}", error.what()));
    }
    return first;
}

}  // namespace lc::models
