// A stage of training without values: models/decoder/decoder.cpp, train/attention_transfer.cpp and train/next_token.cpp
// over ghosts; the ops that they call are in memory_rehearsal_ops.cpp. Functions bear the names of those that they follow,
// and keep alive what those keep alive.
#pragma once
#include "train/memory_ghost.h"
#include "train/memory_plan.h"
#include "train/memory_workspace.h"

namespace lc::train::memory {

class Rehearsal {
  public:
    // Weights, feature maps and LoRA pairs of the stage. Keeps references.
    Rehearsal(const PlanInput& input, Ledger& ledger);

    // AdamW's moments and the copy of the best parameters, which live as long as the stage.
    void begin_stage();
    // The gradients of one optimizer step: Stage::accumulate.
    void step();
    // Stage::evaluate.
    void evaluate();
    // Perplexity of validation chunks, by softmax and by linearized attention: train/linearize.cpp measures both.
    void measure();

    int64_t trained() const { return trained_; }  // numbers that the stage learns

  private:
    struct Projection {
        Ghost weight, bias, codes, scale, lora_a, lora_b;
        int64_t in = 0, out = 0, rank = 0;
    };
    struct Norm {
        Ghost weight, bias;
    };
    struct Layer {
        Norm input_norm, post_attention_norm;
        Projection q, k, v, o, gate, up, down;
        Ghost q_norm, k_norm;
        std::vector<Ghost> maps;  // wq, wk, biases, window factors; empty unless linearized
    };
    struct Qkv {
        Ghost q, k, v;
    };

    Ghost parameter(int64_t numel, DType dtype, Owner owner, bool trained);
    Ghost weight(int64_t numel);
    Norm norm_weights();
    Projection projection(int64_t in, int64_t out, bool bias, bool lora);
    Layer layer(int64_t index);
    bool converted(int64_t index) const;
    bool has_lora(int64_t index, std::string_view target) const;
    AttentionCall call_of(const Ghost& q) const;
    std::vector<Workspace> attention_workspace(const AttentionCall& call, const Buffers& cuda, bool fused) const;
    Buffers products(int64_t in, int64_t out, int64_t rounded_weight) const;

    Ghost embedding(int64_t rows);
    Ghost rms_norm(const Ghost& x, const Ghost& weight);
    std::pair<Ghost, Ghost> add_rms_norm(const Ghost& x, const Ghost& residual, const Ghost& weight);
    Ghost layer_norm(const Ghost& x, const Norm& norm);
    Ghost add(const Ghost& a, const Ghost& b);
    Ghost scale(const Ghost& x);
    Ghost forward(const Projection& projection, const Ghost& x);
    std::vector<Ghost> forward(const std::vector<const Projection*>& projections, const Ghost& x);
    Ghost linear(const Projection& projection, const Ghost& x, const Ghost& residual = {});
    std::vector<Ghost> lora_linear(const std::vector<const Projection*>& projections, const Ghost& x);
    bool has_codes() const { return input_.stage == PlanStage::transfer && input_.transfer_fp8; }
    std::vector<Ghost> multiply_codes(const std::vector<const Projection*>& projections, const Ghost& x, bool norm,
                                      bool gated);
    Ghost finish_codes(const Layer& layer, const Ghost& h, const Ghost& y);
    Ghost gated_product(const Layer& layer, const Ghost& x);
    Ghost rope(const Ghost& x);
    Ghost gated(const Ghost& gate, const Ghost& up);  // swiglu, geglu
    Ghost gelu(const Ghost& x);
    Ghost softmax_attention(const Qkv& qkv);
    Ghost linearized_attention(const Layer& layer, const Qkv& qkv);
    Ghost linear_cross_entropy(const Ghost& hidden);

    Ghost embed(int64_t rows);
    Ghost norm(const Ghost& x, const Norm& norm);
    std::pair<Ghost, Ghost> add_norm(const Ghost& x, const Ghost& residual, const Norm& norm);
    Ghost mlp_inner(const Layer& layer, const Ghost& x);
    Qkv project_only(const Layer& layer, const Ghost& h);
    Qkv project(const Layer& layer, const Ghost& h);
    Ghost attend(const Layer& layer, const Qkv& qkv, bool linearized);
    Ghost finish(const Layer& layer, const Ghost& h, const Ghost& y);
    Ghost block(const Layer& layer, const Ghost& h, bool linearized);
    Ghost checkpoint(const Layer& layer, const Ghost& h, bool linearized);
    Ghost hidden(int64_t batch, bool linearized, bool checkpoint_layers);
    void student(const Layer& layer, const Qkv& qkv, bool train, int64_t converted, Ghost& losses);
    void walk(int64_t batch, bool train);
    void learn();
    void chunk_losses(bool linearized);
    void clear_gradients();

    const PlanInput& input_;
    DType dtype_;  // of activations
    DeviceType device_;
    int64_t multiprocessors_;
    bool hopper_;  // bf16 on a device of compute capability 9.0
    Ledger& ledger_;
    GhostTape tape_;
    int64_t rows_ = 0, batch_ = 0;                         // of the pass under way: tokens and chunks
    bool multiplies_codes_ = false, fuses_gates_ = false;  // that pass
    Ghost embedding_, lm_head_, head_bias_, rope_cos_, rope_sin_;
    Norm final_norm_;
    std::vector<Layer> layers_;
    std::vector<std::shared_ptr<GhostGradient>> parameter_gradients_;
    std::vector<int64_t> trained_sizes_;
    std::vector<Ledger::Block> optimizer_;
    int64_t trained_ = 0;
};

}  // namespace lc::train::memory
