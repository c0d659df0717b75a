#include "io/feature_maps.h"

#include <charconv>
#include <cmath>
#include <limits>

#include "core/check.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "io/text.h"

namespace lc::io {
namespace {

constexpr const char* kFormat = "lolcats";
constexpr const char* kVersion = "1";

std::filesystem::path file_of(const std::filesystem::path& path) {
    std::error_code ignored;
    return std::filesystem::is_directory(path, ignored) ? path / kFeatureMapsName : path;
}

class MetadataReader {
  public:
    MetadataReader(const Metadata& metadata, std::string source) : metadata_(metadata), source_(std::move(source)) {}

    const std::string* find(const std::string& key) const {
        const auto position = metadata_.find(key);
        return position == metadata_.end() ? nullptr : &position->second;
    }
    const std::string& get(const std::string& key) const {
        const std::string* value = find(key);
        LC_REQUIRE(BadInput, value != nullptr, "{}: metadata '{}' is missing", source_, key);
        return *value;
    }
    // The whole text as a T.
    template <class T>
    T number(const std::string& key) const {
        const std::string& text = get(key);
        T value{};
        const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
        LC_REQUIRE(BadInput, error == std::errc() && end == text.data() + text.size(),
                   "{}: metadata '{}' must be a number, got \"{}\"", source_, key, printable(text));
        return value;
    }

  private:
    const Metadata& metadata_;
    std::string source_;
};

}  // namespace

FeatureMapsFile read_feature_maps(const std::filesystem::path& path, OpenOptions options) {
    const SafetensorsFile file(file_of(path), options);
    const std::string source = file.path().string();
    const MetadataReader metadata(file.metadata(), source);
    const std::string* format = metadata.find("format");
    LC_REQUIRE(BadInput, format != nullptr && *format == kFormat, "{}: metadata 'format' must be \"{}\", got {}",
               source, kFormat, format ? '"' + printable(*format) + '"' : "none");
    const std::string& version = metadata.get("version");
    LC_REQUIRE(BadInput, version == kVersion, "{}: metadata 'version' must be \"{}\", got \"{}\"", source, kVersion,
               printable(version));
    FeatureMapsFile maps;
    maps.attention = metadata.get("attention");
    const Json attention = parse_json(maps.attention, source + ": metadata 'attention'");
    LC_REQUIRE(BadInput, attention.is_object(), "{}: metadata 'attention' must be a JSON object, got {}", source,
               describe(attention));
    maps.base_model = metadata.get("base_model");
    maps.base_hash = metadata.get("base_model_hash");
    maps.step = metadata.number<int64_t>("step");
    LC_REQUIRE(BadInput, maps.step >= 0, "{}: metadata 'step' must be at least 0, got {}", source, maps.step);
    if (metadata.find("validation_loss") != nullptr) {
        maps.validation_loss = metadata.number<double>("validation_loss");
        LC_REQUIRE(BadInput, std::isfinite(*maps.validation_loss),
                   "{}: metadata 'validation_loss' must be finite, got {}", source, *maps.validation_loss);
    }
    LC_REQUIRE(BadInput, !file.tensors().empty(), "{}: holds no tensors", source);
    for (const TensorInfo& info : file.tensors())
        maps.tensors.emplace_back(info.name, read_finite_f32(file, info.name));
    return maps;
}

void write_feature_maps(const std::filesystem::path& path, const FeatureMapsFile& maps) {
    LC_CHECK(Json::parse(maps.attention, nullptr, false).is_object(), "feature maps: attention must be a JSON object");
    Metadata metadata = {
        {"format", kFormat},
        {"version", kVersion},
        {"attention", maps.attention},
        {"base_model", maps.base_model},
        {"base_model_hash", maps.base_hash},
        {"step", std::to_string(maps.step)},
    };
    // A model that diverged is still worth looking at; its loss is then left out.
    if (maps.validation_loss && std::isfinite(*maps.validation_loss))
        metadata["validation_loss"] = fmt::format("{}", *maps.validation_loss);  // shortest that reads back equal
    std::vector<std::pair<std::string, Tensor>> tensors;
    for (const auto& [name, tensor] : maps.tensors) tensors.emplace_back(name, tensor.to(DType::f32));
    write_safetensors(path, tensors, metadata);
}

}  // namespace lc::io
