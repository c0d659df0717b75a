#include "io/tokenizer/pre_tokenizer.h"

#include <optional>

#include "io/tokenizer/unicode_compat.h"

namespace lc::io {
namespace {

// Turns the sequence of matches and gaps, which covers the text, into pieces by `behavior`. Everything is decided with
// one piece held back.
template <class Emit>
class PieceBuilder {
  public:
    PieceBuilder(SplitBehavior behavior, Emit& emit) : behavior_(behavior), emit_(emit) {}

    void add(Span span, bool is_match) {
        switch (behavior_) {
            case SplitBehavior::Isolated:
                emit_(span);
                return;
            case SplitBehavior::Removed:
                if (!is_match) emit_(span);
                return;
            case SplitBehavior::Contiguous:
                join_if(is_match == held_is_match_, span);
                break;
            case SplitBehavior::MergedWithPrevious:
                join_if(is_match && !held_is_match_, span);
                break;
            case SplitBehavior::MergedWithNext:
                join_if(!is_match && held_is_match_, span);
                break;
        }
        held_is_match_ = is_match;
    }
    void finish() {
        if (held_) emit_(*held_);
    }

  private:
    void join_if(bool join, Span span) {
        if (join && held_) {
            held_->end = span.end;
            return;
        }
        if (held_) emit_(*held_);
        held_ = span;
    }

    SplitBehavior behavior_;
    Emit& emit_;
    std::optional<Span> held_;
    bool held_is_match_ = false;
};

// Calls visit(span, is_match) for the matches of `step` and the gaps between them.
template <class Visit>
void cover(const SplitStep& step, std::string_view matched, RegexScratch& scratch, Visit&& visit) {
    size_t end = 0;
    const auto on_match = [&](Span match) {
        if (match.begin != end) visit(Span{end, match.begin}, step.invert);
        visit(match, !step.invert);
        end = match.end;
    };
    if (const Regex* regex = std::get_if<Regex>(&step.pattern)) {
        regex->for_each_match(matched, scratch, on_match);
    } else {
        const std::string& literal = std::get<std::string>(step.pattern);
        for (size_t at = 0; (at = matched.find(literal, at)) != std::string_view::npos; at += literal.size())
            on_match({at, at + literal.size()});
    }
    if (end != matched.size()) visit(Span{end, matched.size()}, step.invert);
}

// Runs steps[at..] on `text`, whose form for matching is `matched` (same length), and hands the pieces to `emit`.
template <class Emit>
void split(const std::vector<SplitStep>& steps, size_t at, std::string_view text, std::string_view matched,
           RegexScratch& scratch, Emit& emit) {
    if (at == steps.size()) {
        emit(text);
        return;
    }
    const auto next = [&](Span span) {
        if (span.begin == span.end) return;
        const size_t length = span.end - span.begin;
        split(steps, at + 1, text.substr(span.begin, length), matched.substr(span.begin, length), scratch, emit);
    };
    PieceBuilder builder(steps[at].behavior, next);
    cover(steps[at], matched, scratch, [&](Span span, bool is_match) { builder.add(span, is_match); });
    builder.finish();
}

}  // namespace

void PreTokenizer::run(std::string_view text, bool at_start, RegexScratch& scratch, WordSink& sink) const {
    if (text.empty()) return;
    if (metaspace.empty()) {
        run_splits(text, scratch, sink);
        return;
    }
    const MetaspaceStep& step = metaspace.front();
    std::string changed;
    for (const char c : text) {
        if (c == ' ')
            changed += step.replacement;
        else
            changed.push_back(c);
    }
    const bool wanted =
        step.prepend == MetaspaceStep::Prepend::Always || (step.prepend == MetaspaceStep::Prepend::First && at_start);
    if (wanted && !changed.starts_with(step.replacement)) changed.insert(0, step.replacement);
    if (!step.split) {
        run_splits(changed, scratch, sink);
        return;
    }
    for (size_t begin = 0; begin < changed.size();) {
        const size_t end = std::min(changed.find(step.replacement, begin + 1), changed.size());
        run_splits(std::string_view(changed).substr(begin, end - begin), scratch, sink);
        begin = end;
    }
}

void PreTokenizer::run_splits(std::string_view text, RegexScratch& scratch, WordSink& sink) const {
    std::string storage = std::move(scratch.match_form_storage);
    const std::string_view matched = splits.empty() ? text : match_form(text, storage);
    const auto emit = [&](std::string_view piece) {
        if (byte_level)
            byte_level_word(piece, scratch, sink);
        else
            sink.word(piece);
    };
    split(splits, 0, text, matched, scratch, emit);
    scratch.match_form_storage = std::move(storage);
}

void PreTokenizer::byte_level_word(std::string_view piece, RegexScratch& scratch, WordSink& sink) const {
    std::string prefixed;
    if (add_prefix_space && piece[0] != ' ') {
        prefixed.reserve(piece.size() + 1);
        prefixed.push_back(' ');
        prefixed += piece;
        piece = prefixed;
    }
    std::string storage;
    const std::string_view matched = byte_level_splits.empty() ? piece : match_form(piece, storage);
    const auto emit = [&](std::string_view word) { sink.word(word); };
    split(byte_level_splits, 0, piece, matched, scratch, emit);
}

}  // namespace lc::io
