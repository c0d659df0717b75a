// One prompt, one text.
#include <iostream>
#include <iterator>

#include "apps/gen_session.h"
#include "io/file.h"
#include "io/json.h"
#include "models/generation/state_file.h"

namespace lc::apps {
namespace {

constexpr int64_t kMaxPromptBytes = int64_t{64} << 20;

std::string read_prompt(const GenFlags& flags, const Settings& settings) {
    const bool text = settings.origin.contains("prompt"), file = settings.origin.contains("prompt-file");
    LC_REQUIRE(Usage, text != file, "give {} of --prompt and --prompt-file — see --help", text ? "only one" : "one");
    if (text) return flags.prompt;
    if (flags.prompt_file != "-") return io::read_file(flags.prompt_file, kMaxPromptBytes);
    return std::string(std::istreambuf_iterator<char>(std::cin), {});
}

io::Json number_or_null(const std::optional<double>& value) {
    return value ? io::Json(*value) : io::Json(nullptr);
}

std::string json_of(const models::Generation& result, const std::vector<int32_t>& prompt) {
    const Speeds speeds = speeds_of(result, prompt.size());
    const io::Json object = {{"prompt_ids", prompt},
                             {"ids", result.ids},
                             {"text", result.text},
                             {"prefill_tokens_per_second", number_or_null(speeds.prefill)},
                             {"decode_tokens_per_second", number_or_null(speeds.decode)},
                             {"state_bytes", result.state_bytes},
                             {"finish_reason", result.finish_reason}};
    return object.dump();
}

}  // namespace

int run_text(const GenFlags& flags, const Settings& settings) {
    const std::string prompt = read_prompt(flags, settings);
    const bool keeps = !flags.save_state.empty() || !flags.load_state.empty();
    const Session session = load_session(flags, settings, keeps);
    models::Conversation conversation(session.decoder, session.tokenizer, session.mode, flags.prefill_chunk);
    std::string chat_template;
    if (!flags.load_state.empty()) chat_template = models::load_state(conversation, flags.load_state, session.identity);
    // What goes on with a text has no BOS of its own.
    const std::vector<int32_t> ids = session.tokenizer.encode(prompt, conversation.ids().empty());
    const models::Generation result =
        conversation.reply(ids, session.options, flags.json ? models::TextSink() : write_out);
    if (flags.json) write_out(json_of(result, ids));
    write_out("\n");
    if (!flags.save_state.empty())
        models::save_state(conversation, flags.save_state, {session.identity, chat_template});
    if (flags.stats) print_stats(session, result, ids.size());
    return 0;
}

}  // namespace lc::apps
