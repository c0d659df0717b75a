// The configuration file of the programs: flat TOML, one `key = value` a line. Keys are the long option names; values
// are strings, numbers, booleans and one-line or multi-line arrays of them. Tables and dates are refused: there is
// nothing they could mean here. (CLI11's own reader cuts strings at '#', joins repeated keys and skips short lines.)
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace lc::apps {

enum class ConfigType { string, number, boolean };

struct ConfigValue {
    ConfigType type = ConfigType::string;
    std::string text;  // unescaped; numbers without underscores
};

struct ConfigEntry {
    std::string key;  // underscores as dashes: `max_new_tokens` is `max-new-tokens`
    std::vector<ConfigValue> values;
    bool is_array = false;
    int line = 0;
};

// Throws Error(Usage) with "source:line: reason" for anything else, and for a key that stands there twice.
std::vector<ConfigEntry> parse_config(std::string_view text, const std::string& source);

// `text` as a TOML basic string, quotes included.
std::string toml_quoted(std::string_view text);

// True when `text` is a TOML number (after taking out underscores).
bool is_toml_number(std::string_view text);

}  // namespace lc::apps
