#include "models/generation/decode_step.h"

#include <algorithm>
#include <cstring>

#include "autograd/grad_mode.h"
#include "core/log.h"
#include "core/profile.h"
#include "models/generation/cached_attention.h"

namespace lc::models {

DecodeStep::DecodeStep(const Decoder& decoder, std::vector<LayerCache> layers, KvRows kv, Terms terms)
    : decoder_(decoder), layers_(std::move(layers)), kv_(std::move(kv)), terms_(terms) {
    LC_CHECK(std::ssize(layers_) == decoder.num_layers() && decoder.num_layers() > 0,
             "decode step: {} caches for {} layers", layers_.size(), decoder.num_layers());
    const int64_t batch = kv_.count;
    // Profiling waits for every op, and what is recorded is no op any more.
    recordable_ = decoder.device().is_cuda() && cuda::Graph::possible() && !profile_enabled();
    ids_ = Tensor::zeros({batch, 1}, DType::i32, decoder.device());
    positions_ = Tensor::zeros({batch}, DType::i64, decoder.device());
    if (decoder.device().is_cpu()) return;
    cuda::make_current(decoder.device());
    for (Mail& mail : mail_)
        mail = {cuda::PinnedBuffer(cuda::allocate_pinned(positions_.nbytes())), std::make_unique<cuda::Event>()};
}

Tensor DecodeStep::compute(const Tensor& ids) const {
    Tensor h = decoder_.embed(ids);
    for (int64_t i = 0; i < decoder_.num_layers(); ++i) {
        const Qkv qkv = decoder_.project(i, h, positions_);
        const Tensor y = attention_output(qkv.q);
        if (kv_.memory->holds(i))
            decode_softmax(qkv, positions_, kv_.keys(i), kv_.values(i), decoder_.window_of(i), y);
        else
            decode_linearized(decoder_.layer(i), qkv, effective_spec(*decoder_.attention(), terms_), positions_,
                              layers_[static_cast<size_t>(i)], y);
        h = decoder_.finish(i, h, y);
    }
    return decoder_.logits_of(h);
}

void DecodeStep::place(std::span<const int64_t> positions) {
    const int64_t limit = decoder_.config().max_positions;
    LC_CHECK(std::ssize(positions) == ids_.size(0), "decode step: {} positions for a batch of {}", positions.size(),
             ids_.size(0));
    for (const int64_t position : positions)
        LC_REQUIRE(Usage, position < limit, "{} tokens are more than the model allows (max_position_embeddings {})",
                   position + 1, limit);
    kv_.memory->grow(*std::max_element(positions.begin(), positions.end()) + 1);
    if (kv_version_ != kv_.memory->version()) forget(run_), forget(draw_);
    kv_version_ = kv_.memory->version();
    if (decoder_.device().is_cpu()) return positions_.copy_from(Tensor::from(positions, positions_.shape()));
    Mail& mail = mail_[next_mail_++ % mail_.size()];
    mail.arrived->wait();
    std::memcpy(mail.pinned.get(), positions.data(), positions.size_bytes());
    const Stream stream = current_stream(decoder_.device());
    cuda::copy_bytes(positions_.storage()->data.get(), mail.pinned.get(), positions_.nbytes(), stream);
    mail.arrived->record(stream);
}

Tensor DecodeStep::run(const Tensor& ids, std::span<const int64_t> positions) {
    LC_CHECK(ids.shape() == ids_.shape(), "decode step: ids must be {}, got {}", ids_.shape(), ids.shape());
    const NoGrad no_grad;
    place(positions);
    ids_.copy_from(ids);
    if (run_) {
        run_->launch(current_stream(decoder_.device()));
        return logits_;
    }
    Tensor first;  // of the step itself; logits_ are those of the recording
    play(run_, [&] { (first.defined() ? logits_ : first) = compute(ids_); });
    return first;
}

void DecodeStep::draw(DeviceSampler& sampler, std::span<const int64_t> positions) {
    const NoGrad no_grad;
    place(positions);
    if (sampler_ != &sampler || sampler_version_ != sampler.version()) forget(draw_);
    sampler_ = &sampler, sampler_version_ = sampler.version();
    play(draw_, [&] { sampler.draw(compute(sampler.ids()), positions_); });
}

void DecodeStep::forget(Recording& recording) {
    if (!recording) return;
    synchronize(decoder_.device());  // it may still run
    recording = nullptr;
}

// `work` as it was recorded. The first time the work itself, and beside it the recording for those that follow.
void DecodeStep::play(Recording& recording, const std::function<void()>& work) {
    if (recording) return recording->launch(current_stream(decoder_.device()));
    if (!recordable_) return work();
    auto graph = std::make_unique<cuda::Graph>(decoder_.device());
    bool ran = false;
    try {
        graph->record([&] { work(), ran = true; });
        recording = std::move(graph);
    } catch (const Error& error) {
        if (!ran) throw;
        recordable_ = false;
        log_line(LogLevel::Warning, fmt::format("decode steps are launched op by op: {}", error.what()));
    }
}

}  // namespace lc::models
