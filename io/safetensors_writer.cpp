#include "io/safetensors_writer.h"

#include <algorithm>

#include "io/json.h"
#include "io/safetensors_model.h"
#include "io/safetensors_types.h"
#include "io/text.h"

namespace lc::io {
namespace {

std::string quoted(const std::string& text) {
    return Json(text).dump();
}

std::string header_of(const std::vector<TensorPlan>& plan, const Metadata& metadata) {
    std::vector<std::string> items;
    if (!metadata.empty()) {
        std::vector<std::string> pairs;
        for (const auto& [key, value] : metadata) {
            LC_CHECK(!first_invalid_utf8(key) && !first_invalid_utf8(value), "metadata '{}' must be UTF-8",
                     printable(key));
            pairs.push_back(quoted(key) + ":" + quoted(value));
        }
        items.push_back(fmt::format("\"__metadata__\":{{{}}}", fmt::join(pairs, ",")));
    }
    int64_t position = 0;
    for (const TensorPlan& tensor : plan) {
        const int64_t end = position + tensor.bytes();
        items.push_back(fmt::format(R"({}:{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})", quoted(tensor.name),
                                    stored_name(tensor.dtype), fmt::join(tensor.shape, ","), position, end));
        position = end;
    }
    std::string header = fmt::format("{{{}}}", fmt::join(items, ","));
    header.resize((header.size() + 7) / 8 * 8, ' ');  // so that the data is 8-byte aligned
    return header;
}

void check_names(const std::vector<TensorPlan>& plan) {
    std::vector<std::string_view> names;
    for (const TensorPlan& tensor : plan) {
        const std::string& name = tensor.name;
        LC_CHECK(!name.empty() && name.size() <= kMaxTensorName && name.find('\0') == std::string::npos &&
                     name != "__metadata__" && !first_invalid_utf8(name),
                 "'{}' cannot name a tensor in a safetensors file", printable(name));
        names.push_back(name);
    }
    std::ranges::sort(names);
    const auto twice = std::ranges::adjacent_find(names);
    LC_CHECK(twice == names.end(), "tensor '{}' is given twice", *twice);
}

}  // namespace

SafetensorsWriter::SafetensorsWriter(const std::filesystem::path& path, std::vector<TensorPlan> plan,
                                     const Metadata& metadata)
    : file_(path), plan_(std::move(plan)) {
    check_names(plan_);
    const std::string header = header_of(plan_, metadata);
    const uint64_t length = header.size();
    file_.write(std::as_bytes(std::span(&length, 1)));
    file_.write(header);
}

void SafetensorsWriter::write(std::string_view name, const Tensor& tensor) {
    LC_CHECK(next_ < plan_.size(), "tensor '{}' is one more than was planned", printable(name));
    const TensorPlan& plan = plan_[next_++];
    LC_CHECK(tensor.defined(), "tensor '{}' must be defined", printable(name));
    LC_CHECK(plan.name == name && plan.dtype == tensor.dtype() && plan.shape == tensor.shape(),
             "tensor '{}' of {} {} must be '{}' of {} {}", printable(name), name_of(tensor.dtype()), tensor.shape(),
             printable(plan.name), name_of(plan.dtype), plan.shape);
    const Tensor flat = tensor.to(Device{}).contiguous();
    const std::byte* first = flat.storage()->data.get() + flat.layout().offset * size_of(flat.dtype());
    file_.write({first, static_cast<size_t>(flat.nbytes())});
}

void SafetensorsWriter::commit() {
    LC_CHECK(next_ == plan_.size(), "tensor '{}' was planned and not written", printable(plan_[next_].name));
    file_.commit();
}

SafetensorsModelWriter::SafetensorsModelWriter(std::filesystem::path directory, std::vector<TensorPlan> plan,
                                               int64_t shard_bytes)
    : directory_(std::move(directory)) {
    LC_CHECK(!plan.empty() && shard_bytes >= 1, "a model of {} tensors in shards of {} bytes", plan.size(),
             shard_bytes);
    check_names(plan);
    int64_t in_shard = 0;
    for (TensorPlan& tensor : plan) {
        const int64_t bytes = tensor.bytes();
        if (shards_.empty() || (in_shard > 0 && in_shard + bytes > shard_bytes)) shards_.emplace_back(), in_shard = 0;
        shards_.back().push_back(std::move(tensor));
        in_shard += bytes, total_bytes_ += bytes;
    }
}

std::string SafetensorsModelWriter::file_name(size_t shard) const {
    if (shards_.size() == 1) return std::string(kSingleFile);
    return fmt::format("model-{:05}-of-{:05}.safetensors", shard + 1, shards_.size());
}

void SafetensorsModelWriter::write(std::string_view name, const Tensor& tensor) {
    LC_CHECK(shard_ < shards_.size(), "tensor '{}' is one more than was planned", printable(name));
    // transformers wants to be told that the tensors are PyTorch's
    if (!file_) file_.emplace(directory_ / file_name(shard_), shards_[shard_], Metadata{{"format", "pt"}});
    file_->write(name, tensor);
    if (++in_shard_ < shards_[shard_].size()) return;
    file_->commit();
    file_.reset();
    ++shard_, in_shard_ = 0;
}

void SafetensorsModelWriter::commit() {
    LC_CHECK(shard_ == shards_.size(), "tensor '{}' was planned and not written", shards_[shard_][in_shard_].name);
    if (shards_.size() == 1) return;
    Json map = Json::object();
    for (size_t i = 0; i < shards_.size(); ++i)
        for (const TensorPlan& tensor : shards_[i]) map[tensor.name] = file_name(i);
    const Json index = {{"metadata", {{"total_size", total_bytes_}}}, {"weight_map", map}};
    write_file_atomic(directory_ / std::string(kIndexFile), index.dump(2) + "\n");
}

}  // namespace lc::io
