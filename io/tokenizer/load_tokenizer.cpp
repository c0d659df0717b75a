#include "io/tokenizer/load_tokenizer.h"

#include <charconv>

#include "core/check.h"
#include "io/file.h"
#include "io/hf_config.h"
#include "io/json.h"
#include "io/text.h"
#include "io/tokenizer/tokenizer_json.h"
#include "io/tokenizer/tokenizer_model_file.h"

namespace lc::io {
namespace {

constexpr int64_t kMaxModelFile = int64_t{64} << 20;
constexpr size_t kLlama3Ranks = 128000;
constexpr const char* kTokens = "tokenizer.ggml.tokens";

TokenizerParts parts_of(const JsonObject& json) {
    TokenizerParts parts;
    for (std::string& text : json.get_strings(kTokens)) parts.pieces.push_back({.text = std::move(text)});
    const size_t count = parts.pieces.size();
    const auto list = [&](const char* key) -> const Json* {
        if (!json.has(key)) return nullptr;
        const Json& array = json.get_array(key);
        if (array.size() != count) json.fail_key(key, fmt::format("an array of {}, one a token", count));
        return &array;
    };
    if (const Json* types = list("tokenizer.ggml.token_type"))
        for (size_t i = 0; i < count; ++i) {
            const auto type = as_int((*types)[i]);
            LC_REQUIRE(BadInput, type && *type >= 1 && *type <= 6,
                       "{}: key 'tokenizer.ggml.token_type' must hold 1 to 6, got {}", json.source(),
                       describe((*types)[i]));
            parts.pieces[i].type = static_cast<PieceType>(*type);
        }
    if (const Json* scores = list("tokenizer.ggml.scores"))
        for (size_t i = 0; i < count; ++i) {
            LC_REQUIRE(BadInput, (*scores)[i].is_number(), "{}: key 'tokenizer.ggml.scores' must hold numbers, got {}",
                       json.source(), describe((*scores)[i]));
            parts.pieces[i].score = (*scores)[i].get<double>();
        }
    const auto id = [&](const char* key) { return json.find_int(key, 0, std::ssize(parts.pieces) - 1); };
    parts.bos = id("tokenizer.ggml.bos_token_id"), parts.eos = id("tokenizer.ggml.eos_token_id");
    parts.unk = id("tokenizer.ggml.unknown_token_id");
    parts.add_eos = json.find_bool("tokenizer.ggml.add_eos_token").value_or(false);
    return parts;
}

// Later members of the family give reserved tokens names: tokenizer_config.json says which.
void name_special_tokens(const JsonObject& config, TokenizerParts& parts) {
    const auto named = config.find_object("added_tokens_decoder");
    if (!named) return;
    for (const auto& [key, value] : named->json().items()) {
        size_t id = 0;
        const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
        const bool reserved =
            error == std::errc() && end == key.data() + key.size() && id >= kLlama3Ranks && id < parts.pieces.size();
        if (!reserved) named->fail_key(key, "named by the id of a special token");
        parts.pieces[id].text = named->get_object(key).get_string("content");
    }
}

// How llama.cpp names the ways to cut text into words, and how byte_level_json does.
std::string_view split_of(const JsonObject& json) {
    constexpr std::pair<std::string_view, std::string_view> kSplits[] = {{"llama-bpe", "llama3"}, {"llama3", "llama3"},
                                                                         {"llama-v3", "llama3"},  {"smollm", "smollm"},
                                                                         {"gpt-2", "gpt2"},       {"gpt2", "gpt2"}};
    const std::string pre = json.get_string("tokenizer.ggml.pre");
    for (const auto& [theirs, ours] : kSplits)
        if (pre == theirs) return ours;
    json.fail_key("tokenizer.ggml.pre", "llama-bpe, smollm or gpt-2");
}

Tokenizer tokenizer_of_model_file(const std::filesystem::path& path) {
    const std::string source = path.string(), bytes = read_file(path, kMaxModelFile);
    const std::filesystem::path config_path = path.parent_path() / "tokenizer_config.json";
    std::error_code ignored;
    const Json config = std::filesystem::exists(config_path, ignored) ? read_json_file(config_path) : Json::object();
    const JsonObject json(config, config_path.string());
    std::string text;
    if (looks_like_tiktoken(bytes)) {
        TokenizerParts parts{.pieces = read_tiktoken(bytes, source), .add_bos = true};
        const std::vector<std::string> merges = merges_by_score(parts, source);
        LC_REQUIRE(BadInput, parts.pieces.size() == kLlama3Ranks,
                   "{}: has {} ranks; of tiktoken files only Llama 3's, with {}, are supported", source,
                   parts.pieces.size(), kLlama3Ranks);
        parts.bos = static_cast<int64_t>(kLlama3Ranks);
        for (Piece& special : llama3_special_tokens()) parts.pieces.push_back(std::move(special));
        name_special_tokens(json, parts);
        text = byte_level_json(parts, merges, "llama3", source);
    } else {
        SentencePieceModel model = read_sentencepiece(bytes, source);
        model.parts.add_bos = json.find_bool("add_bos_token").value_or(true);
        model.parts.add_eos = json.find_bool("add_eos_token").value_or(false);
        text = sentencepiece_json(model.parts, model.dummy_prefix, source);
    }
    return Tokenizer::parse(text, source, config_path);
}

}  // namespace

Tokenizer tokenizer_of(const GgufFile& file) {
    const std::string source = file.path().string();
    const JsonObject json(file.metadata(), source);
    const std::string model = json.get_string("tokenizer.ggml.model");
    if (model != "llama" && model != "gpt2") json.fail_key("tokenizer.ggml.model", "\"llama\" or \"gpt2\"");
    TokenizerParts parts = parts_of(json);
    const auto add_bos = json.find_bool("tokenizer.ggml.add_bos_token");
    std::string text;
    if (model == "llama") {
        LC_REQUIRE(BadInput, json.has("tokenizer.ggml.scores"), "{}: key 'tokenizer.ggml.scores' is missing", source);
        parts.add_bos = add_bos.value_or(true);
        text = sentencepiece_json(parts, json.find_bool("tokenizer.ggml.add_space_prefix").value_or(true), source);
    } else {
        const std::string_view split = split_of(json);
        parts.add_bos = add_bos.value_or(split == "llama3");
        text = byte_level_json(parts, json.get_strings("tokenizer.ggml.merges"), split, source);
    }
    Tokenizer tokenizer = Tokenizer::parse(text, source);
    if (parts.bos) tokenizer.set_bos_id(static_cast<int32_t>(*parts.bos));
    if (parts.eos) tokenizer.set_eos_id(static_cast<int32_t>(*parts.eos));
    return tokenizer;
}

Tokenizer load_tokenizer(const std::filesystem::path& path) {
    if (is_gguf(path)) return tokenizer_of(GgufFile(path));
    std::error_code ignored;
    if (!std::filesystem::is_directory(path, ignored))
        return path.extension() == ".model" ? tokenizer_of_model_file(path) : Tokenizer::load(path);
    if (std::filesystem::exists(path / "tokenizer.json", ignored)) return Tokenizer::load(path / "tokenizer.json");
    if (std::filesystem::exists(path / "tokenizer.model", ignored))
        return tokenizer_of_model_file(path / "tokenizer.model");
    config_file_of(path);  // where a folder is no model's at all, that says more
    fail(ErrorKind::BadInput, "{}: holds neither tokenizer.json nor tokenizer.model", path.string());
}

}  // namespace lc::io
