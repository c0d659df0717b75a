// The model families that config.json may name, and what distinguishes them.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace lc::io {

class JsonObject;
struct HfConfig;

enum class NormKind : uint8_t { rms, layer };  // layer: with a bias
enum class Activation : uint8_t { silu, gelu_tanh };

// How a decoder's blocks differ from Llama's, whose are the defaults: independent switches, any of which a family may set.
struct BlockConfig {
    NormKind norm = NormKind::rms;
    double norm_offset = 0;  // weights of norms are stored as w - norm_offset
    Activation activation = Activation::silu;
    bool gated = true;              // down(act(gate x) * up x); false: down(act(up x))
    bool parallel = false;          // attention and MLP both read the block's one norm, and add to its input together
    bool qk_norm = false;           // RMS norm of every head of q and k, before the rotation
    bool scaled_embedding = false;  // times sqrt(hidden_size)
    bool qkv_bias = false, o_bias = false, mlp_bias = false, head_bias = false;
    bool phi_names = false;      // dense, fc1, fc2 and final_layernorm for o_proj, up_proj, down_proj and norm
    double rotary_fraction = 1;  // the first int(head_dim * rotary_fraction) numbers of a head are rotated
    bool operator==(const BlockConfig&) const = default;
};

struct HfFamily {
    const char* architecture;  // config.json's `architectures`
    const char* model_type;
    BlockConfig block;        // without what single models may set
    bool ties_by_default;     // what an absent `tie_word_embeddings` means
    bool may_bias_attention;  // `attention_bias` speaks of q, k, v and o
    bool may_bias_mlp;        // `mlp_bias`
    const char* norm_eps_key;
    int64_t default_head_dim;  // where `head_dim` is absent; 0: hidden_size / num_attention_heads
};

// Throws BadInput, with the reason where it is a known one, for architectures that are not computed, and for another `model_type`
// than the architecture's.
const HfFamily& family_of(const JsonObject& json);
const HfFamily& family_named(const std::string& architecture);  // one that family_of returned

// The family's blocks with what this model sets: biases, activation, partial rotation. Throws BadInput for what is not computed.
BlockConfig read_block(const JsonObject& json, const HfFamily& family);

// `sliding_window` and `window_layers`, in the family's way.
void read_window(const JsonObject& json, const HfFamily& family, HfConfig& config);

}  // namespace lc::io
