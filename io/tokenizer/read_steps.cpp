// tokenizer.json: normalizer, pre-tokenizer, decoder and post-processor. Each is one component or a Sequence of them.
#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <optional>

#include "core/check.h"
#include "io/text.h"
#include "io/tokenizer/tokenizer_model.h"
#include "io/tokenizer/utf8.h"

namespace lc::io {
namespace {

constexpr size_t kMaxComponents = 32;

// The components under `key`, Sequences (whose members are under `list`) taken apart. Depth is bounded by the parser.
void collect(const JsonObject& owner, std::string_view key, std::string_view list, std::vector<JsonObject>& found) {
    const auto component = owner.find_object(key);
    if (!component) return;
    const std::function<void(const JsonObject&)> visit = [&](const JsonObject& object) {
        if (object.get_string("type") != "Sequence") {
            LC_REQUIRE(BadInput, found.size() < kMaxComponents, "{}: key '{}' has more than {} components",
                       owner.source(), owner.full_key(key), kMaxComponents);
            found.push_back(object);
            return;
        }
        const Json& members = object.get_array(list);
        for (size_t i = 0; i < members.size(); ++i)
            visit(JsonObject(members[i], object.source(), fmt::format("{}[{}]", object.full_key(list), i)));
    };
    visit(*component);
}

[[noreturn]] void refuse(const JsonObject& component, std::string_view why) {
    fail(ErrorKind::BadInput, "{}: key '{}': {} '{}' {}", component.source(), component.full_key("type"), "component",
         printable(component.get_string("type")), why);
}

// {"String": "..."} or {"Regex": "..."}
std::variant<Regex, std::string> read_pattern(const JsonObject& component) {
    const JsonObject pattern = component.get_object("pattern");
    if (const auto text = pattern.find_string("String")) {
        if (text->empty()) pattern.fail_key("String", "a text that is not empty");
        return *text;
    }
    if (!pattern.has("Regex")) component.fail_key("pattern", "{\"String\": ...} or {\"Regex\": ...}");
    return Regex(pattern.get_string("Regex"), fmt::format("{}: key '{}'", pattern.source(), pattern.full_key("Regex")));
}

ReplaceStep read_replace(const JsonObject& component) {
    return {.pattern = read_pattern(component), .content = component.get_string("content")};
}

std::string read_character(const JsonObject& component, std::string_view key) {
    std::string text = component.get_string(key);
    if (text.empty() || text.size() != utf8_sequence_length(text[0])) component.fail_key(key, "one character");
    return text;
}

SplitStep read_split(const JsonObject& component) {
    constexpr std::pair<std::string_view, SplitBehavior> kBehaviors[] = {
        {"Removed", SplitBehavior::Removed},
        {"Isolated", SplitBehavior::Isolated},
        {"MergedWithPrevious", SplitBehavior::MergedWithPrevious},
        {"MergedWithNext", SplitBehavior::MergedWithNext},
        {"Contiguous", SplitBehavior::Contiguous}};
    const std::string name = component.get_string("behavior");
    for (const auto& [known, behavior] : kBehaviors)
        if (name == known)
            return {.pattern = read_pattern(component),
                    .behavior = behavior,
                    .invert = component.find_bool("invert").value_or(false)};
    component.fail_key("behavior", "Removed, Isolated, MergedWithPrevious, MergedWithNext or Contiguous");
}

SplitStep read_digits(const JsonObject& component) {
    const bool individual = component.find_bool("individual_digits").value_or(false);
    return {.pattern = Regex(R"(\p{N})", "Digits"),
            .behavior = individual ? SplitBehavior::Isolated : SplitBehavior::Contiguous};
}

// Older files say add_prefix_space instead of prepend_scheme.
MetaspaceStep::Prepend read_prepend_scheme(const JsonObject& component) {
    const std::string scheme = component.find_string("prepend_scheme").value_or("always");
    const bool prefix = component.find_bool("add_prefix_space").value_or(true);
    if (scheme == "never" || (!prefix && !component.has("prepend_scheme"))) return MetaspaceStep::Prepend::Never;
    if (!prefix) component.fail_key("add_prefix_space", "true or absent, as prepend_scheme has it");
    if (scheme == "first") return MetaspaceStep::Prepend::First;
    if (scheme != "always") component.fail_key("prepend_scheme", "always, first or never");
    return MetaspaceStep::Prepend::Always;
}

void read_pre_tokenizer_step(const JsonObject& component, PreTokenizer& result) {
    const std::string type = component.get_string("type");
    if (result.byte_level) refuse(component, "must not come after ByteLevel");
    if (type == "ByteLevel") {
        result.byte_level = true;
        result.add_prefix_space = component.find_bool("add_prefix_space").value_or(true);
        if (component.find_bool("use_regex").value_or(true))
            result.byte_level_splits.push_back({.pattern = Regex(kGpt2Pattern, "ByteLevel")});
    } else if (type == "Split") {
        result.splits.push_back(read_split(component));
    } else if (type == "Digits") {
        result.splits.push_back(read_digits(component));
    } else if (type == "Metaspace") {
        if (!result.metaspace.empty() || !result.splits.empty()) refuse(component, "must come first, and once");
        result.metaspace.push_back({.replacement = read_character(component, "replacement"),
                                    .prepend = read_prepend_scheme(component),
                                    .split = component.find_bool("split").value_or(true)});
    } else {
        refuse(component, "is not supported (ByteLevel, Split, Digits, Metaspace and Sequence are)");
    }
}

// `fused`: this step sees the text in parts of one token, cut anywhere between characters.
TokenDecoder::Step read_decoder_step(const JsonObject& component, bool fused) {
    const std::string type = component.get_string("type");
    if (type == "Fuse") return FuseStep{};
    if (type == "Strip") {
        StripStep strip{.content = read_character(component, "content"),
                        .start = component.get_int("start", 0, 1'000'000),
                        .stop = component.get_int("stop", 0, 1'000'000)};
        if (fused && strip.stop > 0) component.fail_key("stop", "0 after Fuse or ByteLevel");
        return strip;
    }
    if (type == "Replace") {
        ReplaceStep replace = read_replace(component);
        const auto* text = std::get_if<std::string>(&replace.pattern);
        if (fused && !(text && text->size() == utf8_sequence_length((*text)[0])))
            component.fail_key("pattern", "one character after Fuse or ByteLevel");
        return replace;
    }
    if (fused) refuse(component, "must not come after Fuse or ByteLevel");
    if (type == "ByteLevel") return ByteLevelStep{};
    if (type == "ByteFallback") return ByteFallbackStep{};
    if (type == "Metaspace")
        return MetaspaceDecodeStep{.replacement = read_character(component, "replacement"),
                                   .drop_in_first = read_prepend_scheme(component) != MetaspaceStep::Prepend::Never};
    refuse(component, "is not supported (ByteLevel, Replace, ByteFallback, Fuse, Strip, Metaspace and Sequence are)");
}

std::vector<int32_t> template_ids(const JsonObject& component, const JsonObject& piece, const Vocabulary& vocabulary) {
    const std::string name = piece.get_string("id");
    const JsonObject tokens = component.get_object("special_tokens");
    const JsonObject token = tokens.get_object(name);
    std::vector<int32_t> ids;
    for (const Json& id : token.get_array("ids")) {
        const bool known = id.is_number_integer() && id >= 0 && id <= kMaxTokenId && vocabulary.text(id.get<int32_t>());
        if (!known) token.fail_key("ids", "an array of ids in the vocabulary");
        ids.push_back(id.get<int32_t>());
    }
    return ids;
}

TokenTemplate read_template_processing(const JsonObject& component, const Vocabulary& vocabulary) {
    TokenTemplate result;
    bool seen_text = false;
    const Json& pieces = component.get_array("single");
    if (pieces.size() > kMaxComponents) component.fail_key("single", fmt::format("at most {} pieces", kMaxComponents));
    for (size_t i = 0; i < pieces.size(); ++i) {
        const JsonObject piece(pieces[i], component.source(), fmt::format("{}[{}]", component.full_key("single"), i));
        if (const auto special = piece.find_object("SpecialToken")) {
            const auto ids = template_ids(component, *special, vocabulary);
            std::vector<int32_t>& side = seen_text ? result.after : result.before;
            side.insert(side.end(), ids.begin(), ids.end());
            continue;
        }
        const JsonObject text = piece.get_object("Sequence");
        if (text.get_string("id") != "A" || seen_text) text.fail_key("id", "\"A\", once");
        seen_text = true;
    }
    if (!seen_text) component.fail_key("single", "a template with the Sequence A");
    return result;
}

}  // namespace

Normalizer read_normalizer(const JsonObject& root) {
    std::vector<JsonObject> components;
    collect(root, "normalizer", "normalizers", components);
    Normalizer result;
    for (const JsonObject& component : components) {
        const std::string type = component.get_string("type");
        if (type == "Prepend") {
            result.steps.emplace_back(PrependStep{component.get_string("prepend")});
        } else if (type == "Replace") {
            result.steps.emplace_back(read_replace(component));
        } else if (type == "NFC") {
            if (!nfc_available()) refuse(component, "needs a build with libutf8proc");
            result.steps.emplace_back(NfcStep{});
        } else {
            refuse(component, "is not supported (NFC, Prepend, Replace and Sequence are)");
        }
    }
    return result;
}

PreTokenizer read_pre_tokenizer(const JsonObject& root) {
    std::vector<JsonObject> components;
    collect(root, "pre_tokenizer", "pretokenizers", components);
    PreTokenizer result;
    for (const JsonObject& component : components) read_pre_tokenizer_step(component, result);
    return result;
}

TokenDecoder read_decoder(const JsonObject& root) {
    std::vector<JsonObject> components;
    collect(root, "decoder", "decoders", components);
    TokenDecoder result;
    bool fused = false;
    for (const JsonObject& component : components) {
        result.steps.push_back(read_decoder_step(component, fused));
        const std::string type = component.get_string("type");
        fused = fused || type == "Fuse" || type == "ByteLevel";
    }
    if (!root.has("decoder")) result.steps.emplace_back(JoinStep{});
    return result;
}

TokenTemplate read_template(const JsonObject& root, const Vocabulary& vocabulary) {
    std::vector<JsonObject> components;
    collect(root, "post_processor", "processors", components);
    std::optional<TokenTemplate> result;
    for (const JsonObject& component : components) {
        const std::string type = component.get_string("type");
        if (type == "ByteLevel") continue;  // trims offsets, which we have none of
        if (type != "TemplateProcessing")
            refuse(component, "is not supported (TemplateProcessing, ByteLevel and Sequence are)");
        if (result) refuse(component, "must come once");
        result = read_template_processing(component, vocabulary);
    }
    return result.value_or(TokenTemplate{});
}

}  // namespace lc::io
