#include "train/interrupt.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>

namespace lc::train {
namespace {

std::atomic<int> signals_seen{0};
static_assert(std::atomic<int>::is_always_lock_free, "the handler may only touch lock-free atomics");

void on_signal(int number) {
    if (signals_seen.fetch_add(1) > 0) ::_exit(128 + number);
}

}  // namespace

void install_signal_handlers() {
    struct sigaction action {};
    action.sa_handler = on_signal;
    sigemptyset(&action.sa_mask);
    action.sa_flags = SA_RESTART;
    for (int number : {SIGTERM, SIGINT, SIGUSR1, SIGHUP}) ::sigaction(number, &action, nullptr);
    ::signal(SIGPIPE, SIG_IGN);
}

bool stop_requested() {
    return signals_seen.load() > 0;
}

}  // namespace lc::train
