#include "io/tokenizer/tokenizer_json.h"

#include <algorithm>
#include <map>
#include <unordered_map>

#include "core/check.h"
#include "io/json.h"
#include "io/text.h"
#include "io/tokenizer/utf8.h"

namespace lc::io {
namespace {

constexpr const char* kSpace = "\u2581";  // LOWER ONE EIGHTH BLOCK, SentencePiece's space
constexpr const char* kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

using Ids = std::unordered_map<std::string_view, int64_t>;

Ids ids_of(const TokenizerParts& parts, const std::string& source) {
    Ids ids;
    for (size_t i = 0; i < parts.pieces.size(); ++i) {
        const std::string& text = parts.pieces[i].text;
        LC_REQUIRE(BadInput, !text.empty(), "{}: token {} is empty", source, i);
        const bool fresh = ids.emplace(text, static_cast<int64_t>(i)).second;
        LC_REQUIRE(BadInput, fresh, "{}: token '{}' occurs twice, as {} and {}", source, printable(text), ids[text], i);
    }
    LC_REQUIRE(BadInput, !ids.empty(), "{}: has no tokens", source);
    for (const auto& [name, id] : {std::pair("BOS", parts.bos), {"EOS", parts.eos}, {"unknown", parts.unk}})
        LC_REQUIRE(BadInput, !id || (*id >= 0 && *id < std::ssize(parts.pieces)),
                   "{}: the {} token has id {}, there are {} tokens", source, name, *id, parts.pieces.size());
    return ids;
}

Json added_tokens_of(const TokenizerParts& parts) {
    Json added = Json::array();
    for (size_t i = 0; i < parts.pieces.size(); ++i) {
        const Piece& piece = parts.pieces[i];
        const bool special = piece.type == PieceType::control || piece.type == PieceType::unknown;
        if (!special && piece.type != PieceType::user_defined) continue;
        const bool normalized = !special && parts.symbols_after_normalizing;
        added.push_back({{"id", i},
                         {"content", piece.text},
                         {"single_word", false},
                         {"lstrip", false},
                         {"rstrip", false},
                         {"normalized", normalized},
                         {"special", special}});
        if (normalized) added.back()["normal_form"] = piece.text;
    }
    return added;
}

// BOS and EOS around a text, where they are wanted.
Json template_of(const TokenizerParts& parts, const std::string& source) {
    if (!parts.add_bos && !parts.add_eos) return nullptr;
    Json single = Json::array(), special = Json::object();
    const auto add = [&](const std::optional<int64_t>& id, const char* name) {
        LC_REQUIRE(BadInput, id, "{}: {} is to be added, but no token is it", source, name);
        const std::string& text = parts.pieces[static_cast<size_t>(*id)].text;
        single.push_back({{"SpecialToken", {{"id", text}, {"type_id", 0}}}});
        special[text] = {{"id", text}, {"ids", {*id}}, {"tokens", {text}}};
    };
    if (parts.add_bos) add(parts.bos, "BOS");
    single.push_back({{"Sequence", {{"id", "A"}, {"type_id", 0}}}});
    if (parts.add_eos) add(parts.eos, "EOS");
    return {{"type", "TemplateProcessing"}, {"single", single}, {"pair", single}, {"special_tokens", special}};
}

Json vocabulary_of(const TokenizerParts& parts) {
    Json vocab = Json::object();
    for (size_t i = 0; i < parts.pieces.size(); ++i) vocab[parts.pieces[i].text] = i;
    return vocab;
}

// A piece put together from two.
struct Merge {
    std::string_view left, right;
    double score;  // of the piece
};

// Every split of every normal piece into two pieces. Of one piece, those with lower ids first.
std::vector<Merge> splits_of(const TokenizerParts& parts, const Ids& ids) {
    std::vector<Merge> merges;
    for (const Piece& piece : parts.pieces) {
        if (piece.type != PieceType::normal) continue;
        const std::string_view text = piece.text;
        const size_t first = merges.size();
        for (size_t cut = utf8_sequence_length(text[0]); cut < text.size(); cut += utf8_sequence_length(text[cut])) {
            const std::string_view left = text.substr(0, cut), right = text.substr(cut);
            if (ids.contains(left) && ids.contains(right)) merges.push_back({left, right, piece.score});
        }
        std::stable_sort(
            merges.begin() + static_cast<ptrdiff_t>(first), merges.end(), [&](const Merge& a, const Merge& b) {
                return std::pair(ids.at(a.left), ids.at(a.right)) < std::pair(ids.at(b.left), ids.at(b.right));
            });
    }
    return merges;
}

int64_t characters_of(std::string_view text) {
    return std::ranges::count_if(text, [](char c) { return (static_cast<unsigned char>(c) & 0xC0u) != 0x80u; });
}

// Higher pieces first, then the longer left part, then the longer right one, as Hugging Face orders them.
Json sentencepiece_merges(const TokenizerParts& parts, const Ids& ids) {
    std::vector<Merge> merges = splits_of(parts, ids);
    std::ranges::stable_sort(merges, std::greater<>(), [](const Merge& m) {
        return std::tuple(m.score, characters_of(m.left), characters_of(m.right));
    });
    Json result = Json::array();
    for (const Merge& merge : merges) result.push_back(Json::array({merge.left, merge.right}));
    return result;
}

Json root_of(const TokenizerParts& parts, const std::string& source) {
    return {{"version", "1.0"},
            {"truncation", nullptr},
            {"padding", nullptr},
            {"added_tokens", added_tokens_of(parts)},
            {"normalizer", nullptr},
            {"pre_tokenizer", nullptr},
            {"post_processor", template_of(parts, source)}};
}

Json words_of(std::string_view split, const std::string& source) {
    const bool regex = split != "llama3";
    const Json bytes = {
        {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", regex}};
    if (split == "gpt2") return bytes;
    Json first = {{"type", "Digits"}, {"individual_digits", true}};
    if (split == "llama3")
        first = {
            {"type", "Split"}, {"pattern", {{"Regex", kLlama3Pattern}}}, {"behavior", "Isolated"}, {"invert", false}};
    LC_CHECK(split == "llama3" || split == "smollm", "{}: unknown split '{}'", source, split);
    return {{"type", "Sequence"}, {"pretokenizers", {first, bytes}}};
}

}  // namespace

std::string sentencepiece_json(const TokenizerParts& parts, bool dummy_prefix, const std::string& source) {
    const Ids ids = ids_of(parts, source);
    Json root = root_of(parts, source);
    Json steps = Json::array();
    if (dummy_prefix) steps.push_back({{"type", "Prepend"}, {"prepend", kSpace}});
    steps.push_back({{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", kSpace}});
    root["normalizer"] = {{"type", "Sequence"}, {"normalizers", steps}};
    steps = {{{"type", "Replace"}, {"pattern", {{"String", kSpace}}}, {"content", " "}},
             {{"type", "ByteFallback"}},
             {{"type", "Fuse"}}};
    if (dummy_prefix) steps.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
    root["decoder"] = {{"type", "Sequence"}, {"decoders", steps}};
    const Json unknown = parts.unk ? Json(parts.pieces[static_cast<size_t>(*parts.unk)].text) : Json(nullptr);
    root["model"] = {{"type", "BPE"},
                     {"dropout", nullptr},
                     {"unk_token", unknown},
                     {"fuse_unk", true},
                     {"byte_fallback", true},
                     {"ignore_merges", false},
                     {"vocab", vocabulary_of(parts)},
                     {"merges", sentencepiece_merges(parts, ids)}};
    return root.dump();
}

std::string byte_level_json(const TokenizerParts& parts, const std::vector<std::string>& merges, std::string_view split,
                            const std::string& source) {
    ids_of(parts, source);
    Json root = root_of(parts, source);
    root["pre_tokenizer"] = words_of(split, source);
    root["decoder"] = {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}};
    root["model"] = {{"type", "BPE"},
                     {"dropout", nullptr},
                     {"unk_token", nullptr},
                     {"fuse_unk", false},
                     {"byte_fallback", false},
                     {"ignore_merges", split == "llama3"},
                     {"vocab", vocabulary_of(parts)},
                     {"merges", merges}};
    return root.dump();
}

std::vector<std::string> merges_by_score(const TokenizerParts& parts, const std::string& source) {
    const Ids ids = ids_of(parts, source);
    std::vector<Merge> merges = splits_of(parts, ids);
    std::ranges::stable_sort(merges, std::greater<>(), &Merge::score);
    std::vector<std::string> result;
    for (const Merge& merge : merges) result.push_back(fmt::format("{} {}", merge.left, merge.right));
    return result;
}

}  // namespace lc::io
