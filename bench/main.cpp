// Times the library on this machine and compares it with what the machine can do: see bench/README.md.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "bench/end_to_end.h"
#include "bench/environment.h"
#include "bench/ladder.h"
#include "bench/ops.h"
#include "bench/plot.h"
#include "bench/report.h"
#include "bench/targets.h"
#include "core/check.h"
#include "core/log.h"
#include "core/parallel.h"
#include "io/file.h"

namespace {

constexpr int kFailed = static_cast<int>(lc::ErrorKind::Internal), kMost = 1 << 20;

struct Options {
    lc::bench::OpsOptions ops;
    lc::bench::EndToEndOptions e2e;
    lc::bench::LadderOptions ladder;
    std::vector<std::filesystem::path> files;
    std::string command, svg, targets, plot;
    int status = 0;
};

void add_common(CLI::App& verb, std::string& device, std::string& dtype, std::string& out) {
    verb.add_option("--device", device, "cpu, cuda, cuda:N or auto")->capture_default_str();
    verb.add_option("--dtype", dtype, "of activations: f32, bf16 (on a GPU) or auto")->capture_default_str();
    verb.add_option("--out", out, "append one JSON line a result to this file");
    verb.add_option_function<int>("--threads", lc::set_num_threads, "threads of the pool; default: all cores")
        ->check(CLI::Range(1, 256));
}

void add_ops(CLI::App& app, Options& options) {
    CLI::App& verb = *app.add_subcommand("ops", "times the ops (the verb where none is named)");
    lc::bench::OpsOptions& o = options.ops;
    add_common(verb, o.device, o.dtype, o.out);
    verb.add_option("--op", o.ops, "only these ops")->delimiter(',');
    verb.add_option("--variant", o.variant, "only this case of them");
    verb.add_option("--min-seconds", o.min_seconds, "measure each phase at least this long")
        ->check(CLI::Range(0.0, 3600.0))
        ->capture_default_str();
    verb.add_flag("--list", o.list, "name the device's cases and stop");
    verb.callback([&options] {
        options.ops.command = options.command;
        options.status = lc::bench::run_ops(options.ops) == 0 ? 0 : kFailed;
    });
}

void add_end_to_end(CLI::App& app, Options& options) {
    CLI::App& verb = *app.add_subcommand("e2e", "times whole steps of a model with random weights");
    lc::bench::EndToEndOptions& o = options.e2e;
    const auto count = [&](const char* name, int64_t& value, const char* text, int least = 1) {
        verb.add_option(name, value, text)->check(CLI::Range(least, kMost))->capture_default_str();
    };
    verb.add_option("--model-config", o.model_config, "config.json of the model, or its directory")->required();
    verb.add_option("--stage", o.stage, "transfer, finetune or decode")->required();
    verb.add_option("--attention", o.attention, "hybrid, linear, or softmax: not converted")->capture_default_str();
    add_common(verb, o.device, o.dtype, o.out);
    count("--batch", o.batch, "sequences of a micro-batch, or of a decode step");
    count("--seq-len", o.seq_len, "tokens of a sequence in training", 2);
    count("--accumulate", o.accumulate, "micro-batches of a training step");
    count("--steps", o.steps, "training steps to time");
    count("--warmup", o.warmup, "steps, or new tokens, before those", 0);
    count("--prompt", o.prompt, "tokens before decoding");
    count("--new-tokens", o.new_tokens, "tokens to decode");
    count("--prefill-chunk", o.prefill_chunk, "tokens of the prompt in one go");
    count("--context", o.context, "decode after so many tokens that nobody read, instead of a prompt", 0);
    verb.add_option("--sample", o.sample,
                    "none: the new ids are given; greedy, drawn, top-p: they are drawn on the device")
        ->capture_default_str();
    verb.add_option("--weights-dtype", o.weights_dtype,
                    "decode: the layers' matrices in auto (as --dtype), int8 or fp8")
        ->capture_default_str();
    verb.add_option("--state-dtype", o.state_dtype, "recurrent states between steps: f32, bf16")->capture_default_str();
    count("--lora-rank", o.lora_rank, "of finetune");
    verb.add_flag("--fp8", o.fp8, "transfer: frozen layers multiply in fp8 (train_lolcats linearize --transfer-fp8)");
    verb.add_flag("--checkpoint-layers", o.checkpoint_layers,
                  "finetune keeps only each layer's input for the backward");
    verb.callback([&options] {
        options.e2e.command = options.command;
        lc::bench::run_end_to_end(options.e2e);
    });
}

void add_ladder(CLI::App& app, Options& options) {
    CLI::App& verb =
        *app.add_subcommand("ladder", "attention forward from the formula to the library's kernels, on a GPU");
    lc::bench::LadderOptions& o = options.ladder;
    add_common(verb, o.device, o.dtype, o.out);
    verb.add_option("--min-seconds", o.min_seconds, "measure each step at least this long")
        ->check(CLI::Range(0.0, 3600.0))
        ->capture_default_str();
    verb.callback([&options] {
        options.ladder.command = options.command;
        options.status = lc::bench::run_ladder(options.ladder) == 0 ? 0 : kFailed;
    });
}

void add_report(CLI::App& app, Options& options) {
    CLI::App& verb = *app.add_subcommand("report", "writes the tables of docs/performance.md to stdout");
    verb.add_option("files", options.files, "lines of results")->required();
    verb.add_option("--plot", options.plot, "a picture (of bench plot) to show behind them, as the report links to it");
    verb.add_option("--targets", options.targets,
                    "a file of targets (bench/targets.h): how far the results are from them");
    verb.callback([&options] {
        const std::vector<lc::io::Json> lines = lc::bench::read_lines(options.files);
        std::string targets;
        if (!options.targets.empty())
            targets = lc::bench::targets_table(lc::io::read_json_file(options.targets), options.targets, lines);
        if (!options.plot.empty()) targets += fmt::format("\n![Decoding: throughput and memory]({})\n", options.plot);
        const std::string text = lc::bench::performance_report(lines, options.command, targets);
        std::fwrite(text.data(), 1, text.size(), stdout);
    });
}

void add_plot(CLI::App& app, Options& options) {
    CLI::App& verb = *app.add_subcommand("plot", "draws decoding, throughput and memory, from lines of e2e results");
    verb.add_option("files", options.files, "lines of results")->required();
    verb.add_option("--svg", options.svg, "the picture to write")->required();
    verb.callback([&options] {
        lc::io::write_file_atomic(options.svg, lc::bench::decode_plot(lc::bench::read_lines(options.files)));
    });
}

// `bench --op add` means `bench ops --op add`.
std::vector<std::string> words_of(int argc, char** argv) {
    std::vector<std::string> words(argv + 1, argv + argc);
    const bool help = !words.empty() && (words[0] == "-h" || words[0] == "--help");
    if (!help && (words.empty() || words[0].starts_with('-'))) words.insert(words.begin(), "ops");
    return words;
}

}  // namespace

int main(int argc, char** argv) {
    CLI::App app("Times the library on this machine and compares it with what the machine can do.", "bench");
    app.require_subcommand(1);
    Options options;
    options.command = lc::bench::portable_command(argc, argv);
    add_ops(app, options);
    add_end_to_end(app, options);
    add_ladder(app, options);
    add_report(app, options);
    add_plot(app, options);
    try {
        std::vector<std::string> words = words_of(argc, argv);
        std::reverse(words.begin(), words.end());  // the order in which CLI11 takes a vector
        app.parse(words);
        return options.status;
    } catch (const CLI::ParseError& error) {
        return app.exit(error) == 0 ? 0 : static_cast<int>(lc::ErrorKind::Usage);
    } catch (const lc::Error& error) {
        lc::log_line(lc::LogLevel::Error, error.what());
        return static_cast<int>(error.kind());
    }
}
