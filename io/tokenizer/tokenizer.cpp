#include "io/tokenizer/tokenizer.h"

#include <mutex>
#include <utility>

#include "core/check.h"
#include "io/file.h"
#include "io/json.h"
#include "io/text.h"
#include "io/tokenizer/tokenizer_model.h"
#include "io/tokenizer/utf8.h"

namespace lc::io {
namespace {

constexpr int64_t kMaxFileBytes = int64_t{64} << 20;
constexpr size_t kKeptScratches = 64;
constexpr size_t kKeptSymbols = size_t{1} << 20;  // larger buffers, left by an enormous word, are given back

struct EncodeScratch {
    RegexScratch regex;
    Bpe::Scratch bpe;
};

// The scratches that no call is using. Encoding takes one for its whole call, so that its cache of words needs no lock.
class ScratchPool {
  public:
    std::unique_ptr<EncodeScratch> take() {
        const std::lock_guard lock(mutex_);
        if (idle_.empty()) return std::make_unique<EncodeScratch>();
        auto scratch = std::move(idle_.back());
        idle_.pop_back();
        return scratch;
    }
    void give_back(std::unique_ptr<EncodeScratch> scratch) {
        if (scratch->bpe.symbols.capacity() > kKeptSymbols) {
            WordCache cache = std::move(scratch->bpe.cache);
            scratch->bpe = {};
            scratch->bpe.cache = std::move(cache);
        }
        if (scratch->regex.match_form_storage.capacity() > kKeptSymbols) scratch->regex.match_form_storage = {};
        const std::lock_guard lock(mutex_);
        if (idle_.size() < kKeptScratches) idle_.push_back(std::move(scratch));
    }

  private:
    std::mutex mutex_;
    std::vector<std::unique_ptr<EncodeScratch>> idle_;
};

class BpeSink final : public WordSink {
  public:
    BpeSink(const Bpe& bpe, Bpe::Scratch& scratch, std::vector<int32_t>& ids)
        : bpe_(bpe), scratch_(scratch), ids_(ids) {}
    void word(std::string_view word) override { bpe_.encode(word, scratch_, ids_); }

  private:
    const Bpe& bpe_;
    Bpe::Scratch& scratch_;
    std::vector<int32_t>& ids_;
};

void encode_text(const TokenizerModel& model, std::string_view text, EncodeScratch& scratch,
                 std::vector<int32_t>& ids) {
    BpeSink sink(model.bpe, scratch.bpe, ids);
    model.added.split(text, [&](std::string_view raw, const AddedToken* token) {
        if (token) {
            ids.push_back(token->id);
            return;
        }
        const bool at_start = raw.data() == text.data();
        std::string storage;
        const std::string_view normal = model.normalizer.run(raw, storage, scratch.regex);
        model.normalized.split(normal, [&](std::string_view piece, const AddedToken* found) {
            if (found)
                ids.push_back(found->id);
            else
                model.pre_tokenizer.run(piece, at_start && piece.data() == normal.data(), scratch.regex, sink);
        });
    });
}

}  // namespace

std::optional<std::string_view> TokenizerModel::piece_to_decode(int32_t id, bool skip_special_tokens) const {
    if (skip_special_tokens && special.contains(id)) return std::nullopt;
    const auto form = normal_forms.find(id);
    return form == normal_forms.end() ? vocabulary.text(id) : form->second;
}

struct Tokenizer::Shared {
    TokenizerModel model;
    std::string hash;
    mutable ScratchPool scratches;
};

Tokenizer::Tokenizer(std::shared_ptr<const Shared> shared) : shared_(std::move(shared)) {}

Tokenizer Tokenizer::load(const std::filesystem::path& tokenizer_json) {
    return parse(read_file(tokenizer_json, kMaxFileBytes), tokenizer_json.string(),
                 tokenizer_json.parent_path() / "tokenizer_config.json");
}

Tokenizer Tokenizer::parse(std::string_view tokenizer_json, const std::string& source,
                           const std::filesystem::path& tokenizer_config) {
    const Json json = parse_json(tokenizer_json, source, {.max_bytes = kMaxFileBytes});
    auto shared = std::shared_ptr<Shared>(
        new Shared{.model = read_tokenizer_model(json, source), .hash = xxh3_128_hex(tokenizer_json), .scratches = {}});
    Tokenizer tokenizer(std::move(shared));
    tokenizer.find_well_known_ids();
    std::error_code ignored;
    if (!tokenizer_config.empty() && std::filesystem::exists(tokenizer_config, ignored))
        tokenizer.read_config(tokenizer_config);
    return tokenizer;
}

void Tokenizer::find_well_known_ids() {
    const auto first_special = [&](std::initializer_list<std::string_view> names) -> std::optional<int32_t> {
        for (const std::string_view name : names)
            if (const auto id = token_id(name); id && is_special(*id)) return id;
        return std::nullopt;
    };
    const auto& before = shared_->model.around.before;
    bos_ = before.empty() ? first_special({"<|begin_of_text|>", "<s>", "<bos>"}) : before.front();
    eos_ = first_special({"<|end_of_text|>", "</s>", "<|endoftext|>", "<eos>"});
}

void Tokenizer::read_config(const std::filesystem::path& tokenizer_config) {
    const Json json = read_json_file(tokenizer_config);
    const JsonObject config(json, tokenizer_config.string());
    // "eos_token" is a text, or an object whose "content" is it, or null.
    const auto named = [&](std::string_view key) -> std::optional<int32_t> {
        const Json* value = config.find(key);
        if (value == nullptr) return std::nullopt;
        const std::string name =
            value->is_object() ? config.get_object(key).get_string("content") : config.get_string(key);
        const auto id = token_id(name);
        if (!id) config.fail_key(key, "a token of tokenizer.json");
        return id;
    };
    if (const auto eos = named("eos_token")) eos_ = eos;
    const auto bos = named("bos_token");
    if (bos && shared_->model.around.before.empty()) bos_ = bos;
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool add_special_tokens) const {
    const TokenizerModel& model = shared_->model;
    std::string repaired;
    if (first_invalid_utf8(text)) {
        repaired = repair_utf8(text);
        text = repaired;
    }
    std::vector<int32_t> ids;
    ids.reserve(text.size() / 4 + 8);
    if (add_special_tokens) ids = model.around.before;
    auto scratch = shared_->scratches.take();
    encode_text(model, text, *scratch, ids);
    shared_->scratches.give_back(std::move(scratch));
    if (add_special_tokens) ids.insert(ids.end(), model.around.after.begin(), model.around.after.end());
    return ids;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special_tokens) const {
    const TokenizerModel& model = shared_->model;
    DecodeRun run(model.decoder);
    std::string text;
    for (const int32_t id : ids) {
        if (const auto piece = model.piece_to_decode(id, skip_special_tokens)) run.push(*piece, text);
    }
    run.finish(text);
    return text;
}

int32_t Tokenizer::vocab_size() const {
    return shared_->model.vocabulary.size();
}

std::optional<int32_t> Tokenizer::token_id(std::string_view piece) const {
    return shared_->model.vocabulary.id(piece);
}

std::string Tokenizer::token_text(int32_t id) const {
    return std::string(shared_->model.vocabulary.text(id).value_or(""));
}

bool Tokenizer::is_special(int32_t id) const {
    return shared_->model.special.contains(id);
}

const std::string& Tokenizer::content_hash() const {
    return shared_->hash;
}

struct StreamDecoder::State {
    std::shared_ptr<const Tokenizer::Shared> shared;
    bool skip_special_tokens;
    DecodeRun run;
};

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, bool skip_special_tokens)
    : state_(new State{tokenizer.shared_, skip_special_tokens, DecodeRun(tokenizer.shared_->model.decoder)}) {}
StreamDecoder::~StreamDecoder() = default;
StreamDecoder::StreamDecoder(StreamDecoder&&) noexcept = default;
StreamDecoder& StreamDecoder::operator=(StreamDecoder&&) noexcept = default;

std::string StreamDecoder::push(int32_t id) {
    const TokenizerModel& model = state_->shared->model;
    std::string text;
    if (const auto piece = model.piece_to_decode(id, state_->skip_special_tokens)) state_->run.push(*piece, text);
    return text;
}

std::string StreamDecoder::finish() {
    std::string text;
    state_->run.finish(text);
    return text;
}

}  // namespace lc::io
