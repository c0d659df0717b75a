#include <memory>

#include "apps/train_verbs.h"
#include "train/dry_run.h"
#include "train/interrupt.h"
#include "train/pretrain.h"

namespace lc::apps {
namespace {

struct Flags {
    RunFlags run;
    std::string model_config, tokenizer, save_dtype = "bf16";
    train::PretrainOptions options;
    Flags() {
        run.schedule = "cosine";
        run.clip_scope = "global";
        run.loop.schedule = {.base = 1e-3, .min = 1e-4, .warmup = 100};
        run.loop.optimizer.beta2 = 0.95;
        run.loop.optimizer.weight_decay = 0.1;
        run.loop.batch_size = 8;
        run.loop.accumulate = 1;
        options.budget.epochs = 1;
    }
};

int run(CLI::App& program, const Settings& settings, Flags& flags) {
    if (flags.run.begin(flags.tokenizer)) return 0;
    train::PretrainOptions& options = flags.options;
    options.model_config = flags.model_config;
    options.tokenizer = flags.tokenizer;
    options.out = flags.run.out;
    options.data = flags.run.data_options();
    options.seed = flags.run.seed;
    options.loop = flags.run.loop_options();
    options.eval_batch = flags.run.eval_batch;
    options.placement = flags.run.placement();
    options.save_dtype = flags.save_dtype == "f32" ? DType::f32 : DType::bf16;
    options.keep = flags.run.keep;
    options.resume = flags.run.resume_options();
    options.config_text = resolved_config(program, settings);
    if (flags.run.dry_run) {
        fmt::print("{}", train::dry_run(options));
        return 0;
    }
    train::install_signal_handlers();
    return exit_code_of(train::pretrain(options, train::stop_requested));
}

}  // namespace

Verb add_pretrain(CLI::App& program) {
    CLI::App* verb = program.add_subcommand("pretrain", "train a Llama from random weights");
    const auto flags = std::make_shared<Flags>();
    verb->add_option("--model-config", flags->model_config, "config.json of the model to make")->required();
    verb->add_option("--tokenizer", flags->tokenizer, "tokenizer.json (see train-tokenizer)")->required();
    flags->run.add_data(*verb);
    flags->run.add_loop(*verb);
    verb->add_option("--steps", flags->options.budget.steps, "optimizer steps; 0: by epochs")
        ->check(CLI::NonNegativeNumber);
    verb->add_option("--epochs", flags->options.budget.epochs, "passes over the data")->check(CLI::PositiveNumber);
    verb->add_option("--lr", flags->run.loop.schedule.base, "learning rate after the warm-up");
    verb->add_option("--beta1", flags->run.loop.optimizer.beta1, "AdamW")->check(CLI::Range(0.0, 1.0));
    verb->add_option("--beta2", flags->run.loop.optimizer.beta2, "AdamW")->check(CLI::Range(0.0, 1.0));
    verb->add_flag("--token-weighted", flags->options.token_weighted, "mean over tokens instead of over chunks");
    verb->add_flag("--checkpoint-layers", flags->options.checkpoint_layers,
                   "recompute layers in the backward, less memory");
    verb->add_option("--save-dtype", flags->save_dtype, "of the weights written")
        ->check(CLI::IsMember({"bf16", "f32"}));
    return {verb, [&program, flags](const Settings& settings) { return run(program, settings, *flags); }};
}

}  // namespace lc::apps
