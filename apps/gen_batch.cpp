// --batch: many prompts from a file, results to another one.
#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <iostream>

#include "apps/gen_session.h"
#include "apps/interrupt.h"
#include "io/line_file.h"
#include "models/generation/batch.h"
#include "models/generation/request_json.h"

namespace lc::apps {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kExitPreempted = 75;  // EX_TEMPFAIL: run me again

// On a terminal one line that changes, twice a second; else a new one every ten seconds.
class Progress {
  public:
    Progress(int64_t first, int64_t total) : first_(first), total_(total), terminal_(::isatty(STDERR_FILENO) != 0) {}

    void show(const models::BatchProgress& now) {
        const double since = seconds(shown_);
        if (since < (terminal_ ? 0.5 : 10.0)) return;
        const double made = static_cast<double>(now.tokens_made - made_) / since,
                     read = static_cast<double>(now.tokens_read - read_) / since;
        const double each = seconds(start_) / static_cast<double>(std::max<int64_t>(1, now.done - first_));
        const std::string left = now.done > first_ ? duration(each * static_cast<double>(total_ - now.done)) : "-";
        std::cerr << (terminal_ ? "\r\x1b[K" : "")
                  << fmt::format("batch {}/{} | {} running | {:.1f} tok/s | prompts {:.1f} tok/s | ETA {}", now.done,
                                 total_, now.running, made, read, left)
                  << (terminal_ ? "" : "\n") << std::flush;
        shown_ = Clock::now(), made_ = now.tokens_made, read_ = now.tokens_read;
    }
    void finish(const models::BatchProgress& last) {
        const double time = std::max(seconds(start_), 1e-9);
        std::cerr << (terminal_ ? "\r\x1b[K" : "")
                  << fmt::format("batch {}/{} | {} failed | {} tokens in {}, {:.1f} tok/s | prompts {} tokens\n",
                                 last.done, total_, last.failed, last.tokens_made, duration(time),
                                 static_cast<double>(last.tokens_made) / time, last.tokens_read);
    }

  private:
    static double seconds(Clock::time_point since) {
        return std::chrono::duration<double>(Clock::now() - since).count();
    }
    static std::string duration(double seconds) {
        return seconds < 120 ? fmt::format("{:.1f}s", seconds) : fmt::format("{:.0f}m", seconds / 60);
    }
    int64_t first_, total_, made_ = 0, read_ = 0;
    bool terminal_;
    Clock::time_point start_ = Clock::now(), shown_ = start_;
};

}  // namespace

int run_batch(const GenFlags& flags, const Settings& settings) {
    LC_REQUIRE(Usage, !flags.out.empty(), "--batch needs --out — see --help");
    for (const char* name : {"prompt", "prompt-file", "json", "save-state", "load-state"})
        LC_REQUIRE(Usage, !settings.origin.contains(name), "--{} does not go with --batch", name);
    const Session session = load_session(flags, settings, true);
    io::Json identity = {session.identity.model_hash, session.identity.run_hash, flags.terms, flags.place.dtype};
    if (flags.weights.dtype != "auto") identity.push_back("weights in " + flags.weights.dtype);
    if (flags.state_dtype != "f32") identity.push_back("states in " + flags.state_dtype);
    const models::BatchFile file(flags.batch, session.options, session.decoder.config().vocab_size, identity.dump());
    io::LineFile out(flags.out);
    LC_REQUIRE(Usage, flags.go_on || out.lines().empty(),
               "{}: holds {} results already — give --continue to go on after them, or another --out", flags.out,
               out.lines().size());
    const int64_t first = file.count_done(out.lines(), flags.out);
    const int64_t slots = std::min(flags.batch_size, file.size());
    models::Engine engine(session.decoder, session.tokenizer,
                          {.mode = session.mode, .slots = slots, .prefill_chunk = flags.prefill_chunk});

    catch_signals({SIGINT, SIGTERM, SIGHUP}, SecondSignal::Exits);
    Progress progress(first, file.size());
    models::BatchProgress last{.done = first};
    const models::BatchHooks hooks{.write = [&](std::string_view line) { out.append(line); },
                                   .progress = [&](const models::BatchProgress& now) { progress.show(last = now); },
                                   .stop = interrupted};
    const int64_t done = models::run_batch(engine, session.tokenizer, file, slots, first, hooks);
    out.sync();
    progress.finish(last);
    LC_REQUIRE(Numerics, last.non_finite == 0, "{}: {} lines met logits that are not finite", flags.out,
               last.non_finite);
    if (done == file.size()) return 0;
    std::cerr << fmt::format("stopped by a signal after {} of {} results; go on with --continue\n", done, file.size());
    return kExitPreempted;
}

}  // namespace lc::apps
