#include "io/tokenizer/decoder.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <utility>

#include "io/text.h"
#include "io/tokenizer/byte_alphabet.h"

namespace lc::io {
namespace {

std::optional<char> fallback_byte(std::string_view piece) {
    if (piece.size() != 6 || !piece.starts_with("<0x") || piece.back() != '>') return std::nullopt;
    unsigned value = 0;
    const auto [end, error] = std::from_chars(piece.data() + 3, piece.data() + 5, value, 16);
    if (error != std::errc() || end != piece.data() + 5) return std::nullopt;
    return static_cast<char>(value);
}

}  // namespace

DecodeRun::DecodeRun(const TokenDecoder& decoder) : decoder_(&decoder) {
    for (const auto& step : decoder.steps) {
        const auto* replace = std::get_if<ReplaceStep>(&step);
        if (replace && std::holds_alternative<Regex>(replace->pattern)) scratch_ = std::make_unique<RegexScratch>();
    }
    reset();
}

void DecodeRun::reset() {
    states_.assign(decoder_->steps.size(), State{});
    bool fused = false;
    for (size_t i = 0; i < states_.size(); ++i) {
        states_[i].fused = fused;
        const auto& step = decoder_->steps[i];
        fused = fused || std::holds_alternative<FuseStep>(step) || std::holds_alternative<ByteLevelStep>(step);
    }
}

void DecodeRun::push(std::string_view piece, std::string& out) {
    feed(0, piece, out);
}

void DecodeRun::finish(std::string& out) {
    for (size_t i = 0; i < states_.size(); ++i) {
        const auto& step = decoder_->steps[i];
        if (std::holds_alternative<ByteFallbackStep>(step)) flush_byte_fallback(i, out);
        if (std::holds_alternative<ByteLevelStep>(step)) {
            std::string rest;
            states_[i].repair.finish(rest);
            if (!rest.empty()) feed(i + 1, rest, out);
        }
    }
    reset();
}

void DecodeRun::feed(size_t step, std::string_view piece, std::string& out) {
    if (step == states_.size()) {
        out += piece;
        return;
    }
    State& state = states_[step];
    const auto& what = decoder_->steps[step];
    if (const auto* replace = std::get_if<ReplaceStep>(&what)) {
        feed(step + 1, replace_all(*replace, piece, scratch_.get()), out);
    } else if (const auto* strip = std::get_if<StripStep>(&what)) {
        feed_strip(step, *strip, piece, out);
    } else if (const auto* metaspace = std::get_if<MetaspaceDecodeStep>(&what)) {
        feed_metaspace(step, *metaspace, piece, out);
    } else if (std::holds_alternative<ByteFallbackStep>(what)) {
        feed_byte_fallback(step, piece, out);
    } else if (std::holds_alternative<ByteLevelStep>(what)) {
        std::string text;
        const auto bytes = from_alphabet(piece);  // a piece with other characters (a special token) is its own text
        state.repair.push(bytes ? std::string_view(*bytes) : piece, text);
        if (!text.empty()) feed(step + 1, text, out);
    } else if (std::holds_alternative<JoinStep>(what)) {
        if (std::exchange(state.started, true)) feed(step + 1, " ", out);
        feed(step + 1, piece, out);
    } else {
        feed(step + 1, piece, out);  // Fuse: the states after it know
    }
}

void DecodeRun::feed_byte_fallback(size_t step, std::string_view piece, std::string& out) {
    if (const auto byte = fallback_byte(piece)) {
        states_[step].bytes.push_back(*byte);
        return;
    }
    flush_byte_fallback(step, out);
    feed(step + 1, piece, out);
}

void DecodeRun::flush_byte_fallback(size_t step, std::string& out) {
    const std::string run = std::exchange(states_[step].bytes, {});
    if (run.empty()) return;
    if (!first_invalid_utf8(run)) {
        feed(step + 1, run, out);
        return;
    }
    for (size_t i = 0; i < run.size(); ++i) feed(step + 1, kReplacementCharacter, out);
}

void DecodeRun::feed_strip(size_t step, const StripStep& strip, std::string_view piece, std::string& out) {
    State& state = states_[step];
    if (!state.fused) state.stripped = 0;
    while (!state.started && state.stripped < strip.start && piece.starts_with(strip.content)) {
        piece.remove_prefix(strip.content.size());
        ++state.stripped;
    }
    if (state.fused) {
        if (!piece.empty()) state.started = true;
        // The loader admits stop > 0 only where tokens come whole.
        if (!piece.empty()) feed(step + 1, piece, out);
        return;
    }
    for (int64_t i = 0; i < strip.stop && piece.ends_with(strip.content); ++i)
        piece.remove_suffix(strip.content.size());
    feed(step + 1, piece, out);
}

void DecodeRun::feed_metaspace(size_t step, const MetaspaceDecodeStep& metaspace, std::string_view piece,
                               std::string& out) {
    const bool first = !std::exchange(states_[step].started, true);
    const std::string space = first && metaspace.drop_in_first ? "" : " ";
    feed(step + 1, replace_all({metaspace.replacement, space}, piece, nullptr), out);
}

}  // namespace lc::io
