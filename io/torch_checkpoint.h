// Tensors out of a checkpoint of torch.save: a zip archive of a pickle that describes them (io/pickle.h) and their bytes.
//
//   NAME/data.pkl    a dict {"model_state_dict": {name: tensor, ...}, "step": n, ...}, or the inner dict alone
//   NAME/data/KEY    the storage KEY, little-endian
//   NAME/byteorder   "little"; absent in older files
//
// Weights of models are never read this way (interfaces want safetensors); this is for the checkpoints that the LoLCATs
// authors published.
#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/tensor.h"
#include "io/file.h"

namespace lc::io {

struct TorchCheckpoint {
    std::vector<std::pair<std::string, Tensor>> tensors;  // in their dtypes, contiguous, in the order of the file
    std::optional<int64_t> step;
};

// Throws BadInput, naming member, key or byte of the pickle, for everything that is not such a file: see ZipArchive and
// Pickle; also for storages of the wrong size, a name that occurs twice, more than 6 dimensions, and tensors that are
// together larger than the file.
TorchCheckpoint read_torch_checkpoint(const std::filesystem::path& path, OpenOptions options = {});

}  // namespace lc::io
