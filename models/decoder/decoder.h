// One decoder for Llama and its relatives, driven by its config: pre-norm blocks, grouped-query attention, RoPE, gated MLP.
//
//   h = embed(ids)
//   each layer:  q,k,v = rope(project(norm(h)));  y = attention(q,k,v);  h = h + o(y);  h = h + mlp(norm(h))
//   logits = lm_head(norm(h))
//
// Families differ by a few independent switches (io::BlockConfig): kind of norm, biases, activation, norms of q and k, part of a
// head that is rotated, scale of the embedding, sliding windows; and blocks may be parallel, h = h + o(y) + mlp(norm(h)) with
// the norm that q, k and v came from.
//
// The pieces are public because stage 1 walks the layers itself: the teacher's y goes on to the next layer while the
// student's y is only compared with it. What a forward shall do is an argument (AttentionMode), not a state of the
// model.
#pragma once
#include <array>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "autograd/ops/hybrid_attention.h"
#include "kernels/frozen_linear/frozen_linear.h"
#include "models/attention/attention_spec.h"
#include "models/decoder/config.h"
#include "models/placement.h"

namespace lc::io {
class GgufFile;
class SafetensorsModel;
}  // namespace lc::io

namespace lc::models {

using kernels::WeightCode;

enum class AttentionMode : uint8_t {
    Softmax,
    Linearized
};  // Linearized: layers that `linearize` converted; others softmax
enum class Terms : uint8_t { Both, WindowOnly, LinearOnly };  // diagnosis of hybrids; Both is the model

struct Norm {
    Tensor weight, bias;  // [D]; no bias: an RMS norm's
};

// A frozen weight and, if adapted, its LoRA pair.
struct Projection {
    Tensor weight, bias;    // [Out,In], [Out]; no bias in most families
    Tensor scale;           // [Out], f32: weight holds codes (Decoder::encode_projections)
    Tensor lora_a, lora_b;  // [R,In], [Out,R]; undefined: none
    double lora_scale = 0;  // alpha / R
    Tensor forward(const Tensor& x) const;
    void drop_lora() { lora_a = {}, lora_b = {}, lora_scale = 0; }
};

struct DecoderLayer {
    Norm input_norm, post_attention_norm;  // the latter not in parallel blocks
    Projection q, k, v, o;
    Tensor q_norm, k_norm;                    // [head_dim], some families
    Tensor gate, up, down;                    // [I,D], [I,D], [D,I]; no gate in some families
    Tensor gate_bias, up_bias, down_bias;     // [I], [I], [D]; some families
    Tensor gate_scale, up_scale, down_scale;  // as Projection::scale
    FeatureMaps maps;                         // undefined unless linearized
    Tensor mix_logit;                         // [H], hybrid only
    bool linearized = false;
};

// Which layers of the model this decoder holds. The embedding comes with the first layer, final norm and head with the
// last.
struct LayerRange {
    int64_t begin = 0, end = -1;  // end -1: to the last layer
};

struct LoadOptions {
    Placement placement;
    bool follow_symlinks = true;
    LayerRange layers;
    bool ignore_sliding_window = false;  // softmax attention over all keys, as the authors of LoLCATs ran Mistral
    // Not none: the MLP's matrices, most of a model, become codes layer by layer while it is read, so that it never lies there in its
    // dtype. What adapters may change stays until encode_projections.
    WeightCode weight_code = WeightCode::none;
};

struct LoraSpec {
    int64_t rank = 8;
    double alpha = 16;
    std::vector<std::string> targets = {"q_proj", "k_proj", "v_proj", "o_proj"};
};

struct NamedTensor {
    std::string name;  // as in the file that holds it, e.g. "model.layers.3.self_attn.feature_map_q.mlp.layer"
    Tensor tensor;     // the parameter itself (shares storage and autograd metadata with the model's)
};

struct Qkv {
    Tensor q;     // [B,H,T,D]     after RoPE
    Tensor k, v;  // [B,H_kv,T,D]  k after RoPE
};

class Decoder {
  public:
    // An unmodified Hugging Face directory, or a GGUF file of architecture llama, which is dequantized. All weights are frozen. Throws BadInput naming the tensor, what config.json
    // asks for and what is there; also for tensors that are no part of this architecture.
    static Decoder load(const std::filesystem::path& directory, const LoadOptions& options = {});
    // The same from files that are open already, for those who load a model layer by layer.
    static Decoder load(const io::SafetensorsModel& files, const DecoderConfig& config, const LoadOptions& options);
    static Decoder load_gguf(const io::GgufFile& file, const LoadOptions& options);
    // Weights of the right shapes, in f32 on the CPU, whose values are unspecified and without positions: to check what
    // shall be applied to a model before it is read.
    static Decoder unfilled(DecoderConfig config, LayerRange layers);
    // Normal(0, 0.02) weights (residual outputs scaled by 1/sqrt(2 layers)), unit norms, drawn where they lie. Trainable, for
    // `pretrain`: wide weights that collect gradients. Frozen: as if loaded from a model directory.
    enum class Weights : uint8_t { Trainable, Frozen };
    static Decoder random(const DecoderConfig& config, uint64_t seed, const Placement& placement = {},
                          Weights weights = Weights::Trainable);

    const DecoderConfig& config() const { return config_; }
    // Layers are counted from 0 within this decoder; layer i is layer first_layer() + i of the model, and named so.
    int64_t num_layers() const { return static_cast<int64_t>(layers_.size()); }
    int64_t first_layer() const { return first_layer_; }
    const DecoderLayer& layer(int64_t index) const { return layers_.at(static_cast<size_t>(index)); }
    DecoderLayer& layer(int64_t index) { return layers_.at(static_cast<size_t>(index)); }
    const std::optional<AttentionSpec>& attention() const { return attention_; }
    const Placement& placement() const { return placement_; }
    DType dtype() const { return placement_.dtype; }  // of activations
    Device device() const { return placement_.device; }

    // Adds feature maps and window factors to every layer not in spec.softmax_layers, frozen like all else. Replaces
    // earlier ones; LoRA pairs are dropped. Throws Error(Usage) for a spec that cannot be run (see validate).
    void linearize(const AttentionSpec& spec, uint64_t seed);
    // Adds LoRA pairs (A uniform +-1/sqrt(In), B zero) to the projections of linearized layers, or of all layers of a model
    // that was not linearized (the control of experiments). Replaces earlier ones.
    void add_lora(const LoraSpec& spec, uint64_t seed);
    void merge_lora();  // W += s B A, then drops the pairs
    const std::optional<LoraSpec>& lora() const { return lora_; }
    // Turns the matrices of all layers (q, k, v, o, gate, up, down) into codes with a scale a row, for good: the model then computes
    // without gradients, and has no base_parameters(). Embedding, head, norms and biases stay. Adapters must be merged before. None
    // does nothing.
    // With fp8 the rows that they multiply can become codes, too (kernels/frozen_linear): for products of many rows.
    void encode_projections(WeightCode code, bool code_rows = false);
    WeightCode weight_code() const { return weight_code_; }
    // From now on gate, up and their SwiGLU are one product of many rows where no gradient is wanted (kernels/frozen_linear). A pass that is
    // recorded rounds gate and up in between, so it has other bits: for decoders that are only read.
    void fuse_gates() { fuses_gates_ = true; }

    // --- the pieces of a forward pass; h is [B,T,D] ---
    Tensor embed(const Tensor& ids) const;                                    // ids [B,T] on any device -> h
    Qkv project(int64_t layer, const Tensor& h, int64_t position = 0) const;  // position of row 0
    // The same for one token of each sequence, h [B,1,D]: sequence b at positions[b], an i64 tensor beside h that is not read on
    // the host. Below 0 counts as 0.
    Qkv project(int64_t layer, const Tensor& h, const Tensor& positions) const;
    // y [B,H,T,D], stored as [B,T,H,D]. Terms other than Both need a hybrid layer to say something about: layers that
    // are softmax in this mode ignore them, pure linear ones refuse WindowOnly.
    Tensor attend(int64_t layer, const Qkv& qkv, AttentionMode mode, Terms terms = Terms::Both) const;
    Tensor finish(int64_t layer, const Tensor& h, const Tensor& y) const;  // the next layer's h
    Tensor final_norm(const Tensor& h) const;
    const Tensor& lm_head() const;           // [V,D]; the embedding when tied
    const Tensor& head_bias() const;         // [V]; undefined in most families
    int64_t window_of(int64_t layer) const;  // of softmax attention; 0: all keys

    struct ForwardOptions {
        AttentionMode mode = AttentionMode::Softmax;
        Terms terms = Terms::Both;
        bool checkpoint_layers = false;  // keep only each layer's input for the backward
    };
    Tensor hidden(const Tensor& ids, const ForwardOptions& options) const;  // after the final norm
    Tensor logits_of(const Tensor& h) const;  // h of N rows in all, [1,N,D] or [N,1,D], before the final norm -> [N,V]
    Tensor logits(const Tensor& ids, const ForwardOptions& options) const;  // [B,T,V]; for short sequences and tests

    // Names and shapes of the base weights of a whole model, in the order of base_parameters().
    struct WeightShape {
        std::string name;
        Shape shape;
    };
    static std::vector<WeightShape> base_weights(const DecoderConfig& config);

    // --- parameters by group, in a fixed order ---
    std::vector<NamedTensor> feature_map_parameters(int64_t layer) const;  // maps, biases, window factors of one layer
    std::vector<NamedTensor> feature_map_parameters() const;               // all layers
    std::vector<NamedTensor> lora_parameters() const;
    std::vector<NamedTensor> base_parameters() const;  // HF names
    // Turns gradients on for exactly these, which must be parameters of this decoder; everything else is frozen.
    void set_trainable(const std::vector<NamedTensor>& parameters);

  private:
    enum class Role : uint8_t { matrix, residual, norm, bias };  // residual: a matrix whose product is added to h
    struct WeightSlot {
        std::string name;  // Hugging Face's
        Tensor* tensor;
        Shape shape;
        Role role = Role::matrix;
    };
    Decoder(const DecoderConfig& config, LayerRange layers, const Placement& placement);
    void make_rope_table();
    std::vector<WeightSlot> weight_slots();  // of the base model, in a fixed order
    // Room for these weights, frozen. Those of q, k and v of a layer lie behind one another, so that one product can serve all three
    // (kernels/frozen_linear).
    void make_room(std::span<const WeightSlot> slots);
    // Slots of what is read at a time: everything, or, where the weights become codes, a layer. `read` fills them.
    void read_slots(const std::function<void(std::span<const WeightSlot>)>& read);
    std::string layer_name(int64_t layer) const { return fmt::format("model.layers.{}.", first_layer_ + layer); }
    void linearize_layer(int64_t layer, uint64_t seed);
    const DecoderLayer& checked_layer(int64_t index) const;
    void add_layer_slots(int64_t layer, std::vector<WeightSlot>& slots);
    void add_norm_slots(const std::string& name, Norm& norm, std::vector<WeightSlot>& slots) const;
    // q, k, v [B,H,T,D] before rotation
    Qkv project_only(int64_t layer, const Tensor& h) const;
    Tensor norm(const Tensor& x, const Norm& norm) const;
    std::pair<Tensor, Tensor> add_norm(const Tensor& x, const Tensor& residual,
                                       const Norm& norm) const;          // of the sum; the sum
    Tensor mlp_inner(const DecoderLayer& layer, const Tensor& x) const;  // before `down`
    Tensor activate(const Tensor& gate, const Tensor& up) const;

    // The same pieces through kernels/frozen_linear (frozen_forward.cpp), where `reads_frozen`: weights are codes, or few rows stream them.
    struct FrozenWeight {
        const Tensor &weight, &scale, &bias;
    };
    bool reads_frozen(const Tensor& x, const Tensor& weight, int64_t most_rows = kernels::kWideRows) const;
    std::vector<Tensor> frozen_products(const Tensor& x, const Norm* norm, const std::vector<FrozenWeight>& weights,
                                        const Tensor& residual = {}, bool gated = false) const;
    void multiply_frozen(const Tensor& x, const Norm* norm, const std::vector<FrozenWeight>& weights,
                         const std::vector<Tensor>& results, const Tensor& residual = {}, bool gated = false) const;
    Tensor frozen_qkv(const DecoderLayer& layer, const Tensor& h) const;  // [B,T,(H+2 H_kv) D]: q, k and v of each row
    // q, k and v as tensors of their own, so that of many rows none outlives its use.
    std::array<Tensor, 3> frozen_qkv_apart(const DecoderLayer& layer, const Tensor& h) const;
    Tensor frozen_finish(const DecoderLayer& layer, const Tensor& h, const Tensor& rows) const;
    void encode(Tensor& weight, Tensor& scale) const;
    void encode_mlp(DecoderLayer& layer) const;

    DecoderConfig config_;
    Placement placement_;
    int64_t first_layer_ = 0;
    Tensor embedding_, lm_head_, head_bias_;  // lm_head_ undefined when tied
    Norm final_norm_;
    std::vector<DecoderLayer> layers_;
    Tensor rope_cos_, rope_sin_;  // [max_positions, R/2], R numbers of a head rotated
    std::optional<AttentionSpec> attention_;
    std::optional<LoraSpec> lora_;
    WeightCode weight_code_ = WeightCode::none;
    bool code_rows_ = false, fuses_gates_ = false;
};

// The projection of a layer by its name in files ("q_proj", "k_proj", "v_proj", "o_proj"); nullptr for another name.
Projection* find_projection(DecoderLayer& layer, std::string_view name);
inline constexpr std::array<std::string_view, 4> kProjectionNames = {"q_proj", "k_proj", "v_proj", "o_proj"};

// What the model's files call a projection (Phi: "dense" for "o_proj"), and the reverse, which leaves other names as they are.
std::string file_name_of(const DecoderConfig& config, std::string_view projection);
std::string projection_of(const DecoderConfig& config, std::string_view file_name);

// What kernels run for a layer of this spec: LinearOnly takes the window away, WindowOnly the linear branch (Usage
// error for pure linear attention, which would have nothing left).
kernels::LinearizedSpec effective_spec(const AttentionSpec& spec, Terms terms);

}  // namespace lc::models
