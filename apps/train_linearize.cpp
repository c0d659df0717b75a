#include <memory>

#include "apps/train_verbs.h"
#include "models/attention/attention_spec.h"
#include "train/dry_run.h"
#include "train/interrupt.h"
#include "train/linearize.h"

namespace lc::apps {
namespace {

struct Flags {
    RunFlags run;
    ModelFlags model;
    std::string stages = "transfer,finetune";
    std::string attention = "hybrid", window_kind = "terraced", feature_map = "hedgehog", feature_map_heads = "query";
    std::string feature_init = "identity", selection = "global", plateau = "global";
    train::LinearizeOptions options;
    double transfer_lr = 1e-2, finetune_lr = 1e-4;
};

void add_attention(CLI::App& verb, Flags& flags) {
    models::AttentionSpec& spec = flags.options.attention;
    verb.add_option("--attention", flags.attention,
                    "hybrid (window and linear), linear, or softmax: LoRA alone, as a control");
    verb.add_option("--window-kind", flags.window_kind, "terraced or sliding");
    verb.add_option("--window-size", spec.window_size, "keys of a window block")->check(CLI::PositiveNumber);
    verb.add_option("--feature-map", flags.feature_map, "hedgehog, t2r, or an activation by name");
    verb.add_option("--feature-dim", spec.feature_dim, "F; 0: head_dim up to 64, else half of it")
        ->check(CLI::NonNegativeNumber);
    verb.add_option("--feature-map-heads", flags.feature_map_heads, "k-maps per query head or per kv head");
    verb.add_option("--feature-init", flags.feature_init, "identity, kaiming or normal");
    verb.add_option("--softmax-layers", spec.softmax_layers, "layers left as they are, e.g. 0,1,2")->delimiter(',');
}

void add_stages(CLI::App& verb, Flags& flags) {
    train::LinearizeOptions& options = flags.options;
    verb.add_option("--stages", flags.stages, "transfer,finetune or one of them; finetune alone trains the maps too");
    verb.add_option("--transfer-steps", options.transfer_budget.steps, "optimizer steps of stage 1; 0: by epochs")
        ->check(CLI::NonNegativeNumber);
    verb.add_option("--transfer-epochs", options.transfer_budget.epochs, "epochs of stage 1")
        ->check(CLI::PositiveNumber);
    verb.add_option("--transfer-lr", flags.transfer_lr, "learning rate of stage 1");
    verb.add_flag(
        "--transfer-fp8", options.transfer_fp8,
        "stage 1: frozen layers multiply in fp8 (e4m3, weights and inputs); faster on compute capability 9.0");
    verb.add_option("--finetune-steps", options.finetune_budget.steps, "optimizer steps of stage 2; 0: by epochs")
        ->check(CLI::NonNegativeNumber);
    verb.add_option("--finetune-epochs", options.finetune_budget.epochs, "epochs of stage 2")
        ->check(CLI::PositiveNumber);
    verb.add_option("--finetune-lr", flags.finetune_lr, "learning rate of stage 2");
    verb.add_option("--lora-rank", options.lora.rank, "rank of the adapters")->check(CLI::PositiveNumber);
    verb.add_option("--lora-alpha", options.lora.alpha, "the adapters' scale is alpha / rank");
    verb.add_flag("--train-feature-maps", options.train_feature_maps, "stage 2 goes on training the maps");
    verb.add_flag("--token-weighted", options.token_weighted, "stage 2: mean over tokens instead of over chunks");
    verb.add_flag("--checkpoint-layers", options.checkpoint_layers,
                  "stage 2: recompute layers in the backward, less memory");
    verb.add_option("--selection-scope", flags.selection, "stage 1: the best step for all (global) or for each layer");
    verb.add_option("--plateau-scope", flags.plateau, "stage 1: one learning rate (global) or one a layer");
}

void resolve_stages(Flags& flags) {
    train::LinearizeOptions& options = flags.options;
    options.transfer = options.finetune = false;
    for (const std::string& stage : CLI::detail::split(flags.stages, ',')) {
        LC_REQUIRE(Usage, stage == "transfer" || stage == "finetune",
                   "--stages: unknown stage '{}'; known: transfer, finetune", stage);
        (stage == "transfer" ? options.transfer : options.finetune) = true;
    }
    options.transfer_loop = options.finetune_loop = flags.run.loop_options();
    options.transfer_loop.schedule.base = flags.transfer_lr;
    options.finetune_loop.schedule.base = flags.finetune_lr;
    options.transfer_loop.selection = train::scope_from(flags.selection);
    options.transfer_loop.plateau = train::scope_from(flags.plateau);
}

int run(CLI::App& program, const Settings& settings, Flags& flags) {
    if (flags.run.begin(flags.model.model)) return 0;
    train::LinearizeOptions& options = flags.options;
    options.model = flags.model.source();
    options.placement = flags.run.placement();
    options.out = flags.run.out;
    options.data = flags.run.data_options();
    options.attention.kind = models::attention_kind_from(flags.attention);
    options.attention.window = models::window_kind_from(flags.window_kind);
    options.attention.heads = models::feature_heads_from(flags.feature_map_heads);
    options.attention.init = models::feature_init_from(flags.feature_init);
    options.feature_map = flags.feature_map;
    options.seed = flags.run.seed;
    options.eval_batch = flags.run.eval_batch;
    options.keep = flags.run.keep;
    options.resume = flags.run.resume_options();
    options.config_text = resolved_config(program, settings);
    resolve_stages(flags);
    if (flags.run.dry_run) {
        fmt::print("{}", train::dry_run(options));
        return 0;
    }
    train::install_signal_handlers();
    return exit_code_of(train::linearize(options, train::stop_requested));
}

}  // namespace

Verb add_linearize(CLI::App& program) {
    CLI::App* verb = program.add_subcommand("linearize", "turn a softmax model into a linear-attention one (LoLCATs)");
    const auto flags = std::make_shared<Flags>();
    flags->model.add(*verb);
    flags->run.add_data(*verb);
    flags->run.add_loop(*verb);
    add_attention(*verb, *flags);
    add_stages(*verb, *flags);
    return {verb, [&program, flags](const Settings& settings) { return run(program, settings, *flags); }};
}

}  // namespace lc::apps
