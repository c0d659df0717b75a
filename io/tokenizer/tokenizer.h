// Text to token ids and back, by a model's tokenizer.json: byte-level BPE (Llama 3, GPT-2, Qwen) and
// SentencePiece-style BPE with byte fallback (Llama 2, Mistral). The ids are those of HF tokenizers.
//
//   const Tokenizer tokenizer = Tokenizer::load(dir / "tokenizer.json");
//   std::vector<int32_t> ids = tokenizer.encode("Hello", true);
//   std::string text = tokenizer.decode(ids, true);
#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace lc::io {

struct TokenizerModel;

// A cheap handle: copies share everything. All const members may be called from several threads at once.
class Tokenizer {
  public:
    // Throws BadInput, naming file, key, what is wanted and what is there, when the file is malformed or uses something
    // that is not supported. Reads `tokenizer_config.json` beside it for the names of BOS and EOS when there is one.
    static Tokenizer load(const std::filesystem::path& tokenizer_json);
    // The same from memory; `source` names it in messages. `tokenizer_config`: the file of that name, if there is one.
    static Tokenizer parse(std::string_view tokenizer_json, const std::string& source,
                           const std::filesystem::path& tokenizer_config = {});

    // Ill-formed UTF-8 is read as Python's errors="replace" does: U+FFFD for each maximal ill-formed part. Special
    // tokens written out in the text become their ids. `add_special_tokens` adds what the post-processor says (BOS).
    std::vector<int32_t> encode(std::string_view text, bool add_special_tokens) const;

    // Ids that the vocabulary lacks stand for nothing. The result is well-formed UTF-8.
    std::string decode(std::span<const int32_t> ids, bool skip_special_tokens) const;

    int32_t vocab_size() const;                                     // the largest id + 1
    std::optional<int32_t> token_id(std::string_view piece) const;  // a piece as the file spells it: "Ġthe", "<s>"
    std::string token_text(int32_t id) const;                       // the reverse; empty for an id that is not there
    bool is_special(int32_t id) const;

    // BOS: what the post-processor puts first; else `bos_token` of tokenizer_config.json; else a well-known name that
    // is a special token. EOS: `eos_token` of tokenizer_config.json, else a well-known name. A model's config.json may
    // know better: set_*.
    std::optional<int32_t> bos_id() const { return bos_; }
    std::optional<int32_t> eos_id() const { return eos_; }
    void set_bos_id(std::optional<int32_t> id) { bos_ = id; }
    void set_eos_id(std::optional<int32_t> id) { eos_ = id; }

    // XXH3-128 of the file, 32 hex digits: data that were tokenized can say by what.
    const std::string& content_hash() const;

  private:
    friend class StreamDecoder;
    struct Shared;
    explicit Tokenizer(std::shared_ptr<const Shared> shared);
    void find_well_known_ids();
    void read_config(const std::filesystem::path& tokenizer_config);

    std::shared_ptr<const Shared> shared_;
    std::optional<int32_t> bos_, eos_;
};

// Decodes as tokens come. What push returns ends on whole characters, and all that push and finish return, put
// together, is decode() of all ids. Tokens of part of a character (and, with byte fallback, runs of <0xNN>, whose
// reading depends on the whole run) are held back until they are decided.
class StreamDecoder {
  public:
    explicit StreamDecoder(const Tokenizer& tokenizer, bool skip_special_tokens = true);
    ~StreamDecoder();
    StreamDecoder(StreamDecoder&&) noexcept;
    StreamDecoder& operator=(StreamDecoder&&) noexcept;

    std::string push(int32_t id);
    std::string finish();  // the rest; the decoder is as new after it

  private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace lc::io
