// GGUF, the model files of llama.cpp: "GGUF", version 2 or 3, counts, metadata (typed key-value pairs), descriptions of
// tensors, then their bytes at aligned offsets; little-endian. Specification: github.com/ggml-org/ggml, docs/gguf.md.
//
// Tensors are read as f32. Of the quantized types those of 32 numbers a block with one scale (and one offset) are known:
//
//   Q8_0   f16 d, 32 x i8 q            x = d q
//   Q4_0   f16 d, 16 x 2 nibbles q     x = d (q - 8)      low nibbles are numbers 0..15, high ones 16..31
//   Q4_1   f16 d, f16 m, nibbles q     x = d q + m
#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "core/tensor.h"
#include "io/file.h"

namespace lc::io {

struct GgufTensor {
    std::string name;
    uint32_t type = 0;              // ggml's number
    std::vector<int64_t> shape;     // row-major, 1 to 4 dimensions: the file's order reversed
    int64_t offset = 0, bytes = 0;  // in the file; bytes is 0 for a type we do not read
};

class GgufFile {
  public:
    // Reads and checks all but the tensors' bytes. Throws BadInput for what is no such file, big-endian or version 1;
    // strings that are not UTF-8; nested arrays; keys or tensors that occur twice; tensors that leave the file or overlap.
    explicit GgufFile(const std::filesystem::path& path, OpenOptions options = {});
    ~GgufFile();
    GgufFile(GgufFile&&) noexcept;

    const std::filesystem::path& path() const { return file_.path(); }
    const nlohmann::json& metadata() const { return *metadata_; }        // an object; keys have dots in them
    const std::vector<GgufTensor>& tensors() const { return tensors_; }  // sorted by name
    const GgufTensor* find(std::string_view name) const;                 // nullptr when there is none
    // f32, contiguous. Throws BadInput, naming the tensor, for a type that is not read.
    Tensor read(const GgufTensor& tensor) const;

  private:
    void place_tensors(int64_t header_bytes);

    InputFile file_;
    std::unique_ptr<nlohmann::json> metadata_;
    std::vector<GgufTensor> tensors_;
};

// By its name: it ends in .gguf, and is no directory.
bool is_gguf(const std::filesystem::path& path);

// n blocks of 32 numbers of a quantized type, for tests and for GgufFile. `type` is Q4_0, Q4_1 or Q8_0.
inline constexpr uint32_t kGgufF32 = 0, kGgufF16 = 1, kGgufQ4_0 = 2, kGgufQ4_1 = 3, kGgufQ8_0 = 8, kGgufBf16 = 30;
void dequantize(uint32_t type, const std::byte* blocks, int64_t n, float* values);

}  // namespace lc::io
