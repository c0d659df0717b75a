// Tokenizers and the texts that they are given.
#include <array>

#include "io/tokenizer/load_tokenizer.h"
#include "io/tokenizer/pre_tokenizer.h"
#include "tests/fuzz/support.h"
#include "tests/fuzz/targets.h"
#include "tests/io/tokenizer/small.h"

namespace lc::fuzz {
namespace {

using io::Json;
using io::Tokenizer;

std::string streamed(const Tokenizer& tokenizer, std::span<const int32_t> ids) {
    io::StreamDecoder decoder(tokenizer, false);
    std::string text;
    for (const int32_t id : ids) {
        const std::string part = decoder.push(id);
        require(!io::first_invalid_utf8(part), "a streamed part that is not UTF-8", part);
        text += part;
    }
    return text + decoder.finish();
}

// Returns the decoded text.
std::string round_trip(const Tokenizer& tokenizer, std::string_view text) {
    const std::vector<int32_t> ids = tokenizer.encode(text, false);
    for (const int32_t id : ids)
        require(!tokenizer.token_text(id).empty(), "an id that has no piece", std::to_string(id));
    require(tokenizer.encode(text, false) == ids, "other ids the second time, from the cache", std::string(text));
    const std::string decoded = tokenizer.decode(ids, false);
    require(streamed(tokenizer, ids) == decoded, "streaming differs from decoding", decoded);
    return decoded;
}

struct Example {
    Tokenizer tokenizer;
    bool exact;  // every text comes back as it was
};

// One of each kind: Llama 3's, Qwen's, Llama 2's, Gemma's, and added tokens with every flag.
std::vector<Example> make_examples() {
    namespace make = io::test;
    const std::vector<std::pair<std::string, std::string>> merges = {{"t", "h"}, {"th", "e"},  {"Ġ", "the"},
                                                                     {"Ġ", "Ġ"}, {"Ã", "©"},   {"1", "2"},
                                                                     {"e", "e"}, {"ee", "ee"}, {"a", "b"}};
    std::vector<Example> examples;
    Json llama3 = make::byte_level(merges);
    llama3["model"]["ignore_merges"] = true;
    llama3["pre_tokenizer"] = make::sequence(
        "pretokenizers",
        {{{"type", "Split"}, {"pattern", {{"Regex", io::kLlama3Pattern}}}, {"behavior", "Isolated"}, {"invert", false}},
         {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}});
    examples.push_back({make::make(llama3), true});
    Json qwen = llama3;
    qwen["normalizer"] = {{"type", "NFC"}};
    examples.push_back({make::make(qwen), false});
    const Json llama2 =
        make::byte_fallback({"▁", "t", "h", "e", "a", "b", "é"}, {{"t", "h"}, {"th", "e"}, {"▁", "▁"}, {"▁", "the"}});
    examples.push_back({make::make(llama2), false});
    Json gemma = llama2;
    gemma["normalizer"] = {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "▁"}};
    gemma["decoder"]["decoders"].erase(3);
    gemma["added_tokens"].push_back(make::added_token(500, "▁▁▁", false));
    examples.push_back({make::make(gemma), false});
    Json flags = make::byte_level(merges);
    for (int i = 0; i < 8; ++i) {
        Json token = make::added_token(600 + i, std::string("x") + static_cast<char>('0' + i), i % 2 == 0);
        token["lstrip"] = (i & 1) != 0, token["rstrip"] = (i & 2) != 0, token["single_word"] = (i & 4) != 0;
        token["normalized"] = i % 3 == 0;
        flags["added_tokens"].push_back(token);
    }
    examples.push_back({make::make(flags), false});
    return examples;
}

}  // namespace

void tokenizer_json(std::string_view input) {
    answer([&] {
        const Tokenizer tokenizer = Tokenizer::parse(input, "tokenizer.json");
        for (const char* text : {"a word, <s> 12\n", "e\u0301  \u4e2d\u6587ab ab", "\xff<0x0A>"})
            round_trip(tokenizer, text);
        tokenizer.encode("ab", true);
    });
}

void tokenizer_model(std::string_view input) {
    static const Folder folder;
    const auto path = folder.write("tokenizer.model", input);
    answer([&] { round_trip(io::load_tokenizer(path), "a  word, <s> 12\n\u4e2d\u6587"); });
}

void encode(std::string_view input) {
    static const std::vector<Example> examples = make_examples();
    for (const Example& example : examples) {
        const std::string decoded = round_trip(example.tokenizer, input);
        const bool holds = !example.exact || io::first_invalid_utf8(input) || decoded == input;
        require(holds, "another text comes back", decoded);
    }
}

}  // namespace lc::fuzz
