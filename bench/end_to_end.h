// bench e2e: whole steps of a model with random weights, at the shape of a real one.
#pragma once
#include <filesystem>
#include <string>

namespace lc::bench {

struct EndToEndOptions {
    std::filesystem::path model_config;  // config.json of a model
    std::string stage;                   // transfer, finetune, decode
    std::string attention = "hybrid";    // hybrid, linear; softmax (not converted): finetune and decode
    std::string device = "auto", dtype = "auto", out, command;
    // Of decode: none (the ids are given), greedy, drawn, top-p; f32, bf16; auto (as dtype), int8, fp8.
    std::string sample = "none", state_dtype = "f32", weights_dtype = "auto";
    int64_t batch = 8, seq_len = 1024, accumulate = 1;  // of training: micro-batch, its tokens, micro-batches in a step
    int64_t steps = 10, warmup = 3;                     // timed steps after untimed ones; of decode: untimed tokens
    int64_t prompt = 128, new_tokens = 256, prefill_chunk = 512;  // of decode
    int64_t context = 0;  // of decode: instead of a prompt, a memory of so many tokens that nobody read
    int64_t lora_rank = 8;
    bool fp8 = false;  // transfer: frozen layers multiply codes
    bool checkpoint_layers = false;
};

// A line of text on stdout, and a JSON line in `out`.
void run_end_to_end(const EndToEndOptions& options);

}  // namespace lc::bench
