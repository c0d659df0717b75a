// A model directory and data small enough that a whole run takes a second: two layers of random weights and a byte-level
// tokenizer of 300 ids. Made once for a test process.
#pragma once
#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "core/rng.h"
#include "io/file.h"
#include "io/tokenizer/bpe_trainer.h"
#include "models/run.h"
#include "tests/io/faults.h"
#include "train/linearize.h"

namespace lc::train::test {

namespace fs = std::filesystem;
using io::test::ScratchDir;

inline std::string tiny_text(int64_t words, uint64_t seed) {
    static constexpr const char* kWords[] = {"the ",  "cat ",   "sat ",  "on ",  "a ",
                                             "mat. ", "while ", "dogs ", "ran ", "home, "};
    const Random random(seed);
    std::string text;
    for (int64_t i = 0; i < words; ++i) text += kWords[random.below(10, static_cast<uint64_t>(i))];
    return text;
}

inline models::DecoderConfig tiny_config() {
    models::DecoderConfig config;
    config.vocab_size = 300, config.hidden_size = 32, config.intermediate_size = 48, config.num_layers = 2;
    config.num_heads = 4, config.num_kv_heads = 2, config.head_dim = 8, config.max_positions = 128;
    config.tie_embeddings = true;
    return config;
}

class TinyWorld {
  public:
    static const TinyWorld& get() {
        static const TinyWorld world;
        return world;
    }
    fs::path model() const { return scratch_ / "model"; }
    fs::path tokenizer() const { return scratch_ / "model" / "tokenizer.json"; }
    fs::path text() const { return scratch_ / "text.txt"; }
    fs::path alpaca() const { return scratch_ / "alpaca.jsonl"; }

  private:
    TinyWorld() {
        fs::create_directory(model());
        scratch_.write("text.txt", tiny_text(1500, 1));
        io::write_file_atomic(tokenizer(), io::train_byte_level_bpe(tiny_text(500, 2), {.vocab_size = 300}));
        // Larger than the usual initial weights, so that attention is not uniform and stage 1 has something to learn.
        models::Decoder decoder = models::Decoder::random(tiny_config(), 3);
        for (models::NamedTensor& parameter : decoder.base_parameters())
            if (parameter.tensor.rank() == 2)
                for (int64_t i = 0; i < parameter.tensor.numel(); ++i) parameter.tensor.data<float>()[i] *= 12;
        models::save_base(decoder, model(), DType::f32);
        std::string records;
        for (uint64_t i = 0; i < 60; ++i)
            records += io::Json({{"instruction", tiny_text(3, 100 + i)},
                                 {"input", i % 3 == 0 ? tiny_text(2, 200 + i) : ""},
                                 {"output", tiny_text(4 + static_cast<int64_t>(i % 9), 300 + i)}})
                           .dump() +
                       "\n";
        scratch_.write("alpaca.jsonl", records);
    }
    ScratchDir scratch_;
};

// Two stages of 7 steps, evaluated and saved every 3.
inline LinearizeOptions tiny_options(const fs::path& out) {
    LinearizeOptions options;
    options.model.directory = TinyWorld::get().model();
    options.out = out;
    options.data = {.file = TinyWorld::get().text(), .format = io::DataFormat::text, .seq_len = 24};
    options.attention.window_size = 4;
    options.lora.rank = 2;
    options.seed = 5;
    options.transfer_budget.steps = options.finetune_budget.steps = 7;
    for (LoopOptions* loop : {&options.transfer_loop, &options.finetune_loop}) {
        loop->batch_size = 2, loop->accumulate = 2;
        loop->eval_every = loop->save_every = 3;
        loop->save_minutes = 0, loop->log_every = 0;
    }
    options.transfer_loop.schedule.base = 1e-2;
    options.finetune_loop.schedule.base = 1e-3;
    options.eval_batch = 3;
    options.config_text = "seed = 5\n";
    return options;
}

}  // namespace lc::train::test
