#include <unistd.h>

#include <cstdio>

#include "apps/train_verbs.h"
#include "core/log.h"
#include "core/parallel.h"
#include "io/tokenizer/load_tokenizer.h"
#include "train/data.h"
#include "train/interrupt.h"

namespace lc::apps {

void RunFlags::add_data(CLI::App& verb) {
    verb.add_option("--data", data,
                    "training data: Alpaca JSON or JSONL, {prompt,completion} or {text} JSONL, plain text");
    verb.add_option("--data-format", data_format, "auto, alpaca, completions, jsonl or text");
    verb.add_option("--bad-lines", bad_lines, "stop, or skip:N to tolerate N bad records");
    verb.add_option("--data-limit", data_limit, "use only the first N records; 0: all")->check(CLI::NonNegativeNumber);
    verb.add_option("--seq-len", seq_len, "tokens of a chunk")->check(CLI::Range(2, 1 << 20));
    verb.add_option("--validation-chunks", validation_chunks, "at most N validation chunks; 0: all")
        ->check(CLI::NonNegativeNumber);
    verb.add_option("--preview-data", preview, "print N tokenized samples, masked tokens marked, and exit")
        ->check(CLI::NonNegativeNumber)
        ->configurable(false);
}

void RunFlags::add_loop(CLI::App& verb) {
    verb.add_option("--out", out, "run directory");
    verb.add_option("--seed", seed, "of initialization and data order");
    verb.add_option("--batch-size", loop.batch_size, "chunks of a forward pass")->check(CLI::Range(1, 1 << 16));
    verb.add_option("--accumulate", loop.accumulate, "forward passes of an optimizer step")
        ->check(CLI::Range(1, 1 << 16));
    verb.add_option("--schedule", schedule, "plateau, cosine or constant");
    verb.add_option("--warmup", loop.schedule.warmup, "steps until the full learning rate")
        ->check(CLI::NonNegativeNumber);
    verb.add_option("--min-lr", loop.schedule.min, "smallest learning rate of plateau and cosine")
        ->check(CLI::NonNegativeNumber);
    verb.add_option("--weight-decay", loop.optimizer.weight_decay, "on matrices")->check(CLI::NonNegativeNumber);
    verb.add_option("--clip-scope", clip_scope, "what is clipped to --clip-norm together: off, layer, block or global");
    verb.add_option("--clip-norm", loop.optimizer.max_norm, "largest gradient norm");
    verb.add_option("--clip-block", loop.optimizer.block_layers, "layers of a block, for --clip-scope block")
        ->check(CLI::PositiveNumber);
    verb.add_option("--eval-every", loop.eval_every, "steps between evaluations; 0: first and last only")
        ->check(CLI::NonNegativeNumber);
    verb.add_option("--eval-batch", eval_batch, "chunks of a forward pass in evaluations")->check(CLI::PositiveNumber);
    verb.add_option("--early-stop", loop.early_stop, "end a stage after N evaluations without gain; 0: off")
        ->check(CLI::NonNegativeNumber);
    verb.add_option("--max-skips", loop.max_skips, "non-finite steps in a row that are tolerated")
        ->check(CLI::NonNegativeNumber);
    verb.add_option("--save-every", loop.save_every, "steps between checkpoints; 0: by time only")
        ->check(CLI::NonNegativeNumber);
    verb.add_option("--save-minutes", loop.save_minutes, "minutes between checkpoints; 0: by steps only")
        ->check(CLI::NonNegativeNumber);
    verb.add_option("--keep", keep, "checkpoints kept, beside the best")->check(CLI::Range(2, 1000000));
    verb.add_option("--log-every", loop.log_every, "steps between lines; 0: none")->check(CLI::NonNegativeNumber);
    verb.add_option("--threads", threads, "CPU threads; 0: all")->check(CLI::Range(0, 256));
    verb.add_flag("--profile", loop.profile, "print where the time of the steps went (on a GPU it waits for every op)");
    verb.add_option("--profile-steps", profile_steps,
                    "a:b, steps of this process that a profiler shall record (nsys profile -c cudaProfilerApi)");
    place.add(verb);
    verb.add_flag("--dry-run", dry_run, "print the memory each stage needs, by owner, from config.json alone, and exit")
        ->configurable(false);
    verb.add_option("--resume", resume, "auto: continue from the newest checkpoint of --out, if there is one")
        ->check(CLI::IsMember({"auto"}));
    verb.add_option("--resume-from", resume_from, "continue from this checkpoint directory");
    verb.add_option("--allow-config-change", allow_change, "keys that may differ from the checkpoint's")
        ->delimiter(',');
}

train::DataOptions RunFlags::data_options() const {
    return {.file = data,
            .format = io::data_format_from(data_format),
            .seq_len = seq_len,
            .limit = data_limit,
            .validation_chunks = validation_chunks,
            .bad_lines = io::bad_lines_from(bad_lines)};
}

train::ResumeOptions RunFlags::resume_options() const {
    LC_REQUIRE(Usage, resume.empty() || resume_from.empty(), "--resume and --resume-from exclude each other");
    return {.automatic = !resume.empty(), .from = resume_from, .allow_change = allow_change};
}

train::LoopOptions RunFlags::loop_options() const {
    train::LoopOptions options = loop;
    options.schedule.kind = train::schedule_kind_from(schedule);
    options.optimizer.clip = train::clip_scope_from(clip_scope);
    if (!profile_steps.empty()) {
        char rest = 0;
        const int read =
            std::sscanf(profile_steps.c_str(), "%ld:%ld%c", &options.profile_first, &options.profile_last, &rest);
        LC_REQUIRE(Usage, read == 2 && options.profile_first >= 1 && options.profile_first <= options.profile_last,
                   "--profile-steps must be a:b with 1 <= a <= b, got '{}'", profile_steps);
        LC_REQUIRE(Usage, place.placement().device.is_cuda(),
                   "--profile-steps is for a GPU — use --profile on the CPU");
    }
    return options;
}

bool RunFlags::begin(const std::string& tokenizer_source) const {
    if (threads > 0) set_num_threads(static_cast<int>(threads));
    LC_REQUIRE(Usage, dry_run || !data.empty(), "--data is required — see --help");
    LC_REQUIRE(Usage, dry_run || preview > 0 || !out.empty(), "--out is required — see --help");
    if (preview == 0) return false;
    const io::Tokenizer tokenizer = io::load_tokenizer(tokenizer_source);
    const train::DataOptions options = data_options();
    io::Dataset dataset =
        io::read_dataset(options.file, {.format = options.format, .skip_bad_lines = options.bad_lines});
    dataset.samples.resize(std::min(dataset.samples.size(), static_cast<size_t>(preview)));
    const auto samples = train::tokenize(dataset, tokenizer, tokenizer.vocab_size());
    const std::string text = train::preview(samples, preview, tokenizer, ::isatty(STDOUT_FILENO) != 0);
    std::fwrite(text.data(), 1, text.size(), stdout);
    return true;
}

int exit_code_of(bool finished) {
    if (finished) return 0;
    log_info("stopped by a signal; continue with --resume auto");
    return train::kExitPreempted;
}

}  // namespace lc::apps
