// Small tokenizers for tests, made as JSON so that a test can bend any key before it is parsed.
#pragma once
#include <string>
#include <vector>

#include "io/json.h"
#include "io/tokenizer/byte_alphabet.h"
#include "io/tokenizer/tokenizer.h"

namespace lc::io::test {

using lc::io::Json;

inline Json sequence(const char* list, std::vector<Json> members) {
    return {{"type", "Sequence"}, {list, members}};
}

inline Json added_token(int id, const std::string& content, bool special = true) {
    return {{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
            {"rstrip", false}, {"normalized", false}, {"special", special}};
}

inline Json template_with_bos(const std::string& token, int id) {
    return {{"type", "TemplateProcessing"},
            {"single",
             {{{"SpecialToken", {{"id", token}, {"type_id", 0}}}}, {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}}},
            {"pair", Json::array()},
            {"special_tokens", {{token, {{"id", token}, {"ids", {id}}, {"tokens", {token}}}}}}};
}

// The 256 bytes have ids 0..255, each merge the next one; then <bos> and <eos>. Llama 3's kind.
inline Json byte_level(const std::vector<std::pair<std::string, std::string>>& merges = {}) {
    Json vocab = Json::object(), merge_list = Json::array();
    int id = 0;
    for (; id < 256; ++id) vocab[to_alphabet(std::string(1, static_cast<char>(id)))] = id;
    for (const auto& [left, right] : merges) {
        if (!vocab.contains(left + right)) vocab[left + right] = id++;
        merge_list.push_back({left, right});
    }
    return {{"version", "1.0"},
            {"truncation", nullptr},
            {"padding", nullptr},
            {"added_tokens", {added_token(id, "<bos>"), added_token(id + 1, "<eos>")}},
            {"normalizer", nullptr},
            {"pre_tokenizer",
             {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}}},
            {"post_processor", template_with_bos("<bos>", id)},
            {"decoder",
             {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}}},
            {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", merge_list}}}};
}

// <unk> <s> </s>, the bytes <0x00>.. as ids 3..258, the characters given, the merges. Llama 2's kind.
inline Json byte_fallback(const std::vector<std::string>& characters,
                          const std::vector<std::pair<std::string, std::string>>& merges = {}) {
    Json vocab = {{"<unk>", 0}, {"<s>", 1}, {"</s>", 2}}, merge_list = Json::array();
    int id = 3;
    for (int byte = 0; byte < 256; ++byte) {
        const char* digits = "0123456789ABCDEF";
        vocab[std::string("<0x") + digits[byte / 16] + digits[byte % 16] + ">"] = id++;
    }
    for (const std::string& character : characters) vocab[character] = id++;
    for (const auto& [left, right] : merges) {
        if (!vocab.contains(left + right)) vocab[left + right] = id++;
        merge_list.push_back(left + " " + right);
    }
    const Json space = {{"String", " "}}, mark = {{"String", "▁"}};
    return {{"version", "1.0"},
            {"added_tokens", {added_token(0, "<unk>"), added_token(1, "<s>"), added_token(2, "</s>")}},
            {"normalizer", sequence("normalizers", {{{"type", "Prepend"}, {"prepend", "▁"}},
                                                    {{"type", "Replace"}, {"pattern", space}, {"content", "▁"}}})},
            {"pre_tokenizer", nullptr},
            {"post_processor", template_with_bos("<s>", 1)},
            {"decoder", sequence("decoders", {{{"type", "Replace"}, {"pattern", mark}, {"content", " "}},
                                              {{"type", "ByteFallback"}},
                                              {{"type", "Fuse"}},
                                              {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}}})},
            {"model",
             {{"type", "BPE"},
              {"unk_token", "<unk>"},
              {"fuse_unk", true},
              {"byte_fallback", true},
              {"vocab", vocab},
              {"merges", merge_list}}}};
}

inline Tokenizer make(const Json& json) {
    return Tokenizer::parse(json.dump(), "tokenizer.json");
}

// The pieces of a text, as the vocabulary spells them.
inline std::vector<std::string> pieces(const Tokenizer& tokenizer, std::string_view text) {
    std::vector<std::string> result;
    for (const int32_t id : tokenizer.encode(text, false)) result.push_back(tokenizer.token_text(id));
    return result;
}

}  // namespace lc::io::test
