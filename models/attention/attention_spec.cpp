#include "models/attention/attention_spec.h"

#include <cmath>
#include <set>
#include <utility>

#include "io/json.h"
#include "io/text.h"

namespace lc::models {
namespace {

template <class E>
using Name = std::pair<std::string_view, E>;

constexpr Name<AttentionKind> kKinds[] = {
    {"hybrid", AttentionKind::hybrid}, {"linear", AttentionKind::linear}, {"softmax", AttentionKind::softmax}};
constexpr Name<FeatureInit> kInits[] = {
    {"identity", FeatureInit::identity}, {"kaiming", FeatureInit::kaiming}, {"normal", FeatureInit::normal}};
constexpr Name<FeatureBias> kBiases[] = {
    {"none", FeatureBias::none}, {"head_scalar", FeatureBias::head_scalar}, {"vector", FeatureBias::vector}};
constexpr Name<FeatureHeads> kHeads[] = {{"query", FeatureHeads::query}, {"kv", FeatureHeads::kv}};
constexpr Name<kernels::WindowKind> kWindows[] = {{"terraced", kernels::WindowKind::terraced},
                                                  {"sliding", kernels::WindowKind::sliding},
                                                  {"none", kernels::WindowKind::none}};

template <class E, size_t N>
std::string_view find_name(const Name<E> (&names)[N], E value) {
    for (const auto& [name, v] : names)
        if (v == value) return name;
    fail(ErrorKind::Internal, "attention spec: value {} has no name", static_cast<int>(value));
}

template <class E, size_t N>
E find_value(const Name<E> (&names)[N], std::string_view what, std::string_view wanted) {
    std::string list;
    for (const auto& [name, value] : names) {
        if (name == wanted) return value;
        list += (list.empty() ? "" : ", ") + std::string(name);
    }
    fail(ErrorKind::Usage, "unknown {} '{}' — one of {}", what, wanted, list);
}

// Runs a parser of names; what it refuses is the file's fault.
template <class F>
auto from_file(const io::JsonObject& object, std::string_view key, F&& parse, decltype(parse("")) otherwise) {
    const auto text = object.find_string(key);
    if (!text) return otherwise;
    try {
        return parse(*text);
    } catch (const Error& error) {
        fail(ErrorKind::BadInput, "{}: key '{}': {}", object.source(), key, error.what());
    }
}

constexpr std::string_view kReference = "reference";
constexpr int64_t kMaxWindow = int64_t{1} << 20, kMaxFeatureDim = int64_t{1} << 16, kMaxLayers = int64_t{1} << 16;

}  // namespace

std::string_view name_of(AttentionKind kind) {
    return find_name(kKinds, kind);
}
std::string_view name_of(FeatureInit init) {
    return find_name(kInits, init);
}
std::string_view name_of(FeatureBias bias) {
    return find_name(kBiases, bias);
}
std::string_view name_of(FeatureHeads heads) {
    return find_name(kHeads, heads);
}
std::string_view name_of(kernels::WindowKind window) {
    return find_name(kWindows, window);
}
AttentionKind attention_kind_from(std::string_view name) {
    return find_value(kKinds, "attention kind", name);
}
FeatureInit feature_init_from(std::string_view name) {
    return find_value(kInits, "feature init", name);
}
FeatureBias feature_bias_from(std::string_view name) {
    return find_value(kBiases, "feature bias", name);
}
FeatureHeads feature_heads_from(std::string_view name) {
    return find_value(kHeads, "feature heads", name);
}
kernels::WindowKind window_kind_from(std::string_view name) {
    return find_value(kWindows, "window", name);
}

kernels::LinearizedSpec AttentionSpec::kernel_spec() const {
    return {.window = kind == AttentionKind::linear ? kernels::WindowKind::none : window,
            .window_size = window_size,
            .activation = activation,
            .skip = skip,
            .affine = affine && kind == AttentionKind::hybrid};
}

int64_t AttentionSpec::feature_dim_for(int64_t head_dim) const {
    if (feature_dim > 0) return feature_dim;
    return head_dim <= 64 ? head_dim : head_dim / 2;
}

nlohmann::json AttentionSpec::to_json() const {
    return {{"attention", name_of(kind)},
            {"window", reference ? kReference : name_of(window)},
            {"window_size", window_size},
            {"feature_map", kernels::name_of(activation)},
            {"feature_dim", feature_dim},
            {"feature_init", name_of(init)},
            {"feature_bias", name_of(bias)},
            {"feature_map_heads", name_of(heads)},
            {"skip", skip},
            {"affine", affine},
            {"mix_init", mix_init},
            {"softmax_layers", softmax_layers}};
}

AttentionSpec AttentionSpec::from_json(const nlohmann::json& json, std::string_view source) {
    const io::JsonObject object(json, std::string(source));
    AttentionSpec spec;
    const nlohmann::json known = spec.to_json();
    for (const auto& [key, value] : json.items())
        LC_REQUIRE(BadInput, known.contains(key), "{}: unknown key '{}'", source, io::printable(key));
    spec.kind = from_file(object, "attention", attention_kind_from, spec.kind);
    spec.reference = object.find_string("window").value_or("") == kReference;
    spec.window =
        spec.reference ? kernels::WindowKind::sliding : from_file(object, "window", window_kind_from, spec.window);
    spec.window_size = object.find_int("window_size", 1, kMaxWindow).value_or(spec.window_size);
    spec.activation = from_file(object, "feature_map", kernels::feature_activation_from, spec.activation);
    spec.feature_dim = object.find_int("feature_dim", 0, kMaxFeatureDim).value_or(spec.feature_dim);
    spec.init = from_file(object, "feature_init", feature_init_from, spec.init);
    spec.bias = from_file(object, "feature_bias", feature_bias_from, spec.bias);
    spec.heads = from_file(object, "feature_map_heads", feature_heads_from, spec.heads);
    spec.skip = object.find_bool("skip").value_or(spec.skip);
    spec.affine = object.find_bool("affine").value_or(spec.affine);
    spec.mix_init = object.find_double("mix_init", -1e6, 1e6).value_or(spec.mix_init);
    if (object.has("softmax_layers"))
        for (const nlohmann::json& layer : object.get_array("softmax_layers")) {
            if (!layer.is_number_integer() || layer < 0 || layer >= kMaxLayers)
                object.fail_key("softmax_layers", "an array of layer numbers");
            spec.softmax_layers.push_back(layer.get<int64_t>());
        }
    return spec;
}

void validate(const AttentionSpec& spec, int64_t head_dim, int64_t num_layers, ErrorKind kind,
              std::string_view source) {
    const auto require = [&](bool condition, std::string_view reason) {
        if (!condition) fail(kind, "{}: {}", source, reason);
    };
    require(spec.kind != AttentionKind::softmax, "kind softmax is the teacher's: there is nothing to convert");
    const bool hybrid = spec.kind == AttentionKind::hybrid;
    require(!hybrid || spec.window != kernels::WindowKind::none,
            "hybrid attention needs a window, terraced or sliding");
    require(!spec.reference || (hybrid && spec.window == kernels::WindowKind::sliding),
            "the reference's window is one of hybrid attention, and slides in generation");
    require(spec.window_size >= 1 && spec.window_size <= kMaxWindow,
            fmt::format("window_size must be 1 to {}, got {}", kMaxWindow, spec.window_size));
    require(spec.feature_dim >= 0 && spec.feature_dim <= kMaxFeatureDim,
            fmt::format("feature_dim must be 0 (automatic) to {}, got {}", kMaxFeatureDim, spec.feature_dim));
    const int64_t f = spec.feature_dim_for(head_dim);
    require(!spec.skip || f == head_dim,
            fmt::format("skip adds x to x W, so feature_dim must be head_dim {}, got {}", head_dim, f));
    require(spec.bias != FeatureBias::head_scalar || !kernels::is_shift_invariant(spec.activation),
            fmt::format("a head_scalar bias has no effect under {}", kernels::name_of(spec.activation)));
    require(!spec.affine || hybrid, "affine mixes window and linear branch: hybrid attention only");
    require(std::abs(spec.mix_init) <= 1e6, fmt::format("mix_init must be a finite logit, got {}", spec.mix_init));
    const std::set<int64_t> kept(spec.softmax_layers.begin(), spec.softmax_layers.end());
    require(kept.size() == spec.softmax_layers.size(), "softmax_layers names a layer twice");
    require(kept.empty() || (*kept.begin() >= 0 && *kept.rbegin() < num_layers),
            fmt::format("softmax_layers must lie in 0 to {}", num_layers - 1));
    require(static_cast<int64_t>(kept.size()) < num_layers,
            "softmax_layers keeps every layer: there is nothing to convert");
}

void apply_feature_map_name(AttentionSpec& spec, std::string_view name, int64_t head_dim) {
    spec.activation = kernels::feature_activation_from(name);
    if (name == "t2r") spec.bias = FeatureBias::head_scalar, spec.feature_dim = head_dim;
}

}  // namespace lc::models
