#include "models/generation/state_file.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "io/safetensors.h"
#include "io/text.h"

namespace lc::models {
namespace {

constexpr const char *kFormat = "lolcats-state", *kVersion = "1";
constexpr const char* kIds = "ids";

std::string name_of(DecodeMode mode) {
    const std::string_view terms = mode.terms == Terms::Both         ? "both"
                                   : mode.terms == Terms::WindowOnly ? "window"
                                                                     : "linear";
    return fmt::format("{}, {}{}", mode.mode == AttentionMode::Softmax ? "softmax" : "linearized", terms,
                       mode.state == StateStorage::Bf16 ? ", states in bf16" : "");
}

std::string dtype_of(const Decoder& decoder) {
    std::string name(lc::name_of(decoder.dtype()));
    if (decoder.weight_code() != WeightCode::none)
        name += fmt::format(", weights in {}", kernels::name_of(decoder.weight_code()));
    return name;
}

io::Metadata metadata_of(const Conversation& conversation, const ModelIdentity& identity) {
    const Decoder& decoder = conversation.decoder();
    return {{"format", kFormat},
            {"version", kVersion},
            {"model_hash", identity.model_hash},
            {"run_hash", identity.run_hash},
            {"attention", name_of(conversation.mode())},
            {"dtype", dtype_of(decoder)}};
}

int64_t read_position(const io::Metadata& metadata, const std::string& source, int64_t most) {
    const auto found = metadata.find("position");
    const std::string text = found == metadata.end() ? "" : found->second;
    int64_t position = -1;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), position);
    LC_REQUIRE(BadInput, error == std::errc() && end == text.data() + text.size() && position >= 0 && position <= most,
               "{}: metadata 'position' must be 0 to {}, the number of ids, got '{}'", source, most,
               io::printable(text));
    return position;
}

void require_finite(const Tensor& tensor, const std::string& source, const std::string& name) {
    const std::vector<float> values = tensor.to_vector<float>();
    LC_REQUIRE(BadInput, std::all_of(values.begin(), values.end(), [](float x) { return std::isfinite(x); }),
               "{}: tensor '{}' holds values that are not finite", source, name);
}

}  // namespace

void save_state(const Conversation& conversation, const std::filesystem::path& path, const StateInfo& info) {
    io::Metadata metadata = metadata_of(conversation, info.identity);
    metadata["position"] = std::to_string(conversation.state().position());
    metadata["chat_template"] = info.chat_template;
    const std::vector<int32_t>& ids = conversation.ids();
    std::vector<std::pair<std::string, Tensor>> tensors = {{kIds, Tensor::from(ids, {std::ssize(ids)})}};
    for (const NamedTensor& tensor : conversation.state().tensors())
        tensors.emplace_back(tensor.name, tensor.tensor.to(Device{}));
    io::write_safetensors(path, tensors, metadata);
}

std::string load_state(Conversation& conversation, const std::filesystem::path& path, const ModelIdentity& identity) {
    const io::SafetensorsFile file(path);
    const std::string source = path.string();
    for (const auto& [key, wanted] : metadata_of(conversation, identity)) {
        const auto found = file.metadata().find(key);
        LC_REQUIRE(BadInput, found != file.metadata().end(), "{}: is no saved conversation (metadata '{}' is missing)",
                   source, key);
        LC_REQUIRE(BadInput, found->second == wanted, "{}: saved with {} '{}', but here it is '{}'", source, key,
                   io::printable(found->second), wanted);
    }
    const Tensor saved = file.read(kIds);
    LC_REQUIRE(BadInput, saved.dtype() == DType::i32 && saved.rank() == 1, "{}: tensor '{}' must be I32 [N], got {} {}",
               source, kIds, lc::name_of(saved.dtype()), saved.shape());
    const std::vector<int32_t> ids = saved.to_vector<int32_t>();
    const DecoderConfig& config = conversation.decoder().config();
    LC_REQUIRE(BadInput, std::ssize(ids) <= config.max_positions, "{}: {} ids are more than the model allows ({})",
               source, ids.size(), config.max_positions);
    for (const int32_t id : ids)
        LC_REQUIRE(BadInput, id >= 0 && id < config.vocab_size, "{}: id {} is not in [0, {})", source, id,
                   config.vocab_size);
    const int64_t position = read_position(file.metadata(), source, std::ssize(ids));

    size_t read = 1;
    conversation.restore(ids, position, [&](const std::string& name, const Shape& shape, DType dtype) {
        const Tensor tensor = file.read(name);
        LC_REQUIRE(BadInput, tensor.shape() == shape && tensor.dtype() == dtype,
                   "{}: tensor '{}' must be {} {}, got {} {}", source, name, lc::name_of(dtype), shape,
                   lc::name_of(tensor.dtype()), tensor.shape());
        require_finite(tensor, source, name);
        ++read;
        return tensor;
    });
    LC_REQUIRE(BadInput, read == file.tensors().size(), "{}: holds {} tensors, this model's state has {}", source,
               file.tensors().size(), read);
    const auto chat = file.metadata().find("chat_template");
    return chat == file.metadata().end() ? "" : chat->second;
}

}  // namespace lc::models
