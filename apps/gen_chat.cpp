// --chat: messages from standard input, answers to standard output. The model's state holds the history; a turn costs
// what is new in it.
#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <iostream>

#include "apps/gen_session.h"
#include "apps/interrupt.h"
#include "models/generation/chat_template.h"
#include "models/generation/state_file.h"

namespace lc::apps {
namespace {

constexpr size_t kMaxMessageBytes = size_t{64} << 20;
constexpr const char* kHelp = "one message a line | /reset: forget everything | /exit or Ctrl-D: end\n";

// Lines of standard input by read(2), which a signal interrupts.
class Messages {
  public:
    explicit Messages(bool terminal) : terminal_(terminal) {}

    // The next line; false at the end of the input.
    bool next(std::string& line) {
        prompt();
        for (;;) {
            if (const size_t end = held_.find('\n'); end != std::string::npos) {
                line = held_.substr(0, end);
                held_.erase(0, end + 1);
                return true;
            }
            char block[4096];
            const ssize_t got = ::read(STDIN_FILENO, block, sizeof block);
            if (got < 0 && errno == EINTR) {  // Ctrl-C while nobody answers: the line begun is dropped
                clear_interrupt();
                held_.clear();
                if (terminal_) std::cerr << "\n" << kHelp;
                prompt();
                continue;
            }
            LC_REQUIRE(Resource, got >= 0, "standard input cannot be read");
            LC_REQUIRE(Usage, held_.size() <= kMaxMessageBytes, "a message has more than {} bytes", kMaxMessageBytes);
            if (got == 0) {
                line = std::exchange(held_, {});
                return !line.empty();
            }
            held_.append(block, static_cast<size_t>(got));
        }
    }

  private:
    void prompt() const {
        if (terminal_) std::cerr << "> " << std::flush;
    }
    bool terminal_;
    std::string held_;
};

// The flag, else what the loaded state was saved with, else what the model's files say.
models::ChatTemplate template_for(const GenFlags& flags, const std::string& of_state, const io::Tokenizer& tokenizer) {
    std::string name = flags.chat_template.empty() ? of_state : flags.chat_template;
    LC_REQUIRE(Usage, of_state.empty() || name == of_state, "{}: was saved with chat template {}, not {}",
               flags.load_state, of_state, name);
    if (name.empty()) name = models::recognize_chat_template(flags.model.model).value_or("");
    LC_REQUIRE(Usage, !name.empty(), "{}: says nothing of a chat template that is built in — give --template NAME",
               flags.model.model);
    return models::ChatTemplate(name, tokenizer);
}

class Chat {
  public:
    Chat(const GenFlags& flags, const Session& session)
        : flags_(flags), session_(session), conversation_(fresh()), template_(start()), options_(session.options) {
        const std::vector<int64_t>& ends = template_.end_ids();
        if (!flags.ignore_eos) options_.eos_ids.insert(options_.eos_ids.end(), ends.begin(), ends.end());
        for (const std::string& stop : template_.stop_strings()) options_.stop_strings.push_back(stop);
    }

    void reset() { conversation_ = fresh(); }

    void answer(std::string_view message) {
        clear_interrupt();
        const std::vector<int32_t> ids = template_.turn(message, flags_.system, conversation_->ids());
        const models::Generation result = conversation_->reply(ids, options_, write_out, interrupted);
        write_out("\n");
        if (result.finish_reason == "cancelled") std::cerr << "(stopped)\n";
        if (result.finish_reason == "length") std::cerr << "(cut off: --max-new-tokens or the model's limit)\n";
        clear_interrupt();
        if (!flags_.save_state.empty())
            models::save_state(*conversation_, flags_.save_state, {session_.identity, std::string(template_.name())});
        if (flags_.stats) print_stats(session_, result, ids.size());
    }

  private:
    std::unique_ptr<models::Conversation> fresh() const {
        return std::make_unique<models::Conversation>(session_.decoder, session_.tokenizer, session_.mode,
                                                      flags_.prefill_chunk);
    }
    models::ChatTemplate start() const {
        std::string of_state;
        if (!flags_.load_state.empty())
            of_state = models::load_state(*conversation_, flags_.load_state, session_.identity);
        return template_for(flags_, of_state, session_.tokenizer);
    }

    const GenFlags& flags_;
    const Session& session_;
    std::unique_ptr<models::Conversation> conversation_;
    models::ChatTemplate template_;
    models::GenerateOptions options_;
};

}  // namespace

int run_chat(const GenFlags& flags, const Settings& settings) {
    for (const char* name : {"prompt", "prompt-file", "json"})
        LC_REQUIRE(Usage, !settings.origin.contains(name), "--{} does not go with --chat", name);
    const Session session = load_session(flags, settings, !flags.save_state.empty() || !flags.load_state.empty());
    Chat chat(flags, session);
    const bool terminal = ::isatty(STDIN_FILENO) != 0;
    catch_signals({SIGINT}, SecondSignal::Counts);
    if (terminal) std::cerr << kHelp;
    Messages messages(terminal);
    for (std::string message; messages.next(message);) {
        if (message.empty()) continue;
        if (message == "/exit") break;
        if (message == "/reset") {
            chat.reset();
            continue;
        }
        try {
            chat.answer(message);
        } catch (const Error& error) {  // a person can go on (with /reset, say); a script shall not
            if (!terminal || error.kind() != ErrorKind::Usage) throw;
            std::cerr << "error: " << error.what() << "\n";
        }
    }
    return 0;
}

}  // namespace lc::apps
