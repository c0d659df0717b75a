// Signals as a question asked between steps. First SIGTERM, SIGINT, SIGUSR1 or SIGHUP: finish the step, save, exit 75.
// Second: exit 128+n at once (files are written so that nothing can be torn). SIGPIPE is ignored.
#pragma once
#include <exception>
#include <functional>

namespace lc::train {

inline constexpr int kExitPreempted = 75;  // EX_TEMPFAIL: run me again

void install_signal_handlers();
bool stop_requested();

// What long work asks now and then. Empty: never.
using StopCheck = std::function<bool()>;

// Thrown by work that was asked to stop and left nothing half done.
struct Interrupted : std::exception {
    const char* what() const noexcept override { return "interrupted by a signal"; }
};

inline void throw_if_stopped(const StopCheck& stop) {
    if (stop && stop()) throw Interrupted();
}

}  // namespace lc::train
