#include "io/gguf.h"

#include <algorithm>
#include <cstring>
#include <set>

#include "core/check.h"
#include "core/parallel.h"
#include "io/json.h"
#include "io/text.h"

namespace lc::io {
namespace {

constexpr uint32_t kMagic = 0x46554747;  // "GGUF"
constexpr int64_t kBlock = 32;           // numbers of a quantized block
constexpr uint64_t kMaxPairs = 1 << 16, kMaxTensors = 1 << 16, kMaxDimensions = 4;
constexpr uint64_t kMaxElements = 1 << 22;           // of all arrays together
constexpr uint64_t kMaxString = uint64_t{16} << 20;  // bytes
constexpr int64_t kMaxHeader = int64_t{512} << 20;   // bytes

struct BlockType {
    uint32_t type;
    const char* name;
    int64_t numbers, bytes;  // of a block
};
constexpr BlockType kTypes[] = {{kGgufF32, "F32", 1, 4},         {kGgufF16, "F16", 1, 2},
                                {kGgufBf16, "BF16", 1, 2},       {kGgufQ4_0, "Q4_0", kBlock, 18},
                                {kGgufQ4_1, "Q4_1", kBlock, 20}, {kGgufQ8_0, "Q8_0", kBlock, 34}};

const BlockType* block_type(uint32_t type) {
    const auto found = std::ranges::find(kTypes, type, &BlockType::type);
    return found == std::end(kTypes) ? nullptr : found;
}

// Types that people have and we do not read, for messages.
std::string type_name(uint32_t type) {
    constexpr std::pair<uint32_t, const char*> kOthers[] = {
        {6, "Q5_0"},  {7, "Q5_1"},     {10, "Q2_K"},   {11, "Q3_K"},   {12, "Q4_K"}, {13, "Q5_K"}, {14, "Q6_K"},
        {15, "Q8_K"}, {16, "IQ2_XXS"}, {20, "IQ4_NL"}, {23, "IQ4_XS"}, {24, "I8"},   {28, "F64"},  {39, "MXFP4"}};
    for (const auto& [number, name] : kOthers)
        if (number == type) return name;
    return fmt::format("type {}", type);
}

// Reads forward through a buffer; everything is checked against what is left of the file.
class Reader {
  public:
    explicit Reader(const InputFile& file) : file_(file), source_(file.path().string()) {}

    template <class T>
    T number() {
        T value;
        std::memcpy(&value, take(sizeof(T)).data(), sizeof(T));
        return value;
    }
    std::string string(const char* what) {
        const auto length = number<uint64_t>();
        LC_REQUIRE(BadInput, length <= kMaxString, "{}: {} at byte {} has {} bytes, at most {}", source_, what,
                   position(), length, kMaxString);
        std::string text(take(length));
        LC_REQUIRE(BadInput, !first_invalid_utf8(text), "{}: {} '{}' must be UTF-8", source_, what, printable(text));
        return text;
    }
    int64_t position() const { return start_ + static_cast<int64_t>(used_); }
    const std::string& source() const { return source_; }

  private:
    std::string_view take(uint64_t count) {
        if (buffer_.size() - used_ < count) refill(count);
        used_ += count;
        return std::string_view(buffer_).substr(used_ - count, count);
    }
    void refill(uint64_t count) {
        start_ = position();
        const int64_t left = std::min(file_.size(), kMaxHeader) - start_;
        LC_REQUIRE(BadInput, count <= static_cast<uint64_t>(left),
                   "{}: ends at byte {}, but its header goes on to byte {} (is it cut?)", source_,
                   std::min(file_.size(), kMaxHeader), start_ + static_cast<int64_t>(count));
        buffer_.resize(std::min(static_cast<uint64_t>(left), std::max(count, uint64_t{1} << 20)));
        file_.read_at(start_, std::as_writable_bytes(std::span(buffer_)));
        used_ = 0;
    }

    const InputFile& file_;
    std::string source_, buffer_;
    int64_t start_ = 0;  // of the buffer in the file
    size_t used_ = 0;
};

enum ValueType : uint32_t { U8, I8, U16, I16, U32, I32, F32, Bool, String, Array, U64, I64, F64 };

Json read_scalar(Reader& reader, uint32_t type, const std::string& key) {
    switch (type) {
        case U8:
            return reader.number<uint8_t>();
        case I8:
            return reader.number<int8_t>();
        case U16:
            return reader.number<uint16_t>();
        case I16:
            return reader.number<int16_t>();
        case U32:
            return reader.number<uint32_t>();
        case I32:
            return reader.number<int32_t>();
        case U64:
            return reader.number<uint64_t>();
        case I64:
            return reader.number<int64_t>();
        case F32:
            return reader.number<float>();
        case F64:
            return reader.number<double>();
        case Bool: {
            const auto value = reader.number<uint8_t>();
            LC_REQUIRE(BadInput, value <= 1, "{}: key '{}' is a bool but holds {}", reader.source(), printable(key),
                       value);
            return value == 1;
        }
        case String:
            return reader.string("a string");
        default:
            fail(ErrorKind::BadInput, "{}: key '{}' has {}", reader.source(), printable(key),
                 type == Array ? "an array in an array, which is not supported"
                               : fmt::format("the unknown type {}", type));
    }
}

Json read_metadata(Reader& reader, uint64_t pairs) {
    Json metadata = Json::object();
    uint64_t elements = 0;
    for (uint64_t i = 0; i < pairs; ++i) {
        const std::string key = reader.string("a key");
        LC_REQUIRE(BadInput, !metadata.contains(key), "{}: key '{}' occurs twice", reader.source(), printable(key));
        const auto type = reader.number<uint32_t>();
        if (type != Array) {
            metadata[key] = read_scalar(reader, type, key);
            continue;
        }
        const auto element_type = reader.number<uint32_t>();
        const auto count = reader.number<uint64_t>();
        LC_REQUIRE(BadInput, count <= kMaxElements - elements, "{}: key '{}': more than {} elements of arrays",
                   reader.source(), printable(key), kMaxElements);
        elements += count;
        Json array = Json::array();
        for (uint64_t j = 0; j < count; ++j) array.push_back(read_scalar(reader, element_type, key));
        metadata[key] = std::move(array);
    }
    return metadata;
}

GgufTensor read_description(Reader& reader) {
    GgufTensor tensor{.name = reader.string("a tensor's name")};
    const auto dimensions = reader.number<uint32_t>();
    LC_REQUIRE(BadInput, dimensions >= 1 && dimensions <= kMaxDimensions,
               "{}: tensor '{}' must have 1 to {} dimensions, got {}", reader.source(), printable(tensor.name),
               kMaxDimensions, dimensions);
    for (uint32_t i = 0; i < dimensions; ++i) {
        const auto size = reader.number<uint64_t>();
        LC_REQUIRE(BadInput, size >= 1 && size <= uint64_t{1} << 40, "{}: tensor '{}' has a dimension of {}",
                   reader.source(), printable(tensor.name), size);
        tensor.shape.insert(tensor.shape.begin(), static_cast<int64_t>(size));
    }
    tensor.type = reader.number<uint32_t>();
    const auto offset = reader.number<uint64_t>();
    LC_REQUIRE(BadInput, offset <= uint64_t{1} << 50, "{}: tensor '{}' begins at byte {}", reader.source(),
               printable(tensor.name), offset);
    tensor.offset = static_cast<int64_t>(offset);
    return tensor;
}

float half_at(const std::byte* bytes) {
    f16 value;
    std::memcpy(&value, bytes, sizeof value);
    return static_cast<float>(value);
}

}  // namespace

bool is_gguf(const std::filesystem::path& path) {
    std::error_code ignored;
    return path.extension() == ".gguf" && !std::filesystem::is_directory(path, ignored);
}

void dequantize(uint32_t type, const std::byte* blocks, int64_t n, float* values) {
    for (int64_t block = 0; block < n; ++block, values += kBlock) {
        const float d = half_at(blocks);
        if (type == kGgufQ8_0) {
            for (int i = 0; i < kBlock; ++i)
                values[i] = d * static_cast<float>(static_cast<int8_t>(std::to_integer<uint8_t>(blocks[2 + i])));
            blocks += 34;
            continue;
        }
        const bool shifted = type == kGgufQ4_1;
        const float m = shifted ? half_at(blocks + 2) : 0;
        const std::byte* nibbles = blocks + (shifted ? 4 : 2);
        for (int i = 0; i < kBlock / 2; ++i) {
            const int both = std::to_integer<int>(nibbles[i]), low = both & 15, high = both >> 4;
            values[i] = shifted ? d * static_cast<float>(low) + m : d * static_cast<float>(low - 8);
            values[i + kBlock / 2] = shifted ? d * static_cast<float>(high) + m : d * static_cast<float>(high - 8);
        }
        blocks = nibbles + kBlock / 2;
    }
}

GgufFile::GgufFile(const std::filesystem::path& path, OpenOptions options) : file_(path, options) {
    Reader reader(file_);
    const std::string& source = reader.source();
    LC_REQUIRE(BadInput, file_.size() >= 24 && reader.number<uint32_t>() == kMagic,
               "{}: not a GGUF file: must begin with \"GGUF\"", source);
    const auto version = reader.number<uint32_t>();
    LC_REQUIRE(BadInput, version == 2 || version == 3, "{}: GGUF version must be 2 or 3, little-endian, got {}", source,
               version);
    const auto tensors = reader.number<uint64_t>(), pairs = reader.number<uint64_t>();
    LC_REQUIRE(BadInput, tensors <= kMaxTensors && pairs <= kMaxPairs,
               "{}: has {} tensors and {} keys, at most {} and {}", source, tensors, pairs, kMaxTensors, kMaxPairs);
    metadata_ = std::make_unique<Json>(read_metadata(reader, pairs));
    for (uint64_t i = 0; i < tensors; ++i) tensors_.push_back(read_description(reader));
    std::ranges::sort(tensors_, {}, &GgufTensor::name);
    const auto twice = std::ranges::adjacent_find(tensors_, {}, &GgufTensor::name);
    LC_REQUIRE(BadInput, twice == tensors_.end(), "{}: tensor '{}' occurs twice", source, printable(twice->name));
    place_tensors(reader.position());
    file_.check_unchanged();
}
GgufFile::~GgufFile() = default;
GgufFile::GgufFile(GgufFile&&) noexcept = default;

// Sizes, and that the bytes lie in the file, each tensor's apart.
void GgufFile::place_tensors(int64_t header_bytes) {
    const std::string source = path().string();
    const int64_t alignment = JsonObject(*metadata_, source).find_int("general.alignment", 1, 1 << 20).value_or(32);
    const int64_t start = (header_bytes + alignment - 1) / alignment * alignment;
    std::vector<const GgufTensor*> order;
    for (GgufTensor& tensor : tensors_) {
        const std::string shown = printable(tensor.name);
        LC_REQUIRE(BadInput, tensor.offset % alignment == 0,
                   "{}: tensor '{}' begins at byte {}, not at a multiple of {}", source, shown, tensor.offset,
                   alignment);
        tensor.offset += start;
        const BlockType* type = block_type(tensor.type);
        if (type == nullptr) continue;  // refused, by name, if someone wants it
        LC_REQUIRE(BadInput, tensor.shape.back() % type->numbers == 0,
                   "{}: tensor '{}' has rows of {}, but {} needs a multiple of {}", source, shown, tensor.shape.back(),
                   type->name, type->numbers);
        int64_t bytes = type->bytes;
        bool overflow = false;
        for (size_t i = 0; i < tensor.shape.size(); ++i) {
            const int64_t blocks = tensor.shape[i] / (i + 1 == tensor.shape.size() ? type->numbers : 1);
            overflow |= __builtin_mul_overflow(bytes, blocks, &bytes);
        }
        LC_REQUIRE(BadInput, !overflow && bytes <= file_.size() - tensor.offset,
                   "{}: tensor '{}' of {} [{}] leaves the file of {} bytes (is it cut?)", source, shown, type->name,
                   fmt::join(tensor.shape, ","), file_.size());
        tensor.bytes = bytes;
        order.push_back(&tensor);
    }
    std::ranges::sort(order, {}, [](const GgufTensor* t) { return t->offset; });
    for (size_t i = 1; i < order.size(); ++i)
        LC_REQUIRE(BadInput, order[i - 1]->offset + order[i - 1]->bytes <= order[i]->offset,
                   "{}: tensors '{}' and '{}' overlap", source, printable(order[i - 1]->name),
                   printable(order[i]->name));
}

const GgufTensor* GgufFile::find(std::string_view name) const {
    const auto position = std::ranges::lower_bound(tensors_, name, {}, &GgufTensor::name);
    return position != tensors_.end() && position->name == name ? &*position : nullptr;
}

Tensor GgufFile::read(const GgufTensor& tensor) const {
    const BlockType* type = block_type(tensor.type);
    LC_REQUIRE(BadInput, type != nullptr,
               "{}: tensor '{}' is {}; read are F32, F16, BF16, Q8_0, Q4_0 and Q4_1 — take a file of one of these",
               path().string(), printable(tensor.name), type_name(tensor.type));
    file_.check_unchanged();
    const Shape shape{std::span(tensor.shape)};
    if (type->numbers == 1) {
        const DType dtype = tensor.type == kGgufF32 ? DType::f32 : tensor.type == kGgufF16 ? DType::f16 : DType::bf16;
        const Tensor stored = Tensor::empty(shape, dtype);
        file_.read_at(tensor.offset, {stored.storage()->data.get(), static_cast<size_t>(tensor.bytes)});
        return stored.to(DType::f32);
    }
    const Tensor result = Tensor::empty(shape, DType::f32);
    float* values = result.data<float>();
    constexpr int64_t kBlocksAtOnce = 1 << 15;
    const int64_t blocks = tensor.bytes / type->bytes;
    parallel_for((blocks + kBlocksAtOnce - 1) / kBlocksAtOnce, 1, [&](int64_t begin, int64_t end) {
        std::vector<std::byte> buffer(static_cast<size_t>(std::min(blocks, kBlocksAtOnce) * type->bytes));
        for (int64_t i = begin; i < end; ++i) {
            const int64_t first = i * kBlocksAtOnce, n = std::min(kBlocksAtOnce, blocks - first);
            file_.read_at(tensor.offset + first * type->bytes,
                          std::span(buffer).first(static_cast<size_t>(n * type->bytes)));
            dequantize(tensor.type, buffer.data(), n, values + first * kBlock);
        }
    });
    return result;
}

}  // namespace lc::io
