#include "bench/model_flops.h"

#include <gtest/gtest.h>

namespace lc::bench {
namespace {

using models::AttentionKind;

ModelWork llama8b() {
    return {.config = {.vocab_size = 128256,
                       .hidden_size = 4096,
                       .intermediate_size = 14336,
                       .num_layers = 32,
                       .num_heads = 32,
                       .num_kv_heads = 8,
                       .head_dim = 128},
            .attention = {},
            .lora_rank = 8};
}

// Added up by hand, in GFLOP a token at a length of 1024: 32 layers of 218,103,808 weights are 13.959.
TEST(ModelFlops, LlamaLayerWeights) {
    EXPECT_EQ(llama8b().layer_weights(), 218103808);
}

// Teacher 13.959 less the last layer's o and MLP 0.386, softmax 0.268, student 327,680 a head 0.336.
TEST(ModelFlops, TransferOfLlama) {
    EXPECT_NEAR(llama8b().transfer_flops(1024) * 1e-9, 14.177, 5e-4);
}

// Twice layers and head 2 (13.959 + 1.051), hybrid 163,840 and 425,984 a head (0.168, 0.436), LoRA 3 x 0.0136.
TEST(ModelFlops, FinetuneOfLlama) {
    EXPECT_NEAR(llama8b().finetune_flops(1024) * 1e-9, 30.664, 2e-3);
}

TEST(ModelFlops, SoftmaxGrowsWithTheLengthAndHybridDoesNot) {
    ModelWork work = llama8b();
    EXPECT_EQ(work.finetune_flops(1024), work.finetune_flops(2048));
    work.attention.kind = AttentionKind::softmax;
    // 7 D T a head: 2 forward, 5 backward.
    EXPECT_NEAR(work.finetune_flops(2048) - work.finetune_flops(1024), 32.0 * 32 * 7 * 128 * 1024, 1e3);
}

TEST(ModelFlops, DecodeReadsWeightsOnceAndAStateASequence) {
    ModelWork work = llama8b();
    EXPECT_NEAR(work.decode_weight_bytes(DType::bf16) * 1e-9, 15.01, 5e-3);
    // S and z in f32: 32 x 32 x 128 x 129 numbers; a mean window of 96.5 keys and values of 8 heads in bf16.
    const double state = 4.0 * 32 * 32 * 128 * 129, window = 2.0 * 32 * 2 * 8 * 128 * 96.5;
    EXPECT_NEAR(work.decode_state_bytes(5000, DType::bf16), state + window, 1);
    EXPECT_EQ(work.decode_state_bytes(100000, DType::bf16), work.decode_state_bytes(5000, DType::bf16));
    work.narrow_state = true;
    EXPECT_NEAR(work.decode_state_bytes(5000, DType::bf16), state / 2 + window, 1);
    work.attention.kind = AttentionKind::softmax;
    EXPECT_EQ(work.decode_state_bytes(99, DType::bf16), 2.0 * 32 * 2 * 8 * 128 * 100);
}

TEST(ModelFlops, DecodeOfLlamaIsMostlyItsWeights) {
    // 15.01 of products; maps, state and window of 1024 heads: 1024 (2 x 16384 + 2 x 32768 + 4 x 128 x 96.5) = 0.151.
    EXPECT_NEAR(llama8b().decode_flops(5000) * 1e-9, 15.161, 1e-3);
}

}  // namespace
}  // namespace lc::bench
