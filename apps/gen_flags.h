// Options of gen_lolcats, and how they become what the library takes.
#pragma once
#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "apps/common.h"
#include "apps/model_flags.h"
#include "io/hf_config.h"
#include "models/generation/continuation.h"

namespace lc::apps {

struct GenFlags {
    ModelFlags model;
    PlacementFlags place;
    WeightFlags weights;
    std::string run, prompt, prompt_file, terms = "both", state_dtype = "f32", batch, out;
    std::string chat_template, system, save_state, load_state;
    std::vector<std::string> stop, logit_bias;
    int64_t max_new_tokens = 128, top_k = 0, threads = 0, batch_size = 8, prefill_chunk = 512;
    double temperature = 1, top_p = 1, min_p = 0, repetition_penalty = 1, presence_penalty = 0, frequency_penalty = 0;
    uint64_t seed = 0;
    bool greedy = false, ignore_eos = false, go_on = false, chat = false, json = false, stats = false,
         no_follow_symlinks = false;

    void add(CLI::App& app);
};

// Defaults of the model's generation_config.json stand unless an option was given. Sampling is on when the model says
// so (do_sample) or when any sampling option was given; else the likeliest token is taken. The ids that end a text are
// not filled in.
models::GenerateOptions generate_options(const GenFlags& flags, const Settings& settings,
                                         const io::GenerationConfig& defaults);

}  // namespace lc::apps
