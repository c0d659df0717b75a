#include "models/generation/continuation.h"

#include <algorithm>

#include "core/check.h"
#include "core/log.h"

namespace lc::models {

int64_t room_for_new(int64_t seen, int64_t wanted, int64_t limit) {
    LC_REQUIRE(Usage, seen >= 1, "the prompt has no tokens");
    LC_REQUIRE(Usage, wanted >= 1, "max_new_tokens must be at least 1, got {}", wanted);
    const int64_t room = limit - seen;
    LC_REQUIRE(Usage, room >= 1,
               "the prompt has {} tokens; with max_position_embeddings {} there is no room for a new one", seen, limit);
    if (wanted > room)
        log_warning("the model's limit of {} positions leaves room for {} of {} new tokens", limit, room, wanted);
    return std::min(wanted, room);
}

Continuation::Continuation(const io::Tokenizer& tokenizer, const GenerateOptions& options, std::vector<int32_t> before,
                           int64_t most, int64_t vocab_size, TextSink on_text)
    : options_(options),
      before_(std::move(before)),
      most_(most),
      on_text_(std::move(on_text)),
      text_of_(tokenizer),
      stops_(options.stop_strings) {
    validate(options.sampling, vocab_size);
    // They go through the decoder of ids as well: whether a first space belongs to the text depends on them.
    for (const int32_t id : before_) text_of_.push(id);
}

void Continuation::add(int32_t id) {
    LC_CHECK(!done(), "continuation: a token after its end");
    ids_.push_back(id);
    show(stops_.push(text_of_.push(id)));
    if (stops_.found() || std::count(options_.eos_ids.begin(), options_.eos_ids.end(), id) > 0)
        finish_reason_ = "stop";
    else if (std::ssize(ids_) == most_)
        finish_reason_ = "length";
}

void Continuation::cancel() {
    if (!done()) finish_reason_ = "cancelled";
}

Generation Continuation::finish() {
    show(stops_.push(text_of_.finish()));
    show(stops_.finish());
    if (stops_.found()) finish_reason_ = "stop";
    return {.ids = std::move(ids_), .text = std::move(text_), .finish_reason = std::move(finish_reason_)};
}

void Continuation::show(const std::string& text) {
    if (text.empty()) return;
    text_ += text;
    if (on_text_) on_text_(text);
}

}  // namespace lc::models
