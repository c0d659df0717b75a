#include "io/safetensors.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "core/parallel.h"
#include "io/safetensors_types.h"
#include "io/safetensors_writer.h"
#include "io/text.h"

namespace lc::io {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors are little-endian and are read as they lie");

constexpr int64_t kChunkBytes = int64_t{4} << 20;  // one pread; large enough for the disk, small enough to spread

// Reads [0, count) elements of `size` bytes each in parallel chunks: consume(first, n, bytes).
template <class Consume>
void for_each_chunk(const SafetensorsFile& file, const TensorInfo& tensor, int64_t size, Consume&& consume) {
    const int64_t count = tensor.bytes() / size, chunk = kChunkBytes / size;
    parallel_for((count + chunk - 1) / chunk, 1, [&](int64_t begin, int64_t end) {
        std::vector<std::byte> buffer(static_cast<size_t>(std::min(count, chunk) * size));
        for (int64_t i = begin; i < end; ++i) {
            const int64_t first = i * chunk, n = std::min(chunk, count - first);
            const auto bytes = std::span(buffer).first(static_cast<size_t>(n * size));
            file.read_bytes(tensor, first * size, bytes);
            consume(first, n, bytes);
        }
    });
}

void read_directly(const SafetensorsFile& file, const TensorInfo& tensor, std::byte* target) {
    parallel_for((tensor.bytes() + kChunkBytes - 1) / kChunkBytes, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t first = i * kChunkBytes, n = std::min(kChunkBytes, tensor.bytes() - first);
            file.read_bytes(tensor, first, {target + first, static_cast<size_t>(n)});
        }
    });
}

// The only tensor bytes that are not all values: C++ knows no bool of 2.
void check_bools(std::span<const std::byte> bytes, const TensorInfo& tensor, const std::string& source) {
    const auto bad = std::ranges::find_if(bytes, [](std::byte b) { return std::to_integer<int>(b) > 1; });
    LC_REQUIRE(BadInput, bad == bytes.end(), "{}: tensor '{}' is BOOL but holds a byte {}", source,
               printable(tensor.name), std::to_integer<int>(*bad));
}

// n elements that lie in `bytes` as the file has them, into `target` from element `first` on.
void convert_chunk(const StoredType& type, std::span<std::byte> bytes, int64_t first, int64_t n, const Tensor& target) {
    TensorView from{bytes.data(), Layout::contiguous({n}), type.dtype, {}};
    std::vector<int32_t> widened;
    if (type.bytes != size_of(type.dtype)) {  // I8, I16
        widened.resize(static_cast<size_t>(n));
        for (int64_t i = 0; i < n; ++i) {
            int16_t wide = 0;
            if (type.bytes == 2)
                std::memcpy(&wide, bytes.data() + 2 * i, 2);
            else
                wide = static_cast<int8_t>(bytes[static_cast<size_t>(i)]);
            widened[static_cast<size_t>(i)] = wide;
        }
        from.base = reinterpret_cast<std::byte*>(widened.data());
    }
    TensorView to = target.view();
    to.layout = Layout::contiguous({n});
    to.layout.offset = first;
    copy_strided(from, to);
}

bool converts(DType from, DType to) {
    if (from == to || is_floating(to)) return true;
    return !is_floating(from) && to != DType::boolean && to != DType::u8 && size_of(from) <= size_of(to);
}

Shape shape_of(const TensorInfo& tensor, const std::string& source) {
    LC_REQUIRE(BadInput, tensor.shape.size() <= static_cast<size_t>(kMaxRank),
               "{}: tensor '{}' has {} dimensions, at most {} are supported", source, printable(tensor.name),
               tensor.shape.size(), kMaxRank);
    return Shape(std::span(tensor.shape));
}

}  // namespace

DType tensor_dtype(const TensorInfo& tensor, const std::string& source) {
    const StoredType* type = stored_type(tensor.dtype);
    LC_REQUIRE(BadInput, type != nullptr, "{}: tensor '{}' has the unsupported dtype '{}'", source,
               printable(tensor.name), printable(tensor.dtype));
    return type->dtype;
}

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path, OpenOptions options) : file_(path, options) {
    const std::string source = path.string();
    LC_REQUIRE(BadInput, file_.size() >= 8, "{}: not a safetensors file: has {} bytes, at least 8 are needed", source,
               file_.size());
    uint64_t length = 0;
    file_.read_at(0, std::as_writable_bytes(std::span(&length, 1)));
    LC_REQUIRE(BadInput, length <= static_cast<uint64_t>(kMaxHeaderBytes),
               "{}: not a safetensors file: header of {} bytes, at most {}", source, length, kMaxHeaderBytes);
    const auto header_bytes = static_cast<int64_t>(length);
    LC_REQUIRE(BadInput, header_bytes <= file_.size() - 8, "{}: header of {} bytes, but only {} follow (is it cut?)",
               source, header_bytes, file_.size() - 8);
    std::string json(length, '\0');
    file_.read_at(8, std::as_writable_bytes(std::span(json)));
    data_start_ = 8 + header_bytes;
    header_ = parse_safetensors_header(json, file_.size() - data_start_, source);
    file_.check_unchanged();
}

std::vector<std::string> SafetensorsFile::names() const {
    std::vector<std::string> result;
    for (const TensorInfo& tensor : header_.tensors) result.push_back(tensor.name);
    return result;
}

bool SafetensorsFile::has(std::string_view name) const {
    return std::ranges::binary_search(header_.tensors, name, {}, &TensorInfo::name);
}

const TensorInfo& SafetensorsFile::info(std::string_view name) const {
    const auto position = std::ranges::lower_bound(header_.tensors, name, {}, &TensorInfo::name);
    LC_REQUIRE(BadInput, position != header_.tensors.end() && position->name == name, "{}: tensor '{}' is missing",
               path().string(), printable(name));
    return *position;
}

void SafetensorsFile::read_bytes(const TensorInfo& tensor, int64_t offset, std::span<std::byte> bytes) const {
    LC_CHECK(offset >= 0 && offset <= tensor.bytes() && std::ssize(bytes) <= tensor.bytes() - offset,
             "{}: bytes {}+{} of tensor '{}', which has {}", path().string(), offset, bytes.size(), tensor.name,
             tensor.bytes());
    file_.read_at(data_start_ + tensor.begin + offset, bytes);
}

Tensor SafetensorsFile::read(std::string_view name) const {
    return read(name, tensor_dtype(info(name), path().string()));
}

Tensor SafetensorsFile::read(std::string_view name, DType to) const {
    const std::string source = path().string();
    const TensorInfo& tensor = info(name);
    const DType dtype = tensor_dtype(tensor, source);
    const StoredType& type = *stored_type(tensor.dtype);
    LC_REQUIRE(BadInput, converts(dtype, to), "{}: tensor '{}' must be {}, got {}", source, printable(name),
               lc::name_of(to), tensor.dtype);
    file_.check_unchanged();
    const Tensor result = Tensor::empty(shape_of(tensor, source), to);
    if (to == dtype && type.bytes == size_of(dtype) && dtype != DType::boolean) {
        read_directly(*this, tensor, result.storage()->data.get());
        return result;
    }
    for_each_chunk(*this, tensor, type.bytes, [&](int64_t first, int64_t n, std::span<std::byte> bytes) {
        if (dtype == DType::boolean) check_bools(bytes, tensor, source);
        convert_chunk(type, bytes, first, n, result);
    });
    return result;
}

Tensor read_finite_f32(const SafetensorsFile& file, std::string_view name) {
    const std::string source = file.path().string();
    const TensorInfo& info = file.info(name);
    LC_REQUIRE(BadInput, is_floating(tensor_dtype(info, source)), "{}: tensor '{}' must be floating-point, got {}",
               source, printable(name, 200), info.dtype);
    const Tensor tensor = file.read(name, DType::f32);
    const std::span values(tensor.data<float>(), static_cast<size_t>(tensor.numel()));
    const auto bad = std::ranges::find_if_not(values, [](float value) { return std::isfinite(value); });
    LC_REQUIRE(BadInput, bad == values.end(), "{}: tensor '{}' holds {} at element {}", source, printable(name, 200),
               *bad, bad - values.begin());
    return tensor;
}

void write_safetensors(const std::filesystem::path& path, const std::vector<std::pair<std::string, Tensor>>& tensors,
                       const Metadata& metadata) {
    std::vector<TensorPlan> plan;
    for (const auto& [name, tensor] : tensors) {
        LC_CHECK(tensor.defined(), "tensor '{}' must be defined", printable(name));
        plan.push_back({name, tensor.dtype(), tensor.shape()});
    }
    SafetensorsWriter file(path, std::move(plan), metadata);
    for (const auto& [name, tensor] : tensors) file.write(name, tensor);
    file.commit();
}

}  // namespace lc::io
