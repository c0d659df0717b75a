// The verbs of train_lolcats: each adds its options to the program and returns what runs when it was chosen.
#pragma once
#include <CLI/CLI.hpp>
#include <functional>
#include <string>
#include <vector>

#include "apps/common.h"
#include "apps/model_flags.h"
#include "train/loop.h"
#include "train/run_directory.h"
#include "train/stage_config.h"

namespace lc::apps {

struct Verb {
    CLI::App* app = nullptr;
    std::function<int(const Settings& settings)> run;  // returns the exit code
};

Verb add_linearize(CLI::App& program);
Verb add_pretrain(CLI::App& program);
Verb add_perplexity(CLI::App& program);
Verb add_export(CLI::App& program);
Verb add_import(CLI::App& program);
Verb add_tokenize(CLI::App& program);
Verb add_train_tokenizer(CLI::App& program);

// Options that all training verbs have.
struct RunFlags {
    std::string data, data_format = "auto", bad_lines = "stop", out, resume, resume_from;
    std::vector<std::string> allow_change;
    int64_t seq_len = 1024, validation_chunks = 0, data_limit = 0, eval_batch = 4, preview = 0, keep = 2, threads = 0;
    uint64_t seed = 0;
    std::string clip_scope = "off", schedule = "plateau", profile_steps;
    train::LoopOptions loop;
    PlacementFlags place;
    bool dry_run = false;

    void add_data(CLI::App& verb);
    void add_loop(CLI::App& verb);
    train::DataOptions data_options() const;
    train::ResumeOptions resume_options() const;
    // What is the same for all stages; learning rates are the caller's.
    train::LoopOptions loop_options() const;
    models::Placement placement() const { return dry_run ? place.planned() : place.placement(); }
    // Sets threads, demands the data and the run directory where they are needed. True when --preview-data was answered.
    bool begin(const std::string& tokenizer_source) const;
};

// Ends a training verb: 0, or 75 with a word about resuming.
int exit_code_of(bool finished);

}  // namespace lc::apps
