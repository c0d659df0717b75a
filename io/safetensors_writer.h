// Writing safetensors of any size with one tensor in memory at a time: first what will come, then the tensors in that order.
#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/tensor.h"
#include "io/file.h"
#include "io/safetensors.h"

namespace lc::io {

struct TensorPlan {
    std::string name;  // unique, UTF-8, 1..512 bytes without NUL
    DType dtype = DType::f32;
    Shape shape;
    int64_t bytes() const { return numel_of(shape) * size_of(dtype); }
};

// One file, atomic; the same plan and tensors yield the same bytes.
class SafetensorsWriter {
  public:
    // Throws Internal for names that cannot stand in such a file, Resource for a failing disk.
    SafetensorsWriter(const std::filesystem::path& path, std::vector<TensorPlan> plan, const Metadata& metadata = {});

    // The next tensor of the plan, in its dtype and shape; any layout, any device. Throws Internal for another one.
    void write(std::string_view name, const Tensor& tensor);
    // Throws Internal when tensors are missing.
    void commit();

  private:
    AtomicFile file_;
    std::vector<TensorPlan> plan_;
    size_t next_ = 0;
};

// The weights of a model directory: model.safetensors or, above `shard_bytes`, numbered shards and their index, which is
// written last. A tensor larger than that has a shard of its own.
class SafetensorsModelWriter {
  public:
    // The directory must exist. Throws Internal for an empty plan or shard_bytes < 1.
    SafetensorsModelWriter(std::filesystem::path directory, std::vector<TensorPlan> plan, int64_t shard_bytes);

    // As SafetensorsWriter::write.
    void write(std::string_view name, const Tensor& tensor);
    void commit();
    size_t num_files() const { return shards_.size(); }
    int64_t total_bytes() const { return total_bytes_; }  // of the tensors

  private:
    std::string file_name(size_t shard) const;

    std::filesystem::path directory_;
    std::vector<std::vector<TensorPlan>> shards_;
    int64_t total_bytes_ = 0;
    size_t shard_ = 0, in_shard_ = 0;
    std::optional<SafetensorsWriter> file_;
};

}  // namespace lc::io
