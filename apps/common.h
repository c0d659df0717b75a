// What every program shares: how options are resolved, how errors become exit codes, how the configuration is written
// down.
//
//   int main(int argc, char** argv) {
//       return lc::apps::run_app([&] {
//           CLI::App app("...");
//           lc::apps::prepare(app);
//           app.add_option("--seed", seed, "...");
//           const auto settings = lc::apps::parse_command_line(app, argc, argv);
//           if (!settings) return 0;   // --help or --print-config was answered
//           ...
//           return 0;
//       });
//   }
#pragma once
#include <CLI/CLI.hpp>
#include <functional>
#include <map>
#include <optional>
#include <string>

#include "core/check.h"

namespace lc::apps {

// Runs a program's body. Every exception becomes one line "error: ..." on stderr and its exit code: lc::Error its kind,
// out of memory 4, anything else 1.
int run_app(const std::function<int()>& body);

// Call before options are added. Adds --config FILE and --print-config, the table of exit codes under the help text,
// and the rule that defaults are shown. `examples` goes between the options and the exit codes.
void prepare(CLI::App& app, const std::string& examples = {});

// Where values came from.
struct Settings {
    std::string verb;  // the subcommand; empty when the program has none
    std::map<std::string, std::string>
        origin;  // option name -> "command line", "LOLCATS_SEED" or "run.toml:3"; absent: default
};

using Environment = std::function<const char*(const std::string& name)>;

// Resolves every option of the program and of the chosen subcommand:
//   command line > environment > --config file > default
// Option --max-new-tokens is LOLCATS_MAX_NEW_TOKENS in the environment (empty counts as not set) and `max-new-tokens`
// in the file. Options made configurable(false) can only stand on the command line. In the file a key must be an option
// of the program or of any subcommand; those of other subcommands are skipped. An option that takes several values is
// an array in the file and one value in the environment, or there too an array when it begins with '['. Returns nothing
// when --help or --print-config was asked for (they print to stdout). Throws Error(Usage) for everything wrong, naming
// the option and where its value came from.
std::optional<Settings> parse_command_line(CLI::App& app, int argc, const char* const* argv,
                                           const Environment& environment);
std::optional<Settings> parse_command_line(CLI::App& app, int argc, const char* const* argv);

// All configurable options of the program and the chosen subcommand as a file for --config, one a line in the order of
// --help. Options without a value are left out.
std::string resolved_config(const CLI::App& app, const Settings& settings, bool with_origin = false);

// The candidate nearest to `name` if it is near enough to be what was meant (edit distance at most a third), else "".
std::string nearest_name(const std::string& name, const std::vector<std::string>& candidates);

}  // namespace lc::apps
