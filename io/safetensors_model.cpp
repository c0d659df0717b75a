#include "io/safetensors_model.h"

#include <algorithm>
#include <cctype>
#include <map>

#include "core/log.h"
#include "io/json.h"
#include "io/text.h"

namespace lc::io {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxShards = 4096;

// Present in any form, a dangling link included: what is wrong with it is then said by opening it.
bool present(const fs::path& path) {
    std::error_code ignored;
    return fs::exists(fs::symlink_status(path, ignored));
}

// A plain name inside the directory, so that no index can make us open a file elsewhere.
bool is_shard_name(std::string_view name) {
    const auto allowed = [](unsigned char c) {
        return (c < 128 && std::isalnum(c)) || c == '.' || c == '_' || c == '-';
    };
    constexpr std::string_view suffix = ".safetensors";
    return name.size() > suffix.size() && name.ends_with(suffix) && std::ranges::all_of(name, allowed);
}

[[noreturn]] void fail_without_weights(const fs::path& directory) {
    std::error_code error;
    for (fs::directory_iterator entry(directory, error), end; !error && entry != end; entry.increment(error)) {
        const fs::path extension = entry->path().extension();
        if (extension == ".bin" || extension == ".pt" || extension == ".pth" || extension == ".ckpt")
            fail(ErrorKind::BadInput, "{}: holds pickled weights ({}), which are never opened: convert to safetensors",
                 directory.string(), printable(entry->path().filename().string()));
    }
    fail(ErrorKind::BadInput, "{}: holds neither {} nor {}", directory.string(), kSingleFile, kIndexFile);
}

// Tensor name -> shard name, both checked.
using WeightMap = std::map<std::string, std::string>;

WeightMap weight_map_of(const JsonObject& index) {
    WeightMap result;
    for (const auto& [name, shard] : index.get_object("weight_map").json().items()) {
        LC_REQUIRE(BadInput, shard.is_string() && is_shard_name(shard.get_ref<const std::string&>()),
                   "{}: tensor '{}' must lie in a file of this directory named *.safetensors, got {}", index.source(),
                   printable(name), describe(shard));
        result.emplace(name, shard.get<std::string>());
    }
    LC_REQUIRE(BadInput, !result.empty(), "{}: 'weight_map' lists no tensors", index.source());
    return result;
}

// Shard name -> one of its tensors (for messages), at most kMaxShards.
std::map<std::string, std::string> shards_of(const WeightMap& map, const std::string& source) {
    std::map<std::string, std::string> shards, folded;
    for (const auto& [tensor, shard] : map) {
        if (!shards.emplace(shard, tensor).second) continue;
        LC_REQUIRE(BadInput, shards.size() <= kMaxShards, "{}: lists more than {} files", source, kMaxShards);
        std::string lower = shard;
        std::ranges::transform(lower, lower.begin(),
                               [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
        const auto [other, fresh] = folded.emplace(lower, shard);
        LC_REQUIRE(BadInput, fresh, "{}: files '{}' and '{}' differ only in case", source, other->second, shard);
    }
    return shards;
}

void compare_total_size(const JsonObject& index, int64_t actual) {
    const auto metadata = index.find_object("metadata");
    const Json* stated = metadata ? metadata->find("total_size") : nullptr;
    if (stated == nullptr || (stated->is_number() && stated->get<double>() == static_cast<double>(actual))) return;
    log_warning("{}: key 'metadata.total_size' is {}, the tensors have {} bytes", index.source(), describe(*stated),
                actual);
}

}  // namespace

SafetensorsModel::SafetensorsModel(const fs::path& directory, OpenOptions options) : directory_(directory) {
    std::error_code ignored;
    LC_REQUIRE(BadInput, fs::is_directory(directory, ignored), "{}: must be a model directory", directory.string());
    const bool single = present(directory / kSingleFile), index = present(directory / kIndexFile);
    LC_REQUIRE(BadInput, !(single && index), "{}: holds both {} and {}; remove the one that is stale",
               directory.string(), kSingleFile, kIndexFile);
    if (index) {
        open_shards(options);
    } else if (single) {
        files_.emplace_back(directory / kSingleFile, options);
        names_ = files_[0].names();
        file_of_.assign(names_.size(), 0);
    } else {
        fail_without_weights(directory);
    }
}

void SafetensorsModel::open_shards(OpenOptions options) {
    const fs::path path = directory_ / kIndexFile;
    const Json json = parse_json(read_file(path, JsonLimits{}.max_bytes, options), path.string());
    const JsonObject index(json, path.string());
    const WeightMap map = weight_map_of(index);
    std::map<std::string, size_t> position;  // of a shard in files_
    for (const auto& [shard, tensor] : shards_of(map, index.source())) {
        LC_REQUIRE(BadInput, present(directory_ / shard), "{}: file '{}' of tensor '{}' is missing", index.source(),
                   shard, printable(tensor));
        position[shard] = files_.size();
        files_.emplace_back(directory_ / shard, options);
    }
    std::map<std::string_view, size_t> seen;
    for (size_t i = 0; i < files_.size(); ++i) {
        for (const TensorInfo& tensor : files_[i].tensors()) {
            const auto [first, fresh] = seen.emplace(tensor.name, i);
            LC_REQUIRE(BadInput, fresh, "{}: tensor '{}' is also in '{}'", files_[i].path().string(),
                       printable(tensor.name), files_[first->second].path().filename().string());
            if (!map.contains(tensor.name))
                log_warning("{}: tensor '{}' is not listed in {}; ignored", files_[i].path().string(),
                            printable(tensor.name), kIndexFile);
        }
    }
    for (const auto& [name, shard] : map) {
        const size_t file = position[shard];
        const auto found = seen.find(name);
        LC_REQUIRE(BadInput, found != seen.end(), "{}: tensor '{}' is missing, though {} lists it there",
                   files_[file].path().string(), printable(name), kIndexFile);
        LC_REQUIRE(BadInput, found->second == file, "{}: tensor '{}' must be in '{}', but is in '{}'", index.source(),
                   printable(name), shard, files_[found->second].path().filename().string());
        names_.push_back(name);
        file_of_.push_back(file);
    }
    compare_total_size(index, total_bytes());
}

bool SafetensorsModel::has(std::string_view name) const {
    return std::ranges::binary_search(names_, name);
}

const SafetensorsFile& SafetensorsModel::file_of(std::string_view name) const {
    const auto position = std::ranges::lower_bound(names_, name);
    LC_REQUIRE(BadInput, position != names_.end() && *position == name, "{}: tensor '{}' is missing",
               directory_.string(), printable(name));
    return files_[file_of_[static_cast<size_t>(position - names_.begin())]];
}

int64_t SafetensorsModel::total_bytes() const {
    int64_t total = 0;
    for (size_t i = 0; i < names_.size(); ++i) total += files_[file_of_[i]].info(names_[i]).bytes();
    return total;
}

}  // namespace lc::io
