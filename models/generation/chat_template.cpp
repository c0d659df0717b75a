#include "models/generation/chat_template.h"

#include <algorithm>
#include <array>

#include "core/check.h"
#include "io/dataset/alpaca.h"
#include "io/file.h"
#include "io/gguf.h"
#include "io/json.h"
#include "io/text.h"

namespace lc::models {
namespace {

constexpr std::array<std::string_view, 5> kNames = {"alpaca", "llama2", "llama3", "mistral", "chatml"};
constexpr int64_t kMaxTemplateBytes = int64_t{1} << 20;

ChatStyle style_of(std::string_view name) {
    const auto found = std::find(kNames.begin(), kNames.end(), name);
    LC_REQUIRE(Usage, found != kNames.end(), "unknown chat template '{}' — one of {}", io::printable(name),
               fmt::join(kNames, ", "));
    return static_cast<ChatStyle>(found - kNames.begin());
}

// Special tokens that the template is written in; the first one ends an answer.
std::vector<std::string_view> special_tokens(ChatStyle style) {
    if (style == ChatStyle::Llama3) return {"<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"};
    if (style == ChatStyle::ChatMl) return {"<|im_end|>", "<|im_start|>"};
    return {};
}

// Meta's templates take the space around a message away.
std::string_view trimmed(std::string_view text) {
    constexpr std::string_view kSpace = " \t\r\n";
    const size_t first = text.find_first_not_of(kSpace);
    return first == std::string_view::npos ? std::string_view()
                                           : text.substr(first, text.find_last_not_of(kSpace) + 1 - first);
}

std::string llama3_message(std::string_view role, std::string_view text) {
    return fmt::format("<|start_header_id|>{}<|end_header_id|>\n\n{}<|eot_id|>", role, trimmed(text));
}
std::string chatml_message(std::string_view role, std::string_view text) {
    return fmt::format("<|im_start|>{}\n{}<|im_end|>\n", role, text);
}

constexpr std::string_view kLlama3Answer = "<|start_header_id|>assistant<|end_header_id|>\n\n";
constexpr std::string_view kChatMlAnswer = "<|im_start|>assistant\n";

// Several named templates may stand in tokenizer_config.json.
std::string template_text(const io::JsonObject& config) {
    const io::Json* value = config.find("chat_template");
    if (value == nullptr) return {};
    if (value->is_string()) return value->get<std::string>();
    for (const io::Json& entry : config.get_array("chat_template")) {
        const io::JsonObject named(entry, config.source(), "chat_template");
        if (named.get_string("name") == "default") return named.get_string("template");
    }
    return {};
}

}  // namespace

ChatTemplate::ChatTemplate(std::string_view name, const io::Tokenizer& tokenizer)
    : style_(style_of(name)), tokenizer_(tokenizer) {
    const std::vector<std::string_view> tokens = special_tokens(style_);
    for (const std::string_view token : tokens)
        LC_REQUIRE(BadInput, tokenizer.token_id(token),
                   "chat template {} is written in the token '{}', which this model's tokenizer does not have", name,
                   token);
    if (!tokens.empty())
        end_ids_ = {*tokenizer.token_id(tokens[0])};
    else if (const auto eos = tokenizer.eos_id())
        end_ids_ = {*eos};
}

std::string_view ChatTemplate::name() const {
    return kNames[static_cast<size_t>(style_)];
}

std::string ChatTemplate::first_text(std::string_view user, std::string_view system) const {
    switch (style_) {
        case ChatStyle::Alpaca:
            LC_REQUIRE(Usage, system.empty(), "chat template alpaca has no system prompt");
            return io::alpaca_prompt({.instruction = std::string(user), .input = {}, .output = {}});
        case ChatStyle::Llama2:
            if (!system.empty())
                return fmt::format("[INST] <<SYS>>\n{}\n<</SYS>>\n\n{} [/INST]", trimmed(system), trimmed(user));
            break;
        case ChatStyle::Llama3:
            if (!system.empty())
                return llama3_message("system", system) + llama3_message("user", user) + std::string(kLlama3Answer);
            break;
        case ChatStyle::Mistral:
            if (!system.empty()) return fmt::format("[INST] {}\n\n{} [/INST]", system, user);
            break;
        case ChatStyle::ChatMl:
            if (!system.empty())
                return chatml_message("system", system) + chatml_message("user", user) + std::string(kChatMlAnswer);
            break;
    }
    return next_text(user);
}

std::string ChatTemplate::next_text(std::string_view user) const {
    switch (style_) {
        case ChatStyle::Alpaca:
            return fmt::format("\n\n### Instruction:\n{}\n\n### Response:\n", user);
        case ChatStyle::Llama2:
            return fmt::format("[INST] {} [/INST]", trimmed(user));
        case ChatStyle::Llama3:
            return llama3_message("user", user) + std::string(kLlama3Answer);
        case ChatStyle::Mistral:
            return fmt::format("[INST] {} [/INST]", user);
        case ChatStyle::ChatMl:
            return chatml_message("user", user) + std::string(kChatMlAnswer);
    }
    return {};
}

std::vector<int32_t> ChatTemplate::turn(std::string_view user, std::string_view system,
                                        const std::vector<int32_t>& said) const {
    if (said.empty()) return tokenizer_.encode(first_text(user, system), true);
    std::vector<int32_t> ids;
    if (!end_ids_.empty() && said.back() != end_ids_[0]) ids.push_back(static_cast<int32_t>(end_ids_[0]));
    const std::string text = style_ == ChatStyle::ChatMl ? fmt::format("\n{}", next_text(user)) : next_text(user);
    const std::vector<int32_t> more = tokenizer_.encode(text, style_ == ChatStyle::Llama2);  // each turn has its BOS
    ids.insert(ids.end(), more.begin(), more.end());
    return ids;
}

std::vector<std::string> ChatTemplate::stop_strings() const {
    if (style_ == ChatStyle::Alpaca) return {"\n\n### Instruction:"};
    return {};
}

std::optional<std::string> recognize_chat_template(const std::filesystem::path& model) {
    const std::filesystem::path jinja = model / "chat_template.jinja", config = model / "tokenizer_config.json";
    std::string text;
    if (io::is_gguf(model)) {
        const io::GgufFile file(model);
        text = io::JsonObject(file.metadata(), model.string()).find_string("tokenizer.chat_template").value_or("");
    } else if (std::filesystem::exists(jinja)) {
        text = io::read_file(jinja, kMaxTemplateBytes);
    } else if (std::filesystem::exists(config)) {
        const io::Json json = io::read_json_file(config);
        text = template_text(io::JsonObject(json, config.string()));
    }
    const auto has = [&](std::string_view mark) { return text.find(mark) != std::string::npos; };
    if (has("<|start_header_id|>")) return "llama3";
    if (has("<|im_start|>")) return "chatml";
    if (has("[INST]")) return has("<<SYS>>") ? "llama2" : "mistral";
    if (has("### Instruction:")) return "alpaca";
    return std::nullopt;
}

}  // namespace lc::models
