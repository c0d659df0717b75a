#include "apps/common.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <new>
#include <set>

#include "apps/config_file.h"
#include "io/file.h"

namespace lc::apps {
namespace {

constexpr const char* kExitCodes =
    "Exit codes:\n"
    "  0  success\n"
    "  1  internal bug\n"
    "  2  wrong use: command line or configuration\n"
    "  3  bad input file: model, tokenizer, adapter, data\n"
    "  4  resources: memory, disk, no such device\n"
    "  5  numerics: non-finite or diverged\n"
    "  6  distributed: peer lost, timeout, mismatch\n"
    "  7  checkpoint missing, corrupt or incompatible\n"
    "  75 preempted, checkpoint saved, start me again";

constexpr int64_t kMaxConfigBytes = int64_t{1} << 20;

const char* environment_of_process(const std::string& name) {
    return std::getenv(name.c_str());
}

const std::string& name_of(const CLI::Option* option) {
    return option->get_lnames().front();
}
bool is_flag(const CLI::Option* option) {
    return option->get_items_expected_max() == 0;
}
bool takes_many(const CLI::Option* option) {
    return option->get_expected_max() > 1;
}

// The options of the program and of one subcommand, those with a long name.
std::vector<CLI::Option*> options_of(CLI::App& app, CLI::App* verb) {
    std::vector<CLI::Option*> options;
    for (CLI::App* part : {verb, &app}) {
        if (part == nullptr) continue;
        for (CLI::Option* option : part->get_options([](CLI::Option* o) { return !o->get_lnames().empty(); }))
            if (std::none_of(options.begin(), options.end(), [&](auto* o) { return name_of(o) == name_of(option); }))
                options.push_back(option);
    }
    return options;
}

std::vector<CLI::App*> verbs_of(CLI::App& app) {
    return app.get_subcommands([](CLI::App*) { return true; });
}

CLI::Option* find_option(const std::vector<CLI::Option*>& options, const std::string& name) {
    for (CLI::Option* option : options)
        if (option->check_lname(name)) return option;
    return nullptr;
}

std::vector<std::string> long_names(const std::vector<CLI::Option*>& options, const std::string& prefix) {
    std::vector<std::string> names;
    for (const CLI::Option* option : options)
        for (const std::string& name : option->get_lnames()) names.push_back(prefix + name);
    return names;
}

std::string hint(const std::string& name, const std::vector<std::string>& candidates, std::string_view otherwise) {
    const std::string near = nearest_name(name, candidates);
    return near.empty() ? std::string(otherwise) : fmt::format("did you mean '{}'?", near);
}

// What the command line itself says: the subcommand, and which options it sets.
struct Scan {
    CLI::App* verb = nullptr;
    std::set<const CLI::Option*> given;
    std::string config;  // of --config
    bool help = false;
};

CLI::App* verb_named(CLI::App& app, const std::string& word) {
    std::vector<std::string> names;
    for (CLI::App* verb : verbs_of(app)) {
        if (verb->check_name(word)) return verb;
        names.push_back(verb->get_name());
    }
    fail(ErrorKind::Usage, "unknown command '{}' — {}", word,
         hint(word, names, "one of " + CLI::detail::join(names, ", ")));
}

Scan scan_command_line(CLI::App& app, const std::vector<std::string>& words) {
    Scan scan;
    for (size_t i = 0; i < words.size(); ++i) {
        const std::string& word = words[i];
        if (word == "--") break;
        if (word == "-h" || word == "--help") scan.help = true;
        if (word.size() > 2 && word.starts_with("--")) {
            const size_t equals = word.find('=');
            const std::string name = word.substr(2, equals == std::string::npos ? equals : equals - 2);
            const auto options = options_of(app, scan.verb);
            CLI::Option* option = find_option(options, name);
            if (option == nullptr)
                fail(ErrorKind::Usage, "unknown option '--{}' — {}", name,
                     hint("--" + name, long_names(options, "--"), "see --help"));
            scan.given.insert(option);
            if (is_flag(option)) continue;
            if (equals == std::string::npos) ++i;
            if (name == "config")
                scan.config = equals != std::string::npos ? word.substr(equals + 1) : i < words.size() ? words[i] : "";
        } else if (word.size() > 1 && word[0] == '-') {
            for (CLI::Option* option : options_of(app, scan.verb))
                if (option->check_sname(word.substr(1, 1))) {
                    scan.given.insert(option);
                    if (!is_flag(option) && word.size() == 2) ++i;
                }
        } else if (scan.verb == nullptr && !verbs_of(app).empty()) {
            scan.verb = verb_named(app, word);
        }
    }
    return scan;
}

std::string environment_name(const std::string& option) {
    std::string name = "LOLCATS_";
    for (const char c : option) name += c == '-' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
    return name;
}

// The words that set `option` to `entry`, as they would stand on the command line.
void append_words(std::vector<std::string>& words, const CLI::Option* option, const ConfigEntry& entry,
                  const std::string& where) {
    const std::string& name = name_of(option);
    if (entry.is_array && !takes_many(option))
        fail(ErrorKind::Usage, "option '{}' takes one value, got an array ({})", name, where);
    for (const ConfigValue& value : entry.values) {
        if (is_flag(option)) {
            if (value.type != ConfigType::boolean)
                fail(ErrorKind::Usage, "option '{}' must be true or false, got '{}' ({})", name, value.text, where);
            words.push_back("--" + name + "=" + value.text);
        } else {
            words.insert(words.end(), {"--" + name, value.text});
        }
    }
}

ConfigEntry entry_from_environment(const CLI::Option* option, const std::string& variable, const std::string& text) {
    if (takes_many(option) && text.starts_with('[')) return parse_config("value = " + text, variable).front();
    ConfigEntry entry{.key = name_of(option), .values = {{ConfigType::string, text}}, .is_array = false, .line = 0};
    if (is_flag(option) && (text == "true" || text == "1")) entry.values[0] = {ConfigType::boolean, "true"};
    if (is_flag(option) && (text == "false" || text == "0")) entry.values[0] = {ConfigType::boolean, "false"};
    return entry;
}

std::vector<ConfigEntry> read_config(const std::string& path) {
    std::string text;
    try {
        text = io::read_file(path, kMaxConfigBytes);
    } catch (const Error& error) {
        fail(ErrorKind::Usage, "{} (--config)", error.what());
    }
    return parse_config(text, path);
}

// An entry of the file for an option of the current command; nullptr for one of another command.
CLI::Option* option_of_entry(CLI::App& app, CLI::App* verb, const ConfigEntry& entry, const std::string& path) {
    if (CLI::Option* option = find_option(options_of(app, verb), entry.key)) {
        if (!option->get_configurable())
            fail(ErrorKind::Usage, "'{}' can only stand on the command line ({}:{})", entry.key, path, entry.line);
        return option;
    }
    std::vector<std::string> known = long_names(options_of(app, nullptr), "");
    for (CLI::App* other : verbs_of(app)) {
        const auto options = options_of(app, other);
        if (find_option(options, entry.key)) return nullptr;
        const auto names = long_names(options, "");
        known.insert(known.end(), names.begin(), names.end());
    }
    fail(ErrorKind::Usage, "unknown key '{}' ({}:{}) — {}", entry.key, path, entry.line,
         hint(entry.key, known, "the keys are the long option names of --help"));
}

// CLI11's message, with the place that the value of the option it speaks of came from.
[[noreturn]] void fail_parse(const CLI::ParseError& error, const Settings& settings) {
    std::string best;
    const std::string message = error.what();
    for (const auto& [name, origin] : settings.origin)
        if (message.find("--" + name) != std::string::npos && name.size() > best.size()) best = name;
    if (!best.empty() && settings.origin.at(best) != "command line")
        fail(ErrorKind::Usage, "{} ({}) — see --help", message, settings.origin.at(best));
    fail(ErrorKind::Usage, "{} — see --help", message);
}

int edit_distance(const std::string& a, const std::string& b) {
    std::vector<int> row(b.size() + 1);
    for (size_t j = 0; j <= b.size(); ++j) row[j] = static_cast<int>(j);
    for (size_t i = 1; i <= a.size(); ++i) {
        int diagonal = row[0];
        row[0] = static_cast<int>(i);
        for (size_t j = 1; j <= b.size(); ++j) {
            const int above = row[j];
            row[j] = std::min({above + 1, row[j - 1] + 1, diagonal + (a[i - 1] != b[j - 1])});
            diagonal = above;
        }
    }
    return row.back();
}

// One value as TOML: numbers and booleans bare, where the option's type says that it is one.
std::string toml_value(const CLI::Option* option, const std::string& text) {
    if (is_flag(option)) return text == "true" || text == "1" ? "true" : "false";
    const std::string type = option->get_type_name();
    const bool numeric = type.starts_with("INT") || type.starts_with("UINT") || type.starts_with("FLOAT");
    return numeric && is_toml_number(text) ? text : toml_quoted(text);
}

// Default texts of vectors come from CLI11 as "[a,b]".
std::vector<std::string> values_of(const CLI::Option* option) {
    if (option->count() > 0) return option->results();
    const std::string text = option->get_default_str();
    if (is_flag(option)) return {text.empty() ? "false" : text};
    if (text.empty()) return {};
    if (!takes_many(option)) return {text};
    const std::string inner = text.starts_with('[') ? text.substr(1, text.size() - 2) : text;
    return inner.empty() ? std::vector<std::string>{} : CLI::detail::split(inner, ',');
}

}  // namespace

int run_app(const std::function<int()>& body) {
    const auto report = [](const std::string& message, ErrorKind kind) {
        std::cout.flush();
        std::cerr << "error: " << message << (kind == ErrorKind::Internal ? " — this is a bug, please report it" : "")
                  << std::endl;
        return static_cast<int>(kind);
    };
    try {
        return body();
    } catch (const Error& error) {
        return report(error.what(), error.kind());
    } catch (const std::bad_alloc&) {
        return report("out of memory — use shorter sequences, smaller batches or a smaller model", ErrorKind::Resource);
    } catch (const std::exception& error) {
        return report(error.what(), ErrorKind::Internal);
    } catch (...) {
        return report("unknown exception", ErrorKind::Internal);
    }
}

void prepare(CLI::App& app, const std::string& examples) {
    app.option_defaults()->always_capture_default();
    app.add_option("--config")
        ->description("File with options, TOML: `key = value`, keys as the long options")
        ->type_name("FILE")
        ->configurable(false);
    app.add_flag("--print-config")
        ->description("Print the resolved options and where each came from, then exit")
        ->configurable(false);
    app.get_option("--help")->configurable(false);
    app.footer(
        (examples.empty() ? "" : "Examples:\n" + examples + "\n\n") +
        "Options may also stand in the environment (--max-new-tokens: LOLCATS_MAX_NEW_TOKENS) or in a --config file.\n"
        "Command line > environment > file > default.\n\n" +
        kExitCodes);
}

std::optional<Settings> parse_command_line(CLI::App& app, int argc, const char* const* argv) {
    return parse_command_line(app, argc, argv, environment_of_process);
}

std::optional<Settings> parse_command_line(CLI::App& app, int argc, const char* const* argv,
                                           const Environment& environment) {
    for (CLI::App* verb : verbs_of(app)) {
        verb->fallthrough();
        verb->get_option("--help")->configurable(false);
    }
    LC_CHECK(argc >= 1, "parse_command_line: argc is {}", argc);
    if (app.get_name().empty()) app.name(std::filesystem::path(argv[0]).filename());
    std::vector<std::string> words(argv + 1, argv + argc);
    const Scan scan = scan_command_line(app, words);
    Settings settings;
    if (scan.verb) settings.verb = scan.verb->get_name();
    for (const CLI::Option* option : scan.given) settings.origin[name_of(option)] = "command line";

    // Layers below the command line become words at its end, for options it does not set: CLI11 then checks all alike.
    std::vector<std::string> more;
    const auto take = [&](const CLI::Option* option, const ConfigEntry& entry, const std::string& where) {
        append_words(more, option, entry, where);
        settings.origin[name_of(option)] = where;
    };
    for (const CLI::Option* option : options_of(app, scan.verb)) {
        if (!option->get_configurable() || settings.origin.contains(name_of(option))) continue;
        const std::string variable = environment_name(name_of(option));
        const char* text = environment(variable);
        if (text != nullptr && *text != '\0') take(option, entry_from_environment(option, variable, text), variable);
    }
    const char* variable = environment("LOLCATS_CONFIG");
    const std::string path = !scan.config.empty() ? scan.config : variable != nullptr ? variable : "";
    if (!path.empty() && !scan.help)
        for (const ConfigEntry& entry : read_config(path)) {
            const CLI::Option* option = option_of_entry(app, scan.verb, entry, path);
            if (option != nullptr && !settings.origin.contains(name_of(option)))
                take(option, entry, fmt::format("{}:{}", path, entry.line));
        }

    // Before a bare "--": what follows it are not options.
    words.insert(std::find(words.begin(), words.end(), "--"), more.begin(), more.end());
    std::reverse(words.begin(), words.end());
    try {
        app.parse(words);
    } catch (const CLI::Success& asked) {
        app.exit(asked);
        return std::nullopt;
    } catch (const CLI::ParseError& error) {
        fail_parse(error, settings);
    }
    if (app.get_option("--print-config")->count() > 0) {
        std::cout << resolved_config(app, settings, true);
        return std::nullopt;
    }
    return settings;
}

std::string resolved_config(const CLI::App& app, const Settings& settings, bool with_origin) {
    CLI::App& program = const_cast<CLI::App&>(app);  // CLI11's getters of option lists are not all const
    CLI::App* verb = settings.verb.empty() ? nullptr : program.get_subcommand(settings.verb);
    std::string text;
    for (const CLI::Option* option : options_of(program, verb)) {
        if (!option->get_configurable()) continue;
        std::vector<std::string> values = values_of(option);
        if (values.empty()) continue;
        for (std::string& value : values) value = toml_value(option, value);
        const std::string joined = CLI::detail::join(values, ", ");
        text += name_of(option) + " = " + (takes_many(option) ? "[" + joined + "]" : joined);
        const auto origin = settings.origin.find(name_of(option));
        if (with_origin) text += "  # " + (origin == settings.origin.end() ? "default" : origin->second);
        text += '\n';
    }
    return text;
}

std::string nearest_name(const std::string& name, const std::vector<std::string>& candidates) {
    std::string best;
    int least = std::max<int>(1, static_cast<int>(name.size()) / 3) + 1;
    for (const std::string& candidate : candidates)
        if (const int distance = edit_distance(name, candidate); distance < least) least = distance, best = candidate;
    return best;
}

}  // namespace lc::apps
