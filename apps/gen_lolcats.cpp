// gen_lolcats: text from a Llama-family model, as it is or linearized.
#include "apps/gen_session.h"
#include "core/parallel.h"

namespace lc::apps {
namespace {

constexpr const char* kExamples =
    "  gen_lolcats --model ~/models/Llama --prompt \"Once upon a time\"                      the softmax teacher\n"
    "  gen_lolcats --model ~/models/Llama --run runs/first --prompt \"Once upon a time\"     the linearized model\n"
    "  gen_lolcats --model M --run R --prompt-file p.txt --temperature 0.8 --top-p 0.9 --seed 1 --stop \"###\" --json\n"
    "  echo Hello | gen_lolcats --model M --prompt-file -\n"
    "  gen_lolcats --model M --run R --batch prompts.jsonl --out results.jsonl --batch-size 32      many prompts\n"
    "  gen_lolcats --model M --run R --batch prompts.jsonl --out results.jsonl --continue           after an "
    "interruption";

int run(int argc, const char* const* argv) {
    CLI::App app("Generates text from a Llama-family model, as it is (softmax) or linearized by train_lolcats.");
    GenFlags flags;
    prepare(app, kExamples);
    flags.add(app);
    const auto settings = parse_command_line(app, argc, argv);
    if (!settings) return 0;
    if (flags.threads > 0) set_num_threads(static_cast<int>(flags.threads));
    const auto given = [&](const char* name) { return settings->origin.contains(name); };
    for (const char* name : {"out", "continue", "batch-size"})
        LC_REQUIRE(Usage, given("batch") || !given(name), "--{} goes with --batch — see --help", name);
    for (const char* name : {"template", "system"})
        LC_REQUIRE(Usage, flags.chat || !given(name), "--{} goes with --chat — see --help", name);
    LC_REQUIRE(Usage, !flags.chat || !given("batch"), "give only one of --chat and --batch — see --help");
    if (given("batch")) return run_batch(flags, *settings);
    if (flags.chat) return run_chat(flags, *settings);
    return run_text(flags, *settings);
}

}  // namespace
}  // namespace lc::apps

int main(int argc, char** argv) {
    return lc::apps::run_app([&] { return lc::apps::run(argc, argv); });
}
