#include "models/generation/conversation.h"

#include <algorithm>
#include <chrono>

namespace lc::models {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

Conversation::Conversation(const Decoder& decoder, const io::Tokenizer& tokenizer, DecodeMode mode,
                           int64_t prefill_chunk)
    : decoder_(decoder),
      tokenizer_(tokenizer),
      mode_(mode),
      chunk_(prefill_chunk),
      generator_(decoder, prefill_chunk),
      state_(decoder, mode.mode, 1, mode.terms, mode.state) {
    if (decoder.device().is_cuda())
        sampler_ = std::make_unique<DeviceSampler>(1, decoder.config().vocab_size, decoder.device());
}

// On Hopper the fastest attention over a prompt begins at multiples of kBorder only; a pass more over the weights pays for it where a turn is
// long, and no turn that one chunk holds is cut for it below kLong.
Tensor Conversation::read(const std::function<bool()>& stop) {
    constexpr int64_t kBorder = 64, kLong = 1024;
    for (;;) {
        const std::span<const int32_t> unread = std::span(ids_).subspan(static_cast<size_t>(state_.position()));
        const int64_t past = state_.position() % kBorder, left = std::ssize(unread);
        int64_t length = std::min(chunk_, left);
        if (past > 0 && left >= std::min(2 * chunk_, kLong)) length = std::min(length, kBorder - past);
        const Tensor chunk = Tensor::from(unread.first(static_cast<size_t>(length)), {1, length});
        if (stop && stop()) return {};
        if (length == std::ssize(unread)) return generator_.read(state_, chunk);
        generator_.feed(state_, chunk);
    }
}

Generation Conversation::reply(std::span<const int32_t> ids, const GenerateOptions& options, const TextSink& on_text,
                               const std::function<bool()>& stop) {
    std::vector<int32_t> all = ids_;
    all.insert(all.end(), ids.begin(), ids.end());
    const DecoderConfig& config = decoder_.config();
    const int64_t most = room_for_new(std::ssize(all), options.max_new_tokens, config.max_positions);
    LC_REQUIRE(Usage, std::ssize(all) > state_.position(), "there is nothing new to read");
    Continuation answer(tokenizer_, options, all, most, config.vocab_size, on_text);
    ids_ = std::move(all);

    auto start = std::chrono::steady_clock::now();
    const Tensor logits = read(stop);
    const double prefill_seconds = seconds_since(start);
    start = std::chrono::steady_clock::now();
    if (!logits.defined()) answer.cancel();
    if (sampler_) sampler_->assign(0, options.sampling, answer.history());
    for (bool first = true; !answer.done(); first = false) {
        const int32_t id = first ? first_id(answer, logits) : next_id(answer);
        answer.add(id), ids_.push_back(id);
        if (!answer.done() && stop && stop()) answer.cancel();
    }
    const double decode_seconds = seconds_since(start);
    Generation result = answer.finish();
    result.prefill_seconds = prefill_seconds, result.decode_seconds = decode_seconds;
    result.state_bytes = state_.bytes();
    return result;
}

int32_t Conversation::first_id(const Continuation& answer, const Tensor& logits) {
    return sampler_ ? sampler_->draw_first(0, logits, state_.position() - 1) : answer.draw(logits.to_vector<float>());
}

// The id after the one that was drawn last, which the state sees now.
int32_t Conversation::next_id(const Continuation& answer) {
    if (!sampler_)
        return first_id(answer, generator_.advance(state_, Tensor::from(std::vector<int32_t>{ids_.back()}, {1, 1})));
    generator_.draw_rows(state_, *sampler_, {{state_.position()}});
    state_.count_token();
    sampler_->post();
    return id_of(sampler_->collect()[0], answer.position());
}

void Conversation::restore(std::vector<int32_t> ids, int64_t position, const DecodeState::TensorReader& read) {
    LC_CHECK(ids_.empty() && position <= std::ssize(ids), "conversation: {} ids restored to position {}, over {}",
             ids.size(), position, ids_.size());
    state_.restore(position, read);
    ids_ = std::move(ids);
}

Generation generate(const Decoder& decoder, const io::Tokenizer& tokenizer, DecodeMode mode,
                    std::span<const int32_t> prompt, const GenerateOptions& options, const TextSink& on_text) {
    return Conversation(decoder, tokenizer, mode).reply(prompt, options, on_text);
}

}  // namespace lc::models
