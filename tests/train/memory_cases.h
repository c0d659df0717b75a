// The memory plan against what the allocator measures: real steps of small random decoders, for tests on either device.
#pragma once
#include <gtest/gtest.h>

#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "core/allocator.h"
#include "core/parallel.h"
#include "core/rng.h"
#include "kernels/common/gemm.h"
#include "train/attention_transfer.h"
#include "train/evaluate.h"
#include "train/memory_plan.h"
#include "train/next_token.h"
#include "train/selection.h"

namespace lc::train::test {

using kernels::WindowKind;
using models::AttentionKind;

// The users' promise is 5 %. Left out are scalars and token ids; one tensor of a layer forgotten is more than 1 % here,
// and the code that is followed allocates nothing at random.
inline constexpr double kTolerance = 0.005;

struct Case {
    std::string name;
    PlanInput input;
};
inline void PrintTo(const Case& c, std::ostream* out) {
    *out << c.name;
}

inline models::DecoderConfig config_of(int64_t heads, int64_t kv_heads, int64_t head_dim, bool tied) {
    models::DecoderConfig config;
    config.vocab_size = 1500, config.hidden_size = 256, config.intermediate_size = 640, config.num_layers = 3;
    config.num_heads = heads, config.num_kv_heads = kv_heads, config.head_dim = head_dim, config.max_positions = 1024;
    config.tie_embeddings = tied;
    return config;
}

// Models that differ in attention, LoRA targets and batches, and in what blocks are made of.
inline std::vector<PlanInput> models_under_test() {
    PlanInput sliding{.config = config_of(4, 4, 64, true), .batch_size = 2, .accumulate = 1, .seq_len = 384};
    sliding.eval_batch = 2;
    sliding.attention.window = WindowKind::sliding, sliding.attention.window_size = 48;
    sliding.attention.affine = true, sliding.attention.bias = models::FeatureBias::vector;
    sliding.attention.activation = kernels::FeatureActivation::relu;
    PlanInput wide{.config = config_of(4, 2, 128, false), .batch_size = 1, .accumulate = 2, .seq_len = 640};
    wide.lora = {.rank = 16, .targets = {"q_proj", "v_proj"}};
    PlanInput linear{.config = config_of(8, 2, 64, false), .batch_size = 3, .accumulate = 2, .seq_len = 192};
    linear.eval_batch = 9;  // the evaluation is the highest moment of stage 1
    linear.attention.kind = AttentionKind::linear, linear.attention.heads = models::FeatureHeads::kv;
    linear.attention.softmax_layers = {0, 2};
    linear.unequal_labels = true;
    PlanInput phi{.config = config_of(4, 4, 80, false), .batch_size = 2, .accumulate = 2, .seq_len = 256};
    phi.config.block = {.norm = io::NormKind::layer,
                        .activation = io::Activation::gelu_tanh,
                        .gated = false,
                        .parallel = true,
                        .qkv_bias = true,
                        .o_bias = true,
                        .mlp_bias = true,
                        .head_bias = true,
                        .rotary_fraction = 0.4};
    PlanInput gemma{.config = config_of(2, 1, 256, true), .batch_size = 1, .accumulate = 2, .seq_len = 256};
    gemma.config.block = {.norm_offset = 1,
                          .activation = io::Activation::gelu_tanh,
                          .qk_norm = true,  // Qwen3's
                          .scaled_embedding = true,
                          .qkv_bias = true};
    return {sliding, wide, linear, phi, gemma};
}

inline std::vector<Case> cases() {
    std::vector<Case> result;
    const char* names[] = {"sliding", "wide", "linear", "phi", "gemma"};
    const auto inputs = models_under_test();
    for (size_t i = 0; i < inputs.size(); ++i) {
        const auto add = [&](const std::string& stage, const PlanInput& input) {
            result.push_back({std::string(names[i]) + "_" + stage, input});
        };
        PlanInput input = inputs[i];
        add("transfer", input);
        input.transfer_fp8 = true;
        add("transfer_fp8", input);
        input.transfer_fp8 = false;
        input.stage = PlanStage::finetune;
        add("finetune", input);
        input.checkpoint_layers = true;
        add("finetune_checkpoint", input);
        input.checkpoint_layers = false, input.train_feature_maps = true;
        add("finetune_maps", input);
        input.stage = PlanStage::pretrain;
        add("pretrain", input);
        input.checkpoint_layers = true;
        add("pretrain_checkpoint", input);
    }
    return result;
}

// Chunks of random tokens. Uneven: every chunk leaves another number of labels out.
inline PackedChunks chunks_of(const PlanInput& input, int64_t count, bool uneven) {
    PackedChunks data;
    data.seq_len = input.seq_len;
    const Random random(7);
    for (int64_t i = 0; i < count * input.seq_len; ++i) {
        const auto id = static_cast<int32_t>(
            random.below(static_cast<uint64_t>(input.config.vocab_size), static_cast<uint64_t>(i)));
        data.ids.push_back(id);
        data.labels.push_back(uneven && i % input.seq_len < 1 + i / input.seq_len ? kIgnoreLabel : id);
    }
    if (uneven) data.labels[1] = kIgnoreLabel;
    return data;
}

inline std::unique_ptr<Stage> make_stage(const PlanInput& input, models::Decoder& decoder,
                                         const PackedChunks& validation) {
    if (input.stage == PlanStage::transfer)
        return std::make_unique<AttentionTransfer>(decoder, validation, input.eval_batch, input.transfer_fp8);
    const bool finetune = input.stage == PlanStage::finetune;
    NextTokenOptions options{.eval_batch = input.eval_batch};
    options.forward.mode = finetune ? models::AttentionMode::Linearized : models::AttentionMode::Softmax;
    options.forward.checkpoint_layers = input.checkpoint_layers;
    auto parameters = finetune ? decoder.lora_parameters() : decoder.base_parameters();
    if (finetune && input.train_feature_maps)
        for (const models::NamedTensor& parameter : decoder.feature_map_parameters()) parameters.push_back(parameter);
    return std::make_unique<NextTokenStage>(finetune ? "finetune" : "pretrain", decoder, parameters, validation,
                                            options);
}

inline models::Decoder make_decoder(const PlanInput& input) {
    using Weights = models::Decoder::Weights;
    const bool pretrain = input.stage == PlanStage::pretrain;
    models::Decoder decoder =
        models::Decoder::random(input.config, 1, input.placement, pretrain ? Weights::Trainable : Weights::Frozen);
    if (!pretrain) decoder.linearize(input.attention, 1);
    if (input.stage == PlanStage::finetune) decoder.add_lora(input.lora, 1);
    return decoder;
}

struct Measured {
    int64_t step = 0, peak = 0, reserved = 0;
};

// The moments that a plan knows: perplexities before stage 1, a step, an evaluation.
inline Measured measure(const PlanInput& input) {
    const PackedChunks train = chunks_of(input, input.batch_size * input.accumulate, input.unequal_labels);
    const PackedChunks validation = chunks_of(input, input.eval_batch, false);
    std::vector<Batch> batches;
    for (int64_t a = 0; a < input.accumulate; ++a) {
        std::vector<int64_t> rows(static_cast<size_t>(input.batch_size));
        std::iota(rows.begin(), rows.end(), a * input.batch_size);
        batches.push_back(make_batch(train, rows));
    }
    Allocator& memory = allocator(input.placement.device);
    const int64_t before = memory.stats().bytes_in_use;
    models::Decoder decoder = make_decoder(input);
    memory.release_cached(), memory.reset_peak();
    if (input.stage == PlanStage::transfer)
        for (const auto mode : {models::AttentionMode::Softmax, models::AttentionMode::Linearized})
            chunk_losses(decoder, validation, {{.mode = mode}, input.eval_batch, {}});
    const int64_t perplexity_peak = memory.stats().peak_bytes;
    const int64_t perplexity_reserved = memory.stats().bytes_reserved;

    const std::unique_ptr<Stage> stage = make_stage(input, decoder, validation);
    Optimizer optimizer(stage->groups(), {});
    const Selection best(stage->groups(), Scope::global);
    memory.release_cached(), memory.reset_peak();
    stage->accumulate(batches);
    const std::vector<double> rates(optimizer.groups().size(), 1e-3);
    EXPECT_FALSE(optimizer.step(rates).skipped);
    optimizer.zero_grad();
    Measured measured{.step = memory.stats().peak_bytes - before};
    stage->evaluate({});
    measured.peak = std::max(memory.stats().peak_bytes, perplexity_peak) - before;
    measured.reserved = std::max(memory.stats().bytes_reserved, perplexity_reserved) - before;
    return measured;
}

// Packed blocks of the portable matrix product come and go on every thread, in many sizes: one thread makes the peak
// certain, and the cache is known to 2 %. So do decoded blocks of matrices in fp8.
class CertainProducts {
  public:
    explicit CertainProducts(bool codes) {
        if (portable() || codes) set_num_threads(1);
    }
    ~CertainProducts() { set_num_threads(before_); }
    CertainProducts(const CertainProducts&) = delete;
    CertainProducts& operator=(const CertainProducts&) = delete;
    static bool portable() { return kernels::gemm_backend() == std::string_view("portable"); }

  private:
    int before_ = num_threads();
};

inline void expect_planned(const PlanInput& input) {
    const CertainProducts certain(input.transfer_fp8);
    const Measured measured = measure(input);
    const MemoryPlan plan = plan_memory(input);
    const int64_t step = plan.total() - plan.rows.back().bytes;  // the last row is what an evaluation adds
    const auto near = [&](int64_t planned, int64_t real, const char* what, double tolerance) {
        EXPECT_NEAR(static_cast<double>(planned) / static_cast<double>(real), 1.0, tolerance)
            << what << ": planned " << planned << ", measured " << real << "\n"
            << memory_table(plan, std::nullopt);
    };
    near(step, measured.step, "peak of a step", kTolerance);
    near(plan.total(), measured.peak, "peak", kTolerance);
    const bool packed = CertainProducts::portable() && input.placement.device.is_cpu();
    near(plan.reserved, measured.reserved, "reserved", packed ? 0.02 : kTolerance);
}

}  // namespace lc::train::test
