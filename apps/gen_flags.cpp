#include "apps/gen_flags.h"

namespace lc::apps {
namespace {

void add_sampling(CLI::App& app, GenFlags& f) {
    app.add_flag("--greedy", f.greedy, "Always the likeliest token, whatever the sampling options say");
    app.add_option("--temperature", f.temperature, "Sampling: divides the logits; 0 is greedy");
    app.add_option("--top-k", f.top_k, "Sampling: the k likeliest tokens only; 0 is off");
    app.add_option("--top-p", f.top_p, "Sampling: the likeliest tokens that make up this probability");
    app.add_option("--min-p", f.min_p, "Sampling: no token below this times the likeliest one's probability");
    app.add_option("--repetition-penalty", f.repetition_penalty, "Above 1: tokens seen before become less likely");
    app.add_option("--presence-penalty", f.presence_penalty, "Taken from the logit of every token generated before");
    app.add_option("--frequency-penalty", f.frequency_penalty, "The same, times how often it was");
    app.add_option("--logit-bias", f.logit_bias, "ID=VALUE: added to a token's logit, -inf bans it; several times")
        ->allow_extra_args(false);
    app.add_option("--seed", f.seed, "Sampling: random numbers; the same seed gives the same text");
}

void add_batch(CLI::App& app, GenFlags& f) {
    app.add_option("--batch", f.batch,
                   "JSON lines {\"prompt\": ..., \"id\": ..., \"temperature\": ...}; results go to --out")
        ->type_name("FILE");
    app.add_option("--out", f.out, "JSON lines, one result each in the order of --batch")->type_name("FILE");
    app.add_option("--batch-size", f.batch_size, "Sequences that are generated at a time")
        ->check(CLI::Range(int64_t{1}, int64_t{1} << 40));
    app.add_flag("--continue", f.go_on, "Go on after the results that --out holds");
}

void add_conversation(CLI::App& app, GenFlags& f) {
    app.add_flag("--chat", f.chat, "Talk: one message a line; Ctrl-C stops an answer, Ctrl-D ends");
    app.add_option("--template,--chat-template", f.chat_template,
                   "How messages are written down: alpaca, llama2, llama3, mistral or chatml; else as the model says");
    app.add_option("--system", f.system, "System prompt of --chat");
    app.add_option("--save-state", f.save_state, "Write the state after every answer, to go on later")
        ->type_name("FILE");
    app.add_option("--load-state", f.load_state, "Go on from a saved state")->type_name("FILE");
}

}  // namespace

void GenFlags::add(CLI::App& app) {
    model.add(app);
    app.add_option("--run", run,
                   "Run directory of train_lolcats: feature maps and adapter; without it, the model as it is");
    app.add_option("--prompt", prompt, "The prompt");
    app.add_option("--prompt-file", prompt_file, "File that holds the prompt; - is standard input");
    app.add_option("--max-new-tokens", max_new_tokens, "Most tokens to generate")
        ->check(CLI::Range(int64_t{1}, int64_t{1} << 40));
    add_sampling(app, *this);
    app.add_option("--stop", stop, "Ends the text before this string; may be given several times")
        ->allow_extra_args(false);
    app.add_flag("--ignore-eos", ignore_eos, "Go on after tokens that end a text");
    add_batch(app, *this);
    add_conversation(app, *this);
    app.add_option("--prefill-chunk", prefill_chunk, "Tokens of a prompt that go through at a time: bounds memory")
        ->check(CLI::Range(int64_t{1}, int64_t{1} << 20));
    app.add_option("--attention-terms", terms, "Diagnosis of hybrids: both | window | linear")
        ->check(CLI::IsMember({"both", "window", "linear"}));
    app.add_option("--state-dtype", state_dtype, "Recurrent states between steps: f32 | bf16, half the memory")
        ->check(CLI::IsMember({"f32", "bf16"}));
    place.add(app);
    weights.add(app);
    app.add_flag("--json", json, "One JSON object instead of text");
    app.add_flag("--stats", stats, "Speed and memory on standard error");
    app.add_option("--threads", threads, "CPU threads; 0: all cores")->check(CLI::Range(0, 256));
    app.add_flag("--no-follow-symlinks", no_follow_symlinks, "Refuse symbolic links among the model's files");
}

models::GenerateOptions generate_options(const GenFlags& f, const Settings& settings,
                                         const io::GenerationConfig& defaults) {
    const auto given = [&](const char* name) { return settings.origin.contains(name); };
    const auto pick = [&](const char* name, auto option, const auto& model_default) {
        return given(name) ? option : static_cast<decltype(option)>(model_default.value_or(option));
    };
    models::GenerateOptions g;
    g.max_new_tokens = pick("max-new-tokens", f.max_new_tokens, defaults.max_new_tokens);
    g.sampling = {.temperature = pick("temperature", f.temperature, defaults.temperature),
                  .top_k = pick("top-k", f.top_k, defaults.top_k),
                  .top_p = pick("top-p", f.top_p, defaults.top_p),
                  .min_p = pick("min-p", f.min_p, defaults.min_p),
                  .repetition_penalty = pick("repetition-penalty", f.repetition_penalty, defaults.repetition_penalty),
                  .presence_penalty = f.presence_penalty,
                  .frequency_penalty = f.frequency_penalty,
                  .logit_bias = {},
                  .seed = f.seed};
    for (const std::string& bias : f.logit_bias) g.sampling.logit_bias.push_back(models::parse_logit_bias(bias));
    const bool sampling = defaults.do_sample.value_or(false) || given("temperature") || given("top-k") ||
                          given("top-p") || given("min-p") || given("seed");
    if (f.greedy || !sampling) g.sampling.temperature = 0;
    g.stop_strings = f.stop;
    return g;
}

}  // namespace lc::apps
