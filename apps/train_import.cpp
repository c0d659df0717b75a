#include <memory>

#include "apps/train_verbs.h"
#include "core/log.h"
#include "models/import.h"

namespace lc::apps {
namespace {

struct Flags {
    std::string model, out, window_kind = "terraced", feature_map;
    std::vector<std::string> checkpoints;
    int64_t window_size = 64;
    std::optional<double> lora_alpha;
};

int run(const Flags& flags) {
    const std::vector<std::filesystem::path> files(flags.checkpoints.begin(), flags.checkpoints.end());
    const bool reference = flags.window_kind == "reference";
    const models::ImportReport report =
        models::import_checkpoints(flags.model, files, flags.out,
                                   {.window = models::window_kind_from(reference ? "sliding" : flags.window_kind),
                                    .window_size = flags.window_size,
                                    .reference = reference,
                                    .feature_map = flags.feature_map,
                                    .lora_alpha = flags.lora_alpha});
    log_info("{}: {} attention, {} window of {}, {} maps of {} features, {} layers; {}", flags.out,
             models::name_of(report.attention.kind), flags.window_kind, report.attention.window_size,
             kernels::name_of(report.attention.activation), report.attention.feature_dim, report.layers,
             report.lora_rank > 0 ? fmt::format("LoRA of rank {}", report.lora_rank) : "no LoRA");
    return 0;
}

}  // namespace

Verb add_import(CLI::App& program) {
    CLI::App* verb = program.add_subcommand("import", "the LoLCATs authors' checkpoints (model.pt) as a run directory");
    const auto flags = std::make_shared<Flags>();
    verb->add_option("--model", flags->model, "the base model's directory")->required();
    verb->add_option("--checkpoint", flags->checkpoints,
                     "a model.pt; give it twice where transfer and LoRA are two files")
        ->required()
        ->allow_extra_args(false);
    verb->add_option("--out", flags->out, "run directory to write; must not exist")->required();
    verb->add_option("--window-kind", flags->window_kind,
                     "terraced (as trained), sliding (as the authors decode), or reference: their logits exactly, "
                     "blocks counted from the "
                     "end of a prompt, then sliding")
        ->check(CLI::IsMember({"terraced", "sliding", "reference"}));
    verb->add_option("--window-size", flags->window_size, "keys of a window block")->check(CLI::PositiveNumber);
    verb->add_option("--feature-map", flags->feature_map,
                     "an activation by name; default: t2r with biases, else hedgehog");
    verb->add_option("--lora-alpha", flags->lora_alpha, "the adapters' scale is alpha / rank; default: twice the rank");
    return {verb, [flags](const Settings&) { return run(*flags); }};
}

}  // namespace lc::apps
