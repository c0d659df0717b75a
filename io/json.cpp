#include "io/json.h"

#include <fmt/format.h>

#include "core/check.h"
#include "io/file.h"
#include "io/text.h"

namespace lc::io {
namespace {

// nlohmann's events, with the depth bounded and errors turned into ours.
class BoundedEvents : public nlohmann::json_sax<Json> {
  public:
    BoundedEvents(const std::string& source, int max_depth, JsonEvents& events)
        : source_(source), max_depth_(max_depth), events_(events) {}

    bool null() override { return scalar(nullptr); }
    bool boolean(bool value) override { return scalar(value); }
    bool number_integer(number_integer_t value) override { return scalar(value); }
    bool number_unsigned(number_unsigned_t value) override { return scalar(value); }
    bool number_float(number_float_t value, const string_t&) override { return scalar(value); }
    bool string(string_t& value) override { return scalar(std::move(value)); }
    bool binary(binary_t&) override { return false; }  // never part of JSON text
    bool start_object(std::size_t) override { return open(true); }
    bool start_array(std::size_t) override { return open(false); }
    bool end_object() override { return close(); }
    bool end_array() override { return close(); }
    bool key(string_t& name) override {
        events_.key(std::move(name));
        return true;
    }
    bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception& error) override {
        // "[json.exception.parse_error.101] parse error at line 1, column 2: ...": the tag says nothing to people.
        std::string_view what = error.what();
        if (const size_t end = what.find("] "); end != std::string_view::npos) what.remove_prefix(end + 2);
        fail(ErrorKind::BadInput, "{}: not valid JSON: {}", source_, printable(what, 300));
    }

  private:
    bool scalar(Json&& value) {
        events_.value(std::move(value));
        return true;
    }
    bool open(bool object) {
        LC_REQUIRE(BadInput, depth_ < max_depth_, "{}: JSON is nested deeper than {} levels", source_, max_depth_);
        ++depth_;
        events_.open(object);
        return true;
    }
    bool close() {
        --depth_;
        events_.close();
        return true;
    }

    const std::string& source_;
    int max_depth_;
    int depth_ = 0;
    JsonEvents& events_;
};

// Parsing is iterative, so only the tree's depth has to be bounded (its destructor and `dump` recurse).
class TreeBuilder : public JsonEvents {
  public:
    explicit TreeBuilder(const std::string& source) : source_(source) {}

    Json take() { return std::move(root_); }

    void key(std::string&& name) override {
        const auto [position, inserted] = open_.back()->get_ref<Json::object_t&>().try_emplace(std::move(name));
        LC_REQUIRE(BadInput, inserted, "{}: key '{}' occurs twice in one object", source_, printable(position->first));
        slot_ = &position->second;
    }
    void value(Json&& scalar) override { place(std::move(scalar)); }
    void open(bool object) override { open_.push_back(place(object ? Json::object() : Json::array())); }
    void close() override { open_.pop_back(); }

  private:
    Json* place(Json&& value) {
        if (open_.empty()) {
            root_ = std::move(value);
            return &root_;
        }
        if (slot_ != nullptr) {  // the value of the key read last
            Json* slot = std::exchange(slot_, nullptr);
            *slot = std::move(value);
            return slot;
        }
        auto& array = open_.back()->get_ref<Json::array_t&>();
        array.push_back(std::move(value));
        return &array.back();  // stays valid: the array grows only after this value is closed
    }

    const std::string& source_;
    Json root_;
    std::vector<Json*> open_;
    Json* slot_ = nullptr;
};

// Trees of the elements of a top-level array, one at a time.
class ElementBuilder : public JsonEvents {
  public:
    using Consume = std::function<void(Json&&, int64_t)>;
    ElementBuilder(const std::string& source, const Consume& consume)
        : source_(source), consume_(consume), element_(source) {}

    void key(std::string&& name) override { element_.key(std::move(name)); }
    void value(Json&& scalar) override {
        require_array(depth_ > 0);
        element_.value(std::move(scalar));
        finish();
    }
    void open(bool object) override {
        require_array(depth_ > 0 || !object);
        if (depth_++ > 0) element_.open(object);
    }
    void close() override {
        if (--depth_ == 0) return;
        element_.close();
        finish();
    }

  private:
    void require_array(bool is_array) const { LC_REQUIRE(BadInput, is_array, "{}: must hold a JSON array", source_); }
    void finish() {
        if (depth_ == 1) consume_(element_.take(), index_++);
    }

    const std::string& source_;
    const Consume& consume_;
    TreeBuilder element_;
    int depth_ = 0;
    int64_t index_ = 0;
};

}  // namespace

void parse_json_events(std::string_view text, const std::string& source, JsonEvents& events, JsonLimits limits) {
    LC_REQUIRE(BadInput, std::ssize(text) <= limits.max_bytes, "{}: JSON of {} bytes, at most {} are read", source,
               text.size(), limits.max_bytes);
    // The parser takes a NUL for the end of its input and would not see what follows.
    const size_t nul = text.find('\0');
    LC_REQUIRE(BadInput, nul == std::string_view::npos, "{}: not valid JSON: NUL at byte {}", source, nul);
    BoundedEvents bounded(source, limits.max_depth, events);
    // Pointers, not string_view iterators: the input adapter then reads contiguous bytes.
    Json::sax_parse(text.data(), text.data() + text.size(), &bounded);
}

Json parse_json(std::string_view text, const std::string& source, JsonLimits limits) {
    TreeBuilder builder(source);
    parse_json_events(text, source, builder, limits);
    return builder.take();
}

Json read_json_file(const std::filesystem::path& path, JsonLimits limits) {
    return parse_json(read_file(path, limits.max_bytes), path.string(), limits);
}

void parse_json_array(std::string_view text, const std::string& source, const ElementBuilder::Consume& consume,
                      JsonLimits limits) {
    ElementBuilder elements(source, consume);
    parse_json_events(text, source, elements, limits);
}

std::optional<int64_t> as_int(const Json& value) {
    // Above int64 the parser keeps uint64, and above that double: neither is an integer that we can hold.
    const bool fits = value.is_number_unsigned() ? value.get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX)
                                                 : value.is_number_integer();
    return fits ? std::optional(value.get<int64_t>()) : std::nullopt;
}

std::string describe(const Json& value) {
    if (value.is_object()) return fmt::format("an object of {}", value.size());
    if (value.is_array()) return fmt::format("an array of {}", value.size());
    if (value.is_string()) return fmt::format("\"{}\"", printable(value.get_ref<const std::string&>(), 80));
    return value.dump();
}

JsonObject::JsonObject(const Json& object, std::string source, std::string path)
    : object_(&object), source_(std::move(source)), path_(std::move(path)) {
    if (object.is_object()) return;
    if (path_.empty()) fail(ErrorKind::BadInput, "{}: must hold a JSON object, got {}", source_, describe(object));
    fail(ErrorKind::BadInput, "{}: key '{}' must be an object, got {}", source_, path_, describe(object));
}

std::string JsonObject::full_key(std::string_view key) const {
    return path_.empty() ? printable(key) : fmt::format("{}.{}", path_, printable(key));
}

void JsonObject::fail_key(std::string_view key, std::string_view wanted) const {
    const Json* value = find(key);
    fail(ErrorKind::BadInput, "{}: key '{}' must be {}, got {}", source_, full_key(key), wanted,
         value ? describe(*value) : "none");
}

const Json* JsonObject::find(std::string_view key) const {
    const auto position = object_->find(std::string(key));
    return position == object_->end() || position->is_null() ? nullptr : &*position;
}

bool JsonObject::has(std::string_view key) const {
    return find(key) != nullptr;
}

const Json& JsonObject::get(std::string_view key) const {
    const Json* value = find(key);
    LC_REQUIRE(BadInput, value != nullptr, "{}: key '{}' is missing", source_, full_key(key));
    return *value;
}

int64_t JsonObject::get_int(std::string_view key, int64_t low, int64_t high) const {
    const std::optional<int64_t> value = as_int(get(key));
    if (!value || *value < low || *value > high) fail_key(key, fmt::format("an integer in [{}, {}]", low, high));
    return *value;
}

double JsonObject::get_double(std::string_view key, double low, double high) const {
    const Json& value = get(key);
    if (!value.is_number() || !(value.get<double>() >= low && value.get<double>() <= high))
        fail_key(key, fmt::format("a number in [{}, {}]", low, high));
    return value.get<double>();
}

std::string JsonObject::get_string(std::string_view key) const {
    const Json& value = get(key);
    if (!value.is_string()) fail_key(key, "a string");
    return value.get<std::string>();
}

bool JsonObject::get_bool(std::string_view key) const {
    const Json& value = get(key);
    if (!value.is_boolean()) fail_key(key, "true or false");
    return value.get<bool>();
}

std::vector<std::string> JsonObject::get_strings(std::string_view key) const {
    std::vector<std::string> result;
    for (const Json& item : get_array(key)) {
        LC_REQUIRE(BadInput, item.is_string(), "{}: key '{}' must be an array of strings, but holds {}", source_,
                   full_key(key), describe(item));
        result.push_back(item.get<std::string>());
    }
    return result;
}

const Json& JsonObject::get_array(std::string_view key) const {
    const Json& value = get(key);
    if (!value.is_array()) fail_key(key, "an array");
    return value;
}

JsonObject JsonObject::get_object(std::string_view key) const {
    return {get(key), source_, full_key(key)};
}

std::optional<int64_t> JsonObject::find_int(std::string_view key, int64_t low, int64_t high) const {
    return has(key) ? std::optional(get_int(key, low, high)) : std::nullopt;
}
std::optional<double> JsonObject::find_double(std::string_view key, double low, double high) const {
    return has(key) ? std::optional(get_double(key, low, high)) : std::nullopt;
}
std::optional<std::string> JsonObject::find_string(std::string_view key) const {
    return has(key) ? std::optional(get_string(key)) : std::nullopt;
}
std::optional<bool> JsonObject::find_bool(std::string_view key) const {
    return has(key) ? std::optional(get_bool(key)) : std::nullopt;
}
std::optional<std::vector<std::string>> JsonObject::find_strings(std::string_view key) const {
    return has(key) ? std::optional(get_strings(key)) : std::nullopt;
}
std::optional<JsonObject> JsonObject::find_object(std::string_view key) const {
    return has(key) ? std::optional(get_object(key)) : std::nullopt;
}

}  // namespace lc::io
