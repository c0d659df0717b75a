// The weights of a Hugging Face model directory: model.safetensors, or shards and their model.safetensors.index.json.
#pragma once
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "io/safetensors.h"

namespace lc::io {

inline constexpr std::string_view kSingleFile = "model.safetensors";
inline constexpr std::string_view kIndexFile = "model.safetensors.index.json";

class SafetensorsModel {
  public:
    // Opens every file and validates index and headers; reads no tensor. Throws BadInput when the directory holds no
    // such weights (or only pickled ones, which are never opened), both forms, a malformed index or file, a shard name
    // that is not a plain name inside the directory, or a tensor that is not in its named shard or is in two. Only
    // warned of: tensors that the index does not list, and a total_size that differs. Symbolic links are followed (the
    // Hugging Face cache consists of them) unless `options` says otherwise.
    explicit SafetensorsModel(const std::filesystem::path& directory, OpenOptions options = {});

    const std::filesystem::path& directory() const { return directory_; }
    const std::vector<SafetensorsFile>& files() const { return files_; }
    const std::vector<std::string>& names() const { return names_; }  // sorted
    bool has(std::string_view name) const;
    const SafetensorsFile& file_of(std::string_view name) const;  // throws BadInput when no file has it
    const TensorInfo& info(std::string_view name) const { return file_of(name).info(name); }
    Tensor read(std::string_view name) const { return file_of(name).read(name); }
    Tensor read(std::string_view name, DType to) const { return file_of(name).read(name, to); }
    int64_t total_bytes() const;  // of all tensors

  private:
    void open_shards(OpenOptions options);

    std::filesystem::path directory_;
    std::vector<SafetensorsFile> files_;
    std::vector<std::string> names_;
    std::vector<size_t> file_of_;  // of names_[i], an index into files_
};

}  // namespace lc::io
