// gen_lolcats: text from a Llama-family model, as it is or linearized.
#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <iostream>
#include <iterator>

#include "apps/common.h"
#include "apps/model_flags.h"
#include "core/allocator.h"
#include "core/parallel.h"
#include "io/file.h"
#include "io/hf_config.h"
#include "io/json.h"
#include "models/generation/generate.h"
#include "models/model_source.h"
#include "models/run.h"

namespace lc::apps {
namespace {

constexpr const char* kExamples =
    "  gen_lolcats --model ~/models/Llama --prompt \"Once upon a time\"                      the softmax teacher\n"
    "  gen_lolcats --model ~/models/Llama --run runs/first --prompt \"Once upon a time\"     the linearized model\n"
    "  gen_lolcats --model M --run R --prompt-file p.txt --temperature 0.8 --top-p 0.9 --seed 1 --stop \"###\" --json\n"
    "  echo Hello | gen_lolcats --model M --prompt-file -";

constexpr int64_t kMaxPromptBytes = int64_t{64} << 20;

struct Options {
    ModelFlags model;
    PlacementFlags place;
    std::string run, prompt, prompt_file, terms = "both";
    std::vector<std::string> stop;
    int64_t max_new_tokens = 128, top_k = 0, threads = 0;
    double temperature = 1, top_p = 1, min_p = 0, repetition_penalty = 1, presence_penalty = 0, frequency_penalty = 0;
    std::vector<std::string> logit_bias;
    uint64_t seed = 0;
    bool greedy = false, json = false, stats = false, no_follow_symlinks = false;
};

void add_options(CLI::App& app, Options& o) {
    o.model.add(app);
    app.add_option("--run", o.run,
                   "Run directory of train_lolcats: feature maps and adapter; without it, the softmax teacher");
    app.add_option("--prompt", o.prompt, "The prompt");
    app.add_option("--prompt-file", o.prompt_file, "File that holds the prompt; - is standard input");
    app.add_option("--max-new-tokens", o.max_new_tokens, "Most tokens to generate")
        ->check(CLI::Range(int64_t{1}, int64_t{1} << 40));
    app.add_flag("--greedy", o.greedy, "Always the likeliest token, whatever the sampling options say");
    app.add_option("--temperature", o.temperature, "Sampling: divides the logits; 0 is greedy");
    app.add_option("--top-k", o.top_k, "Sampling: the k likeliest tokens only; 0 is off");
    app.add_option("--top-p", o.top_p, "Sampling: the likeliest tokens that make up this probability");
    app.add_option("--min-p", o.min_p, "Sampling: no token below this times the likeliest one's probability");
    app.add_option("--repetition-penalty", o.repetition_penalty, "Above 1: tokens seen before become less likely");
    app.add_option("--presence-penalty", o.presence_penalty, "Taken from the logit of every token generated before");
    app.add_option("--frequency-penalty", o.frequency_penalty, "The same, times how often it was");
    app.add_option("--logit-bias", o.logit_bias, "ID=VALUE: added to a token's logit, -inf bans it; several times")
        ->allow_extra_args(false);
    app.add_option("--seed", o.seed, "Sampling: random numbers; the same seed gives the same text");
    app.add_option("--stop", o.stop, "Ends the text before this string; may be given several times")
        ->allow_extra_args(false);
    app.add_option("--attention-terms", o.terms, "Diagnosis of hybrids: both | window | linear")
        ->check(CLI::IsMember({"both", "window", "linear"}));
    o.place.add(app);
    app.add_flag("--json", o.json, "One JSON object instead of text");
    app.add_flag("--stats", o.stats, "Speed and memory on standard error");
    app.add_option("--threads", o.threads, "CPU threads; 0: all cores")->check(CLI::Range(0, 256));
    app.add_flag("--no-follow-symlinks", o.no_follow_symlinks, "Refuse symbolic links among the model's files");
}

std::string read_prompt(const Options& options, const Settings& settings) {
    const bool text = settings.origin.contains("prompt"), file = settings.origin.contains("prompt-file");
    LC_REQUIRE(Usage, text != file, "give {} of --prompt and --prompt-file — see --help", text ? "only one" : "one");
    if (text) return options.prompt;
    if (options.prompt_file != "-") return io::read_file(options.prompt_file, kMaxPromptBytes);
    return std::string(std::istreambuf_iterator<char>(std::cin), {});
}

models::Terms terms_from(const std::string& name) {
    if (name == "window") return models::Terms::WindowOnly;
    return name == "linear" ? models::Terms::LinearOnly : models::Terms::Both;
}

// Defaults of the model's generation_config.json stand unless an option was given. Sampling is on when the model says so
// (do_sample) or when any sampling option was given; else the likeliest token is taken.
models::GenerateOptions resolve(const Options& o, const Settings& settings, const io::GenerationConfig& defaults) {
    const auto given = [&](const char* name) { return settings.origin.contains(name); };
    const auto pick = [&](const char* name, auto option, const auto& model_default) {
        return given(name) ? option : static_cast<decltype(option)>(model_default.value_or(option));
    };
    models::GenerateOptions g;
    g.max_new_tokens = pick("max-new-tokens", o.max_new_tokens, defaults.max_new_tokens);
    g.sampling = {.temperature = pick("temperature", o.temperature, defaults.temperature),
                  .top_k = pick("top-k", o.top_k, defaults.top_k),
                  .top_p = pick("top-p", o.top_p, defaults.top_p),
                  .min_p = pick("min-p", o.min_p, defaults.min_p),
                  .repetition_penalty = pick("repetition-penalty", o.repetition_penalty, defaults.repetition_penalty),
                  .presence_penalty = o.presence_penalty,
                  .frequency_penalty = o.frequency_penalty,
                  .seed = o.seed};
    for (const std::string& bias : o.logit_bias) g.sampling.logit_bias.push_back(models::parse_logit_bias(bias));
    const bool sampling = defaults.do_sample.value_or(false) || given("temperature") || given("top-k") ||
                          given("top-p") || given("min-p") || given("seed");
    if (o.greedy || !sampling) g.sampling.temperature = 0;
    g.stop_strings = o.stop;
    g.terms = terms_from(o.terms);
    LC_REQUIRE(Usage, g.terms == models::Terms::Both || !o.run.empty(),
               "--attention-terms {} needs a linearized model — give --run", o.terms);
    g.mode = o.run.empty() ? models::AttentionMode::Softmax : models::AttentionMode::Linearized;
    return g;
}

std::vector<int64_t> eos_ids(const io::GenerationConfig& generation, const models::Decoder& decoder,
                             const io::Tokenizer& tokenizer) {
    if (!generation.eos_token_ids.empty()) return generation.eos_token_ids;
    if (!decoder.config().eos_token_ids.empty()) return decoder.config().eos_token_ids;
    if (const auto id = tokenizer.eos_id()) return {*id};
    return {};
}

struct Speeds {
    std::optional<double> prefill, decode;  // tokens per second
};

Speeds speeds_of(const models::Generation& result, size_t prompt_tokens) {
    Speeds speeds;
    if (result.prefill_seconds > 0) speeds.prefill = static_cast<double>(prompt_tokens) / result.prefill_seconds;
    if (result.ids.size() > 1 && result.decode_seconds > 0)
        speeds.decode = static_cast<double>(result.ids.size() - 1) / result.decode_seconds;
    return speeds;
}

io::Json number_or_null(const std::optional<double>& value) {
    return value ? io::Json(*value) : io::Json(nullptr);
}
std::string number_or_dash(const std::optional<double>& value) {
    return value ? fmt::format("{:.1f}", *value) : "-";
}

void write_out(std::string_view text) {
    std::fwrite(text.data(), 1, text.size(), stdout);
    if (std::fflush(stdout) != 0) fail(ErrorKind::Resource, "standard output cannot be written");
}

int run(int argc, const char* const* argv) {
    CLI::App app("Generates text from a Llama-family model, as it is (softmax) or linearized by train_lolcats.");
    Options options;
    prepare(app, kExamples);
    add_options(app, options);
    const auto settings = parse_command_line(app, argc, argv);
    if (!settings) return 0;
    if (options.threads > 0) set_num_threads(static_cast<int>(options.threads));
    const std::string prompt = read_prompt(options, *settings);
    const io::GenerationConfig defaults = io::load_generation_config(options.model.model);
    models::GenerateOptions generate = resolve(options, *settings, defaults);

    const models::ModelSource source = options.model.source();
    const std::filesystem::path& model = source.directory;
    const io::Tokenizer tokenizer = io::Tokenizer::load(model / "tokenizer.json");
    const models::Placement placement = options.place.placement();
    models::Decoder decoder =
        models::load_model(source, {.placement = placement, .follow_symlinks = !options.no_follow_symlinks});
    LC_REQUIRE(BadInput, tokenizer.vocab_size() <= decoder.config().vocab_size,
               "{}: the tokenizer has {} ids, the model's embedding {}", (model / "tokenizer.json").string(),
               tokenizer.vocab_size(), decoder.config().vocab_size);
    if (!options.run.empty()) {
        models::apply_run(decoder, options.run, models::hash_of(source));
        decoder.merge_lora();
    }
    generate.eos_ids = eos_ids(defaults, decoder, tokenizer);

    const std::vector<int32_t> ids = tokenizer.encode(prompt, true);
    const auto stream = [](std::string_view text) { write_out(text); };
    const models::Generation result = options.json ? models::generate(decoder, tokenizer, ids, generate)
                                                   : models::generate(decoder, tokenizer, ids, generate, stream);
    const Speeds speeds = speeds_of(result, ids.size());
    if (options.json) {
        const io::Json object = {{"prompt_ids", ids},
                                 {"ids", result.ids},
                                 {"text", result.text},
                                 {"prefill_tokens_per_second", number_or_null(speeds.prefill)},
                                 {"decode_tokens_per_second", number_or_null(speeds.decode)},
                                 {"state_bytes", result.state_bytes},
                                 {"finish_reason", result.finish_reason}};
        write_out(object.dump());
    }
    write_out("\n");
    if (options.stats)
        std::cerr << fmt::format(
            "prefill {} tok/s ({} tokens) | decode {} tok/s ({} tokens) | state {:.2f} MiB | peak memory {:.1f} MiB\n",
            number_or_dash(speeds.prefill), ids.size(), number_or_dash(speeds.decode), result.ids.size(),
            static_cast<double>(result.state_bytes) / (1 << 20),
            static_cast<double>(allocator(placement.device).stats().peak_bytes) / (1 << 20));
    return 0;
}

}  // namespace
}  // namespace lc::apps

int main(int argc, char** argv) {
    return lc::apps::run_app([&] { return lc::apps::run(argc, argv); });
}
