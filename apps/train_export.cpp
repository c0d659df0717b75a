#include <memory>

#include "apps/train_verbs.h"
#include "core/log.h"
#include "core/parallel.h"
#include "models/export.h"

namespace lc::apps {
namespace {

struct Flags {
    std::string model, run, out, dtype = "keep";
    uint64_t shard_bytes = 5'000'000'000;
    int64_t threads = 0;
    bool merged = false, no_follow_symlinks = false;
};

std::optional<DType> dtype_from(const std::string& name) {
    if (name == "f32") return DType::f32;
    if (name == "bf16") return DType::bf16;
    if (name == "f16") return DType::f16;
    return std::nullopt;
}

int run(const Flags& flags) {
    if (flags.threads > 0) set_num_threads(static_cast<int>(flags.threads));
    LC_REQUIRE(Usage, flags.merged, "give --merged: a run directory holds the adapter in PEFT's layout already");
    const models::ExportReport report =
        models::export_merged(flags.model, flags.run, flags.out,
                              {.dtype = dtype_from(flags.dtype),
                               .shard_bytes = static_cast<int64_t>(std::min(flags.shard_bytes, uint64_t{1} << 60)),
                               .follow_symlinks = !flags.no_follow_symlinks});
    log_info("{}: {:.3f} GB of weights in {} file{}, {} projections merged, {}", flags.out,
             static_cast<double>(report.weight_bytes) * 1e-9, report.weight_files, report.weight_files == 1 ? "" : "s",
             report.merged, report.feature_maps ? "feature maps beside them" : "no feature maps: softmax attention");
    return 0;
}

}  // namespace

Verb add_export(CLI::App& program) {
    CLI::App* verb = program.add_subcommand("export", "base model and run as one Hugging Face directory, LoRA merged");
    const auto flags = std::make_shared<Flags>();
    verb->add_option("--model", flags->model, "the base model's directory")->required();
    verb->add_option("--run", flags->run, "run directory of linearize")->required();
    verb->add_option("--out", flags->out, "directory to write; must not exist")->required();
    verb->add_flag("--merged", flags->merged, "merge LoRA into the weights (the only form that is written)");
    verb->add_option("--weights-dtype", flags->dtype, "of the weights written: keep, f32, bf16 or f16")
        ->check(CLI::IsMember({"keep", "f32", "bf16", "f16"}));
    verb->add_option("--max-shard-size", flags->shard_bytes, "largest weight file: bytes, or 5GB, 500MB, 2GiB, ...")
        ->transform(CLI::AsSizeValue(true))
        ->check(CLI::PositiveNumber);
    verb->add_option("--threads", flags->threads, "CPU threads; 0: all")->check(CLI::Range(0, 256));
    verb->add_flag("--no-follow-symlinks", flags->no_follow_symlinks, "refuse symbolic links among the model's files");
    return {verb, [flags](const Settings&) { return run(*flags); }};
}

}  // namespace lc::apps
