// safetensors: an 8-byte little-endian length N, N bytes of JSON {"name": {"dtype", "shape", "data_offsets"}, ...},
// then the tensors' bytes, little-endian and row-major. Specification: github.com/huggingface/safetensors.
//
// The header is checked whole before any tensor is allocated: names, dtypes, sizes, and that the byte ranges tile the
// rest of the file without hole or overlap. Tensors are read lazily, by position.
#pragma once
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/tensor.h"
#include "io/file.h"

namespace lc::io {

using Metadata = std::map<std::string, std::string>;

struct TensorInfo {
    std::string name;
    std::string dtype;           // as the file spells it: "BF16"
    std::vector<int64_t> shape;  // up to 8 dimensions
    int64_t begin = 0, end = 0;  // bytes [begin, end) of the data section

    int64_t bytes() const { return end - begin; }
};

struct SafetensorsHeader {
    std::vector<TensorInfo> tensors;  // sorted by name
    Metadata metadata;
};

// Parses and validates the JSON part; `data_bytes` is the size of what follows it. Throws BadInput.
SafetensorsHeader parse_safetensors_header(std::string_view json, int64_t data_bytes, const std::string& source);

class SafetensorsFile {
  public:
    // Throws BadInput as InputFile does, and for every fault of the header.
    explicit SafetensorsFile(const std::filesystem::path& path, OpenOptions options = {});

    const std::filesystem::path& path() const { return file_.path(); }
    const Metadata& metadata() const { return header_.metadata; }
    const std::vector<TensorInfo>& tensors() const { return header_.tensors; }  // sorted by name
    std::vector<std::string> names() const;                                     // sorted
    bool has(std::string_view name) const;
    const TensorInfo& info(std::string_view name) const;  // throws BadInput when there is none

    // The tensor in the file's dtype (I8 and I16, which lc::Tensor does not know, become i32), on the CPU, contiguous.
    // Throws BadInput: no such tensor, a dtype we do not read (F8_*, U16, ...), more than kMaxRank dimensions, a BOOL
    // byte other than 0 and 1, a file that changed since it was opened.
    Tensor read(std::string_view name) const;
    // The same, converted while it is read: anything to a float (rounds to nearest even), integers to wider integers.
    Tensor read(std::string_view name, DType to) const;
    // The raw bytes [offset, offset + bytes.size()) of the tensor.
    void read_bytes(const TensorInfo& tensor, int64_t offset, std::span<std::byte> bytes) const;

  private:
    InputFile file_;
    SafetensorsHeader header_;
    int64_t data_start_ = 0;
};

// The dtype that read(name) yields. Throws BadInput, naming tensor and dtype, when we do not read it.
DType tensor_dtype(const TensorInfo& tensor, const std::string& source);

// A floating-point tensor as f32. Throws BadInput for another dtype and for NaN or infinity: for weights that we train
// further, where one of these would spread.
Tensor read_finite_f32(const SafetensorsFile& file, std::string_view name);

// Writes `tensors` in the order given (data and header alike), atomically; the same input yields the same bytes. CPU
// tensors of any layout. Names must be unique, UTF-8, 1..512 bytes without NUL. transformers wants metadata
// {"format": "pt"}. Throws Internal for bad arguments, Resource for a failing disk.
void write_safetensors(const std::filesystem::path& path, const std::vector<std::pair<std::string, Tensor>>& tensors,
                       const Metadata& metadata = {});

}  // namespace lc::io
