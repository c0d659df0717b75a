#include "models/generation/generate.h"

#include <algorithm>
#include <chrono>

#include "core/log.h"
#include "models/generation/stop_strings.h"

namespace lc::models {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

int64_t room_for(const Decoder& decoder, const std::vector<int32_t>& prompt, int64_t wanted) {
    LC_REQUIRE(Usage, !prompt.empty(), "the prompt has no tokens");
    LC_REQUIRE(Usage, wanted >= 1, "max_new_tokens must be at least 1, got {}", wanted);
    const int64_t limit = decoder.config().max_positions, room = limit - static_cast<int64_t>(prompt.size());
    LC_REQUIRE(Usage, room >= 1,
               "the prompt has {} tokens; with max_position_embeddings {} there is no room for a new one",
               prompt.size(), limit);
    if (wanted > room)
        log_warning("the model's limit of {} positions leaves room for {} of {} new tokens", limit, room, wanted);
    return std::min(wanted, room);
}

}  // namespace

Generation generate(const Decoder& decoder, const io::Tokenizer& tokenizer, const std::vector<int32_t>& prompt,
                    const GenerateOptions& options, const std::function<void(std::string_view)>& on_text) {
    validate(options.sampling, decoder.config().vocab_size);
    const int64_t most = room_for(decoder, prompt, options.max_new_tokens);
    StopStrings stops(options.stop_strings);
    Generation result{.ids = {}, .text = {}, .finish_reason = "length"};
    const auto show = [&](const std::string& text) {
        if (text.empty()) return;
        result.text += text;
        if (on_text) on_text(text);
    };
    // The prompt goes through the decoder of ids as well: whether a first space belongs to the text depends on it.
    io::StreamDecoder text_of(tokenizer);
    for (const int32_t id : prompt) text_of.push(id);

    const Generator generator(decoder);
    DecodeState state(decoder, options.mode, 1, options.terms);
    auto start = std::chrono::steady_clock::now();
    Tensor logits = generator.advance(state, Tensor::from(prompt, {1, static_cast<int64_t>(prompt.size())}));
    result.prefill_seconds = seconds_since(start);
    start = std::chrono::steady_clock::now();
    for (;;) {
        const int32_t id = sample(logits.to_vector<float>(), {prompt, result.ids}, options.sampling, state.position());
        result.ids.push_back(id);
        const bool end = std::count(options.eos_ids.begin(), options.eos_ids.end(), id) > 0;
        show(stops.push(text_of.push(id)));
        if (end || stops.found()) result.finish_reason = "stop";
        if (end || stops.found() || static_cast<int64_t>(result.ids.size()) == most) break;
        logits = generator.advance(state, Tensor::from(std::vector<int32_t>{id}, {1, 1}));
    }
    result.decode_seconds = seconds_since(start);
    show(stops.push(text_of.finish()));
    show(stops.finish());
    if (stops.found()) result.finish_reason = "stop";
    result.state_bytes = state.bytes();
    return result;
}

}  // namespace lc::models
