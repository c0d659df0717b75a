// How a conversation is written down for a model: the built-in templates, and which one a model's files ask for.
//
//   alpaca    the Stanford Alpaca prompt without input; later turns by "### Instruction:" and "### Response:"
//   llama2    <s>[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{user} [/INST] {answer} </s><s>[INST] ...
//   llama3    <|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>...
//   mistral   <s>[INST] {system}\n\n{user} [/INST]{answer}</s>[INST] ...
//   chatml    <|im_start|>{role}\n{text}<|im_end|>\n...
//
// As everywhere, special tokens written out in a message become their ids.
#pragma once
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "io/tokenizer/tokenizer.h"

namespace lc::models {

enum class ChatStyle : uint8_t { Alpaca, Llama2, Llama3, Mistral, ChatMl };

class ChatTemplate {
  public:
    // Throws Error(Usage) for an unknown name; Error(BadInput) for a template whose special tokens the tokenizer lacks,
    // since the model could not know it.
    ChatTemplate(std::string_view name, const io::Tokenizer& tokenizer);

    std::string_view name() const;
    // The ids of a user's turn, up to where the answer begins. `said`: all ids before it; none yet: BOS and the system
    // prompt (empty: none) come first. An answer that was cut short gets its end. Throws Error(Usage) for a system
    // prompt where the template has none.
    std::vector<int32_t> turn(std::string_view user, std::string_view system, const std::vector<int32_t>& said) const;
    // What ends an answer, beside the model's own ids for it.
    const std::vector<int64_t>& end_ids() const { return end_ids_; }
    std::vector<std::string> stop_strings() const;

  private:
    std::string first_text(std::string_view user, std::string_view system) const;
    std::string next_text(std::string_view user) const;

    ChatStyle style_;
    io::Tokenizer tokenizer_;
    std::vector<int64_t> end_ids_;  // the first one closes an answer that has no end; empty: nothing does
};

// The name of the built-in template that a model's own one is: chat_template.jinja of its directory, else `chat_template` of
// tokenizer_config.json, or that of a GGUF file's metadata, told by the marks it uses. nullopt when there is none or it is unlike all; nothing is guessed.
std::optional<std::string> recognize_chat_template(const std::filesystem::path& model);

}  // namespace lc::models
