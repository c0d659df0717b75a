#include "apps/config_file.h"

#include <cctype>

#include "core/check.h"
#include "io/text.h"

namespace lc::apps {
namespace {

class Reader {
  public:
    Reader(std::string_view text, const std::string& source) : text_(text), source_(source) {}

    std::vector<ConfigEntry> entries() {
        std::vector<ConfigEntry> result;
        for (skip_blank(); !at_end(); skip_blank()) {
            ConfigEntry entry{.key = key(), .values = {}, .is_array = false, .line = line_};
            for (const ConfigEntry& other : result)
                if (other.key == entry.key) error("key '{}' stands here and in line {}", entry.key, other.line);
            skip_spaces();
            if (!take('=')) error("'{}' needs '= value'", entry.key);
            skip_spaces();
            entry.is_array = peek() == '[';
            if (entry.is_array)
                entry.values = array();
            else
                entry.values.push_back(value());
            end_of_line();
            result.push_back(std::move(entry));
        }
        return result;
    }

  private:
    template <class... Args>
    [[noreturn]] void error(fmt::format_string<Args...> format, Args&&... args) const {
        fail(ErrorKind::Usage, "{}:{}: {}", source_, line_, fmt::format(format, std::forward<Args>(args)...));
    }

    bool at_end() const { return position_ >= text_.size(); }
    char peek() const { return at_end() ? '\0' : text_[position_]; }
    bool take(char wanted) {
        if (at_end() || text_[position_] != wanted) return false;
        ++position_;
        return true;
    }
    void skip_spaces() {
        while (peek() == ' ' || peek() == '\t') ++position_;
    }
    void skip_comment() {
        if (peek() != '#') return;
        while (!at_end() && peek() != '\n') ++position_;
    }
    // Spaces, comments and line ends.
    void skip_blank() {
        for (;;) {
            skip_spaces();
            skip_comment();
            if (peek() == '\r' && position_ + 1 < text_.size() && text_[position_ + 1] == '\n') ++position_;
            if (!take('\n')) return;
            ++line_;
        }
    }
    void end_of_line() {
        skip_spaces();
        skip_comment();
        take('\r');
        if (at_end()) return;
        if (peek() != '\n') error("unexpected '{}' after the value", io::printable(text_.substr(position_, 1)));
    }

    std::string key() {
        if (peek() == '[') error("tables are not used here; write every option as 'key = value'");
        std::string name;
        while (std::isalnum(static_cast<unsigned char>(peek())) || peek() == '-' || peek() == '_') {
            name += peek() == '_' ? '-' : peek();
            ++position_;
        }
        if (name.empty()) error("a key was expected, found '{}'", io::printable(text_.substr(position_, 1)));
        return name;
    }

    std::vector<ConfigValue> array() {
        std::vector<ConfigValue> values;
        take('[');
        for (;;) {
            skip_blank();
            if (take(']')) return values;
            if (at_end()) error("the array has no ']'");
            if (peek() == '[') error("arrays of arrays are not used here");
            values.push_back(value());
            skip_blank();
            if (!take(',') && peek() != ']') error("',' or ']' was expected in the array");
        }
    }

    ConfigValue value() {
        if (take('"')) return {ConfigType::string, basic_string()};
        if (take('\'')) return {ConfigType::string, literal_string()};
        std::string token;
        while (!at_end() && std::string_view(" \t\r\n,]#").find(peek()) == std::string_view::npos) {
            token += peek();
            ++position_;
        }
        if (token == "true" || token == "false") return {ConfigType::boolean, token};
        if (token.empty()) error("a value is missing");
        if (!is_toml_number(token)) error("'{}' is no number; texts need quotes", io::printable(token));
        std::erase(token, '_');
        return {ConfigType::number, token};
    }

    std::string literal_string() {
        std::string result;
        while (!at_end() && peek() != '\n' && peek() != '\'') result += text_[position_++];
        if (!take('\'')) error("the text has no closing quote");
        return result;
    }

    std::string basic_string() {
        std::string result;
        while (!at_end() && peek() != '\n' && peek() != '"') {
            const char c = text_[position_++];
            if (c == '\\')
                escape(result);
            else
                result += c;
        }
        if (!take('"')) error("the text has no closing quote");
        return result;
    }

    void escape(std::string& result) {
        static constexpr std::string_view kNames = "btnfr\"\\", kValues = "\b\t\n\f\r\"\\";
        const char c = at_end() ? '\0' : text_[position_++];
        if (const size_t i = kNames.find(c); i != std::string_view::npos) {
            result += kValues[i];
            return;
        }
        const size_t digits = c == 'u' ? 4 : c == 'U' ? 8 : 0;
        if (digits == 0) error("unknown escape '\\{}'", io::printable(std::string(1, c)));
        uint32_t code = 0;
        for (size_t i = 0; i < digits; ++i) {
            const char digit = peek();
            if (!std::isxdigit(static_cast<unsigned char>(digit))) error("'\\{}' needs {} hex digits", c, digits);
            code = code * 16 + static_cast<uint32_t>(std::stoi(std::string(1, digit), nullptr, 16));
            ++position_;
        }
        if (code > 0x10ffff || (code >= 0xd800 && code < 0xe000))
            error("'\\{}{:x}' is no Unicode scalar value", c, code);
        append_utf8(result, code);
    }

    static void append_utf8(std::string& result, uint32_t code) {
        const auto tail = [&](int shift) { result += static_cast<char>(0x80 | ((code >> shift) & 0x3f)); };
        if (code < 0x80) {
            result += static_cast<char>(code);
        } else if (code < 0x800) {
            result += static_cast<char>(0xc0 | (code >> 6)), tail(0);
        } else if (code < 0x10000) {
            result += static_cast<char>(0xe0 | (code >> 12)), tail(6), tail(0);
        } else {
            result += static_cast<char>(0xf0 | (code >> 18)), tail(12), tail(6), tail(0);
        }
    }

    std::string_view text_;
    const std::string& source_;
    size_t position_ = 0;
    int line_ = 1;
};

}  // namespace

std::vector<ConfigEntry> parse_config(std::string_view text, const std::string& source) {
    if (const auto bad = io::first_invalid_utf8(text))
        fail(ErrorKind::Usage, "{}: no valid UTF-8 at byte {}", source, *bad);
    return Reader(text, source).entries();
}

std::string toml_quoted(std::string_view text) {
    std::string result = "\"";
    for (const char c : text) {
        static constexpr std::string_view kValues = "\b\t\n\f\r\"\\", kNames = "btnfr\"\\";
        if (const size_t i = kValues.find(c); i != std::string_view::npos)
            result += '\\', result += kNames[i];
        else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f)
            result += fmt::format("\\u{:04x}", static_cast<int>(c));
        else
            result += c;
    }
    return result + '"';
}

// [+-] digits [. digits] [e [+-] digits], where digits may be grouped by single underscores (not in the exponent).
bool is_toml_number(std::string_view text) {
    size_t at = 0;
    const auto sign = [&] { at += at < text.size() && (text[at] == '+' || text[at] == '-'); };
    const auto is_digit = [&](size_t i) { return i < text.size() && text[i] >= '0' && text[i] <= '9'; };
    const auto digits = [&](bool grouped) {
        const size_t start = at;
        while (is_digit(at) ||
               (grouped && at > start && text[at - 1] != '_' && text.substr(at, 1) == "_" && is_digit(at + 1)))
            ++at;
        return at > start;
    };
    sign();
    if (!digits(true)) return false;
    if (text.substr(at, 1) == ".") {
        ++at;
        if (!digits(true)) return false;
    }
    if (text.substr(at, 1) == "e" || text.substr(at, 1) == "E") {
        ++at;
        sign();
        if (!digits(false)) return false;
    }
    return at == text.size();
}

}  // namespace lc::apps
