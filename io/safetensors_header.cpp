// The header of a safetensors file: parsing and all checks.
#include <algorithm>
#include <numeric>

#include "core/check.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "io/safetensors_types.h"
#include "io/text.h"

namespace lc::io {
namespace {

// Follows the events of {"name": {"dtype": "F32", "shape": [2,3], "data_offsets": [0,24]}, "__metadata__": {...}}.
// Events, not a tree: a header may have 100 MB, and its tree would take a gigabyte.
class HeaderBuilder : public JsonEvents {
  public:
    explicit HeaderBuilder(const std::string& source) : source_(source) {}

    SafetensorsHeader take() { return std::move(header_); }

    void open(bool object) override {
        if (depth_ == 0) {
            LC_REQUIRE(BadInput, object, "{}: the header must be a JSON object, got an array", source_);
        } else if (depth_ == 1) {
            if (!object) fail_item("must be an object, got an array");
        } else if (in_metadata_) {
            fail_item("must be a string");
        } else if (object || field_ == Field::dtype) {
            fail_item(fmt::format("'{}' must be {}", name_of(field_), wanted()));
        }
        ++depth_;
    }

    void close() override {
        --depth_;
        if (depth_ == 1 && !in_metadata_) finish_tensor();
    }

    void key(std::string&& name) override {
        if (depth_ == 1) return begin_item(std::move(name));
        if (in_metadata_) {
            key_ = std::move(name);
            return;
        }
        const Field field = name == "dtype"          ? Field::dtype
                            : name == "shape"        ? Field::shape
                            : name == "data_offsets" ? Field::offsets
                                                     : Field::none;
        if (field == Field::none) fail_item(fmt::format("has an unknown field '{}'", printable(name)));
        if (seen_[static_cast<size_t>(field)]) fail_item(fmt::format("has '{}' twice", name));
        seen_[static_cast<size_t>(field)] = true;
        field_ = field;
    }

    void value(Json&& scalar) override {
        LC_REQUIRE(BadInput, depth_ > 0, "{}: the header must be a JSON object, got {}", source_, describe(scalar));
        if (depth_ == 1) fail_item("must be an object, got " + describe(scalar));
        if (in_metadata_) return add_metadata(scalar);
        if (depth_ == 2) {
            if (field_ != Field::dtype || !scalar.is_string())
                fail_item(fmt::format("'{}' must be {}, got {}", name_of(field_), wanted(), describe(scalar)));
            tensor().dtype = scalar.get<std::string>();
            return;
        }
        add_number(scalar);
    }

  private:
    enum class Field { dtype, shape, offsets, none };
    static const char* name_of(Field field) {
        constexpr const char* names[] = {"dtype", "shape", "data_offsets", "?"};
        return names[static_cast<size_t>(field)];
    }
    const char* wanted() const { return field_ == Field::dtype ? "a string" : "an array"; }
    TensorInfo& tensor() { return header_.tensors.back(); }

    // Names the item of the header that is being read.
    [[noreturn]] void fail_item(const std::string& what) {
        if (!in_metadata_) fail(ErrorKind::BadInput, "{}: tensor '{}' {}", source_, printable(tensor().name), what);
        if (depth_ == 1) fail(ErrorKind::BadInput, "{}: '__metadata__' {}", source_, what);
        fail(ErrorKind::BadInput, "{}: '__metadata__' key '{}' {}", source_, printable(key_), what);
    }

    void begin_item(std::string&& name) {
        in_metadata_ = name == "__metadata__";
        if (in_metadata_) {
            LC_REQUIRE(BadInput, !had_metadata_, "{}: '__metadata__' occurs twice", source_);
            had_metadata_ = true;
            return;
        }
        header_.tensors.emplace_back();
        tensor().name = std::move(name);
        seen_.fill(false);
        offsets_ = 0;
        if (tensor().name.size() > kMaxTensorName)
            fail_item(fmt::format("has a name of {} bytes, at most {}", tensor().name.size(), kMaxTensorName));
        if (tensor().name.find('\0') != std::string::npos) fail_item("has a NUL byte in its name");
    }

    void add_metadata(const Json& scalar) {
        if (!scalar.is_string()) fail_item("must be a string, got " + describe(scalar));
        const bool inserted = header_.metadata.emplace(key_, scalar.get<std::string>()).second;
        if (!inserted) fail_item("occurs twice");
    }

    void add_number(const Json& scalar) {
        const std::optional<int64_t> number = as_int(scalar);
        if (!number || *number < 0)
            fail_item(fmt::format("'{}' must hold integers >= 0, got {}", name_of(field_), describe(scalar)));
        if (field_ == Field::shape) {
            if (tensor().shape.size() == kMaxStoredRank)
                fail_item(fmt::format("has more than {} dimensions", kMaxStoredRank));
            tensor().shape.push_back(*number);
        } else {
            if (offsets_ == 2) fail_item("'data_offsets' must hold 2 numbers, got more");
            (offsets_++ == 0 ? tensor().begin : tensor().end) = *number;
        }
    }

    void finish_tensor() {
        for (const Field field : {Field::dtype, Field::shape, Field::offsets})
            if (!seen_[static_cast<size_t>(field)]) fail_item(fmt::format("lacks '{}'", name_of(field)));
        if (offsets_ != 2) fail_item(fmt::format("'data_offsets' must hold 2 numbers, got {}", offsets_));
    }

    const std::string& source_;
    SafetensorsHeader header_;
    int depth_ = 0;
    bool in_metadata_ = false, had_metadata_ = false;
    std::string key_;  // of the metadata
    Field field_ = Field::none;
    std::array<bool, 3> seen_{};
    int offsets_ = 0;
};

std::string str(const std::vector<int64_t>& shape) {
    return fmt::format("[{}]", fmt::join(shape, ","));
}

// Shape, dtype and byte range of one tensor agree.
void check_size(const TensorInfo& tensor, int64_t data_bytes, const std::string& source) {
    LC_REQUIRE(BadInput, tensor.begin <= tensor.end, "{}: tensor '{}' ends at byte {}, before it begins at {}", source,
               printable(tensor.name), tensor.end, tensor.begin);
    LC_REQUIRE(BadInput, tensor.end <= data_bytes, "{}: tensor '{}' ends at byte {} of {} (is the file cut?)", source,
               printable(tensor.name), tensor.end, data_bytes);
    const StoredType* type = stored_type(tensor.dtype);
    if (type == nullptr) return;  // refused, by name, if someone wants it
    int64_t expected = type->bytes;
    bool overflow = false;
    for (const int64_t size : tensor.shape) overflow |= __builtin_mul_overflow(expected, size, &expected);
    LC_REQUIRE(BadInput, !overflow, "{}: tensor '{}' of shape {} is larger than any memory", source,
               printable(tensor.name), str(tensor.shape));
    LC_REQUIRE(BadInput, expected == tensor.bytes(),
               "{}: tensor '{}' of {} {} needs {} bytes, its data_offsets hold {}", source, printable(tensor.name),
               tensor.dtype, str(tensor.shape), expected, tensor.bytes());
}

// The ranges tile [0, data_bytes): no hole, no overlap, nothing left over.
void check_tiling(const std::vector<TensorInfo>& tensors, int64_t data_bytes, const std::string& source) {
    std::vector<const TensorInfo*> order;
    for (const TensorInfo& tensor : tensors) order.push_back(&tensor);
    std::ranges::sort(order, {}, [](const TensorInfo* t) { return std::pair(t->begin, t->end); });
    int64_t position = 0;
    for (const TensorInfo* tensor : order) {
        LC_REQUIRE(BadInput, tensor->begin == position, "{}: tensor '{}' begins at byte {}, expected {} ({})", source,
                   printable(tensor->name), tensor->begin, position,
                   tensor->begin < position ? "it overlaps another" : "there is a hole before it");
        position = tensor->end;
    }
    LC_REQUIRE(BadInput, position == data_bytes, "{}: {} bytes after the last tensor belong to none", source,
               data_bytes - position);
}

}  // namespace

SafetensorsHeader parse_safetensors_header(std::string_view json, int64_t data_bytes, const std::string& source) {
    LC_REQUIRE(BadInput, !json.empty() && json.front() == '{',
               "{}: not a safetensors file: its header must begin with '{{', got {}", source,
               json.empty() ? "nothing" : fmt::format("'{}'", printable(json.substr(0, 1))));
    HeaderBuilder builder(source);
    parse_json_events(json, source, builder, {.max_bytes = kMaxHeaderBytes, .max_depth = 3});
    SafetensorsHeader header = builder.take();
    std::ranges::sort(header.tensors, {}, &TensorInfo::name);
    const auto twice = std::ranges::adjacent_find(header.tensors, {}, &TensorInfo::name);
    LC_REQUIRE(BadInput, twice == header.tensors.end(), "{}: tensor '{}' occurs twice", source, printable(twice->name));
    for (const TensorInfo& tensor : header.tensors) check_size(tensor, data_bytes, source);
    check_tiling(header.tensors, data_bytes, source);
    return header;
}

}  // namespace lc::io
