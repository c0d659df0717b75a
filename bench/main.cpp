// Times the library on this machine and compares it with what the machine can do: see bench/README.md.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <string>
#include <vector>

#include "bench/environment.h"
#include "bench/ops.h"
#include "core/check.h"
#include "core/log.h"
#include "core/parallel.h"

namespace {

using lc::bench::OpsOptions;

void add_ops(CLI::App& app, OpsOptions& options) {
    CLI::App& verb = *app.add_subcommand("ops", "times the ops (the verb where none is named)");
    verb.add_option("--op", options.ops, "only these ops")->delimiter(',');
    verb.add_option("--variant", options.variant, "only this case of them");
    verb.add_option("--device", options.device, "cpu, cuda or cuda:N")->capture_default_str();
    verb.add_option("--dtype", options.dtype, "of activations: f32, or bf16 on a GPU")->capture_default_str();
    verb.add_option("--out", options.out, "append one JSON line a result to this file");
    verb.add_option("--min-seconds", options.min_seconds, "measure each phase at least this long")
        ->check(CLI::Range(0.0, 3600.0))
        ->capture_default_str();
    verb.add_option_function<int>("--threads", lc::set_num_threads, "threads of the pool; default: all cores")
        ->check(CLI::Range(1, 256));
    verb.add_flag("--list", options.list, "name the device's cases and stop");
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
    OpsOptions ops;
    add_ops(app, ops);
    ops.command = lc::bench::portable_command(argc, argv);
    try {
        std::vector<std::string> words = words_of(argc, argv);
        std::reverse(words.begin(), words.end());  // the order in which CLI11 takes a vector
        app.parse(words);
        return lc::bench::run_ops(ops) == 0 ? 0 : static_cast<int>(lc::ErrorKind::Internal);
    } catch (const CLI::ParseError& error) {
        return app.exit(error) == 0 ? 0 : static_cast<int>(lc::ErrorKind::Usage);
    } catch (const lc::Error& error) {
        lc::log_line(lc::LogLevel::Error, error.what());
        return static_cast<int>(error.kind());
    }
}
