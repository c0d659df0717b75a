// What `linearize` makes of a decoder's attention layers: the user's choices, as they stand in a run's config and in
// feature_maps.safetensors. Defaults are those of LoLCATs (arXiv 2410.10254).
#pragma once
#include <nlohmann/json_fwd.hpp>
#include <string_view>
#include <vector>

#include "kernels/common/attention_spec.h"

namespace lc::models {

enum class AttentionKind : uint8_t { softmax, linear, hybrid };
enum class FeatureInit : uint8_t { identity, kaiming, normal };
enum class FeatureBias : uint8_t { none, head_scalar, vector };
enum class FeatureHeads : uint8_t { query, kv };  // one k-map a query head, or one a KV head (shared state)

struct AttentionSpec {
    AttentionKind kind = AttentionKind::hybrid;
    kernels::WindowKind window = kernels::WindowKind::terraced;
    int64_t window_size = 64;
    // The authors' code for logits equal to theirs, inference only; files say window "reference". Whole sequences and prompts go by
    // reference_attention.h, generation by a sliding window, which `window` then is.
    bool reference = false;
    kernels::FeatureActivation activation = kernels::FeatureActivation::softmax_dim;
    int64_t feature_dim = 0;  // F; 0: head_dim if that is at most 64, else head_dim / 2
    FeatureInit init = FeatureInit::identity;
    FeatureBias bias = FeatureBias::none;
    FeatureHeads heads = FeatureHeads::query;
    bool skip = false;
    bool affine = false;
    double mix_init = -2.1972245773362196;  // logit of gamma = 0.1
    std::vector<int64_t> softmax_layers;    // layers left untouched

    // The part that kernels need. Pure linear attention has window none.
    kernels::LinearizedSpec kernel_spec() const;
    // F as it will be: feature_dim, or the default for this head_dim.
    int64_t feature_dim_for(int64_t head_dim) const;
    bool operator==(const AttentionSpec&) const = default;

    nlohmann::json to_json() const;
    // `source` names the file in errors. Absent keys keep their defaults; unknown keys and values throw BadInput.
    static AttentionSpec from_json(const nlohmann::json& json, std::string_view source);
};

// Refuses, as Error(Usage), what cannot be run as written: skip without F = D, head_scalar bias under shift-invariant
// maps, a window below 1, layers out of range, ... For specs out of files pass BadInput and the file's name.
void validate(const AttentionSpec& spec, int64_t head_dim, int64_t num_layers, ErrorKind kind = ErrorKind::Usage,
              std::string_view source = "attention");

// A feature map by name. "t2r" also sets the bias that T2R has (head_scalar) and F = head_dim.
void apply_feature_map_name(AttentionSpec& spec, std::string_view name, int64_t head_dim);

// Names as in files and on command lines; the reverse throws Error(Usage) listing the names.
std::string_view name_of(AttentionKind kind);
std::string_view name_of(FeatureInit init);
std::string_view name_of(FeatureBias bias);
std::string_view name_of(FeatureHeads heads);
std::string_view name_of(kernels::WindowKind window);
AttentionKind attention_kind_from(std::string_view name);
FeatureInit feature_init_from(std::string_view name);
FeatureBias feature_bias_from(std::string_view name);
FeatureHeads feature_heads_from(std::string_view name);
kernels::WindowKind window_kind_from(std::string_view name);

}  // namespace lc::models
