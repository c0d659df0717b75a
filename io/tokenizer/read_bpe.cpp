// tokenizer.json: vocabulary, merges, added tokens; and the whole put together.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "core/check.h"
#include "io/text.h"
#include "io/tokenizer/tokenizer_model.h"

namespace lc::io {
namespace {

constexpr size_t kMaxMerges = 4'000'000;
constexpr size_t kMaxAddedTokens = 65'536;
constexpr size_t kMaxAddedTokenBytes = 512;        // of one: it bounds the time to look for it
constexpr size_t kMaxAddedTokensBytes = 4u << 20;  // of all

int32_t read_id(const Json& value, const JsonObject& owner, std::string_view key, std::string_view piece) {
    const bool fits = value.is_number_integer() && value >= 0 && value <= kMaxTokenId;
    LC_REQUIRE(BadInput, fits, "{}: key '{}': the id of '{}' must be an integer in [0, {}], got {}", owner.source(),
               owner.full_key(key), printable(piece), kMaxTokenId, describe(value));
    return value.get<int32_t>();
}

// The two pieces of one merge, written "left right" or ["left", "right"].
std::pair<std::string, std::string> merge_pieces(const Json& merge, const JsonObject& model, size_t index) {
    const auto refuse = [&] {
        fail(ErrorKind::BadInput, "{}: key '{}[{}]' must be \"left right\" or [\"left\", \"right\"], got {}",
             model.source(), model.full_key("merges"), index, describe(merge));
    };
    std::pair<std::string, std::string> pieces;
    if (merge.is_string()) {
        const auto& text = merge.get_ref<const std::string&>();
        const size_t space = text.find(' ');
        if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos) refuse();
        pieces = {text.substr(0, space), text.substr(space + 1)};
    } else {
        if (!merge.is_array() || merge.size() != 2 || !merge[0].is_string() || !merge[1].is_string()) refuse();
        pieces = {merge[0].get<std::string>(), merge[1].get<std::string>()};
    }
    if (pieces.first.empty() || pieces.second.empty()) refuse();
    return pieces;
}

void refuse_affix(const JsonObject& model, std::string_view key) {
    const auto affix = model.find_string(key);
    if (affix && !affix->empty()) model.fail_key(key, "null or empty (this build supports no such BPE)");
}

// The added tokens join the vocabulary under their own ids, unless the model has them.
void join_added_tokens(const std::vector<AddedToken>& added, const JsonObject& root,
                       std::vector<Vocabulary::Entry>& entries) {
    const Vocabulary model(entries);
    for (const AddedToken& token : added) {
        const auto known = model.id(token.content);
        LC_REQUIRE(BadInput, !known || *known == token.id,
                   "{}: key 'added_tokens': token '{}' must have its id in the vocabulary, {}, got {}", root.source(),
                   printable(token.content), *known, token.id);
        if (known) continue;
        const auto other = model.text(token.id);
        LC_REQUIRE(BadInput, !other, "{}: key 'added_tokens': token '{}' has id {}, which is '{}' in the vocabulary",
                   root.source(), printable(token.content), token.id, printable(*other));
        entries.push_back({token.content, token.id});
    }
}

void add_to_finders(const std::vector<AddedToken>& added, const std::string& source, TokenizerModel& model) {
    RegexScratch scratch;
    for (const AddedToken& token : added) {
        if (token.special) model.special.insert(token.id);
        if (!token.normalized) {
            model.added.add(token, token.content);
            continue;
        }
        std::string storage;
        const std::string_view pattern =
            token.normal_form.empty() ? model.normalizer.run(token.content, storage, scratch) : token.normal_form;
        LC_REQUIRE(BadInput, !pattern.empty(), "{}: key 'added_tokens': nothing is left of '{}' when it is normalized",
                   source, printable(token.content));
        model.normalized.add(token, pattern);
        if (pattern != token.content) model.normal_forms.emplace(token.id, pattern);
    }
}

}  // namespace

std::vector<Vocabulary::Entry> read_vocabulary(const JsonObject& model) {
    const JsonObject vocab = model.get_object("vocab");
    if (vocab.json().empty()) model.fail_key("vocab", "an object of pieces and ids, at least one");
    std::vector<Vocabulary::Entry> entries;
    entries.reserve(vocab.json().size());
    for (const auto& [piece, id] : vocab.json().items()) entries.push_back({piece, read_id(id, model, "vocab", piece)});
    std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) { return a.id < b.id; });
    const auto same = [](const auto& a, const auto& b) { return a.id == b.id; };
    const auto twice = std::adjacent_find(entries.begin(), entries.end(), same);
    LC_REQUIRE(BadInput, twice == entries.end(), "{}: key '{}': '{}' and '{}' have the same id {}", model.source(),
               model.full_key("vocab"), printable(twice->text), printable((twice + 1)->text), twice->id);
    return entries;
}

std::vector<Bpe::Pair> read_merges(const JsonObject& model, const Vocabulary& vocabulary) {
    const Json& merges = model.get_array("merges");
    LC_REQUIRE(BadInput, merges.size() <= kMaxMerges, "{}: key '{}' has {} merges, at most {} are accepted",
               model.source(), model.full_key("merges"), merges.size(), kMaxMerges);
    std::vector<Bpe::Pair> pairs;
    pairs.reserve(merges.size());
    for (size_t i = 0; i < merges.size(); ++i) {
        // A merges.txt that was pasted whole keeps its first line.
        if (merges[i].is_string() && merges[i].get_ref<const std::string&>().starts_with("#version")) continue;
        const auto [left, right] = merge_pieces(merges[i], model, i);
        const auto id_of = [&](const std::string& piece) {
            const auto id = vocabulary.id(piece);
            LC_REQUIRE(BadInput, id, "{}: key '{}[{}]': '{}' is not in the vocabulary", model.source(),
                       model.full_key("merges"), i, printable(piece));
            return *id;
        };
        pairs.push_back({id_of(left), id_of(right), id_of(left + right)});
    }
    return pairs;
}

BpeOptions read_bpe_options(const JsonObject& model, const Vocabulary& vocabulary) {
    BpeOptions options;
    options.unk_token = model.find_string("unk_token");
    if (options.unk_token && !vocabulary.id(*options.unk_token)) model.fail_key("unk_token", "in the vocabulary");
    options.fuse_unk = model.find_bool("fuse_unk").value_or(false);
    options.byte_fallback = model.find_bool("byte_fallback").value_or(false);
    options.ignore_merges = model.find_bool("ignore_merges").value_or(false);
    if (model.find_double("dropout", 0, 1).value_or(0) != 0) model.fail_key("dropout", "null or 0");
    refuse_affix(model, "continuing_subword_prefix");
    refuse_affix(model, "end_of_word_suffix");
    return options;
}

std::vector<AddedToken> read_added_tokens(const JsonObject& root) {
    std::vector<AddedToken> tokens;
    if (!root.has("added_tokens")) return tokens;
    const Json& array = root.get_array("added_tokens");
    LC_REQUIRE(BadInput, array.size() <= kMaxAddedTokens,
               "{}: key 'added_tokens' has {} tokens, at most {} are accepted", root.source(), array.size(),
               kMaxAddedTokens);
    std::unordered_set<std::string> contents;
    std::unordered_set<int32_t> ids;
    size_t bytes = 0;
    for (size_t i = 0; i < array.size(); ++i) {
        const JsonObject object(array[i], root.source(), fmt::format("added_tokens[{}]", i));
        AddedToken token;
        token.content = object.get_string("content");
        if (token.content.empty() || token.content.size() > kMaxAddedTokenBytes)
            object.fail_key("content", fmt::format("1 to {} bytes long", kMaxAddedTokenBytes));
        token.id = read_id(object.get("id"), object, "id", token.content);
        token.single_word = object.find_bool("single_word").value_or(false);
        token.lstrip = object.find_bool("lstrip").value_or(false);
        token.rstrip = object.find_bool("rstrip").value_or(false);
        token.special = object.find_bool("special").value_or(false);
        token.normalized = object.find_bool("normalized").value_or(!token.special);
        token.normal_form = object.find_string("normal_form").value_or("");
        if (token.normal_form.size() > kMaxAddedTokenBytes)
            object.fail_key("normal_form", fmt::format("at most {} bytes long", kMaxAddedTokenBytes));
        if (!contents.insert(token.content).second) object.fail_key("content", "a token not added before");
        if (!ids.insert(token.id).second) object.fail_key("id", "an id not added before");
        bytes += token.content.size();
        tokens.push_back(std::move(token));
    }
    LC_REQUIRE(BadInput, bytes <= kMaxAddedTokensBytes,
               "{}: key 'added_tokens' holds {} bytes, at most {} are accepted", root.source(), bytes,
               kMaxAddedTokensBytes);
    return tokens;
}

TokenizerModel read_tokenizer_model(const Json& json, const std::string& source) {
    const JsonObject root(json, source);
    if (const auto version = root.find_string("version"); version && *version != "1.0")
        root.fail_key("version", "\"1.0\"");
    const JsonObject model = root.get_object("model");
    if (model.find_string("type").value_or("BPE") != "BPE") model.fail_key("type", "\"BPE\"");
    // `truncation` and `padding` are left alone: how long a text may be is the caller's to say.

    std::vector<Vocabulary::Entry> entries = read_vocabulary(model);
    const Vocabulary pieces(entries);
    const std::vector<Bpe::Pair> merges = read_merges(model, pieces);
    BpeOptions options = read_bpe_options(model, pieces);
    PreTokenizer pre_tokenizer = read_pre_tokenizer(root);
    options.byte_level = pre_tokenizer.byte_level;
    const std::vector<AddedToken> added = read_added_tokens(root);
    join_added_tokens(added, root, entries);

    TokenizerModel result{.vocabulary = Vocabulary(entries),
                          .bpe = Bpe(pieces, merges, options),
                          .added = {},
                          .normalized = {},
                          .special = {},
                          .normal_forms = {},
                          .normalizer = read_normalizer(root),
                          .pre_tokenizer = std::move(pre_tokenizer),
                          .decoder = read_decoder(root),
                          .around = {}};
    result.around = read_template(root, result.vocabulary);
    add_to_finders(added, source, result);
    return result;
}

}  // namespace lc::io
