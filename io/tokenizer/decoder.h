// Pieces back to text: the `decoder` of tokenizer.json, one token after the other. Decoding a whole sequence and
// streaming it are the same code, so that they cannot differ.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "io/tokenizer/normalizer.h"
#include "io/tokenizer/utf8.h"

namespace lc::io {

struct JoinStep {};          // no decoder at all: pieces with a space between them
struct ByteLevelStep {};     // the byte alphabet back to bytes; ill-formed UTF-8 becomes U+FFFD
struct ByteFallbackStep {};  // a run of <0xNN> to its characters; one U+FFFD a byte when the run is ill-formed
struct FuseStep {};          // what follows sees one token
struct StripStep {
    std::string content;          // one character,
    int64_t start = 0, stop = 0;  // taken away up to so many times at each end of a token
};
struct MetaspaceDecodeStep {
    std::string replacement;    // becomes a space, one character
    bool drop_in_first = true;  // ... and nothing in the first token
};

struct TokenDecoder {
    using Step =
        std::variant<JoinStep, ReplaceStep, ByteLevelStep, ByteFallbackStep, FuseStep, StripStep, MetaspaceDecodeStep>;
    std::vector<Step> steps;
};

// One pass through a decoder. What push hands out is well-formed UTF-8 and final.
class DecodeRun {
  public:
    explicit DecodeRun(const TokenDecoder& decoder);  // must outlive this

    void push(std::string_view piece, std::string& out);
    void finish(std::string& out);  // begins anew after it

  private:
    struct State {
        bool fused = false;  // what arrives here are parts of one token
        bool started = false;
        std::string bytes;  // ByteFallback: the run so far
        int64_t stripped = 0;
        Utf8Repair repair;
    };
    void reset();
    void feed(size_t step, std::string_view piece, std::string& out);
    void feed_byte_fallback(size_t step, std::string_view piece, std::string& out);
    void flush_byte_fallback(size_t step, std::string& out);
    void feed_strip(size_t step, const StripStep& strip, std::string_view piece, std::string& out);
    void feed_metaspace(size_t step, const MetaspaceDecodeStep& metaspace, std::string_view piece, std::string& out);

    const TokenDecoder* decoder_;
    std::vector<State> states_;
    std::unique_ptr<RegexScratch> scratch_;  // only when a step has a pattern
};

}  // namespace lc::io
