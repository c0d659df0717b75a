// JSON from untrusted files. The parser behind it is nlohmann's; this wrapper adds what it leaves open: caps on size
// and depth, an error for duplicate keys (they would silently be last-wins) and one-line messages that name file and
// key.
//
//   const Json config = read_json_file(dir / "config.json");
//   const JsonObject object(config, "config.json");
//   const int64_t layers = object.get_int("num_hidden_layers", 1, 1024);
#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace lc::io {

using Json = nlohmann::json;

struct JsonLimits {
    int64_t max_bytes = int64_t{64} << 20;
    int max_depth = 64;  // nested arrays and objects
};

// Parses one JSON document. `source` names it in messages ("model/config.json", "data.jsonl:17").
// Throws BadInput for anything that is not strict JSON in UTF-8: too large, too deep, duplicate keys, NaN or Infinity,
// numbers beyond double, lone surrogates, trailing text.
Json parse_json(std::string_view text, const std::string& source, JsonLimits limits = {});
Json read_json_file(const std::filesystem::path& path, JsonLimits limits = {});

// The same rules (but for duplicate keys, which only a tree can see), handed out as events: for documents whose tree
// would take many times the memory of their text. A handler refuses by throwing.
class JsonEvents {
  public:
    virtual ~JsonEvents() = default;
    virtual void key(std::string&& name) = 0;  // then comes its value or its open
    virtual void value(Json&& scalar) = 0;     // null, bool, number or string
    virtual void open(bool object) = 0;        // an object or an array begins
    virtual void close() = 0;
};
void parse_json_events(std::string_view text, const std::string& source, JsonEvents& events, JsonLimits limits = {});

// The elements of one JSON array, handed out one after the other with their index: for files of many records. Rules and
// limits as for parse_json; throws BadInput when the document is no array.
void parse_json_array(std::string_view text, const std::string& source,
                      const std::function<void(Json&& element, int64_t index)>& consume, JsonLimits limits = {});

// The value of an integer as JSON writes it (no point, no exponent) that int64 holds, else nullopt.
std::optional<int64_t> as_int(const Json& value);

// One value for a message: scalars as they stand, cut to a line; containers as "an array of 3".
std::string describe(const Json& value);

// Typed access to the members of one object. Everything that does not fit throws BadInput with the source, the full key
// ("rope_scaling.factor"), what is wanted and what is there. `find_*` return nullopt when the key is absent or null.
// Holds a pointer to `object`, which must outlive it.
class JsonObject {
  public:
    JsonObject(const Json& object, std::string source, std::string path = {});

    const Json& json() const { return *object_; }
    const std::string& source() const { return source_; }
    std::string full_key(std::string_view key) const;  // "rope_scaling.factor"

    bool has(std::string_view key) const;          // present, and not null
    const Json& get(std::string_view key) const;   // present, and not null
    const Json* find(std::string_view key) const;  // nullptr when absent or null

    // An integer as JSON writes it (no point, no exponent), within [low, high].
    int64_t get_int(std::string_view key, int64_t low, int64_t high) const;
    std::optional<int64_t> find_int(std::string_view key, int64_t low, int64_t high) const;
    // A number within [low, high]; integers count as numbers.
    double get_double(std::string_view key, double low, double high) const;
    std::optional<double> find_double(std::string_view key, double low, double high) const;
    std::string get_string(std::string_view key) const;
    std::optional<std::string> find_string(std::string_view key) const;
    bool get_bool(std::string_view key) const;
    std::optional<bool> find_bool(std::string_view key) const;
    std::vector<std::string> get_strings(std::string_view key) const;  // an array of strings
    std::optional<std::vector<std::string>> find_strings(std::string_view key) const;
    const Json& get_array(std::string_view key) const;
    JsonObject get_object(std::string_view key) const;
    std::optional<JsonObject> find_object(std::string_view key) const;

    // "config.json: key 'rope_scaling.factor' must be <wanted>, got <value>"
    [[noreturn]] void fail_key(std::string_view key, std::string_view wanted) const;

  private:
    const Json* object_;
    std::string source_;
    std::string path_;  // keys that lead here, joined by dots
};

}  // namespace lc::io
