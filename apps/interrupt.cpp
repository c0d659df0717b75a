#include "apps/interrupt.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>

namespace lc::apps {
namespace {

std::atomic<int> signals_seen{0};
std::atomic<bool> second_exits{false};
static_assert(std::atomic<int>::is_always_lock_free && std::atomic<bool>::is_always_lock_free,
              "a handler may only touch lock-free atomics");

void on_signal(int number) {
    if (signals_seen.fetch_add(1) > 0 && second_exits.load()) ::_exit(128 + number);
}

}  // namespace

void catch_signals(std::initializer_list<int> signals, SecondSignal second) {
    second_exits = second == SecondSignal::Exits;
    struct sigaction action {};
    action.sa_handler = on_signal;
    sigemptyset(&action.sa_mask);
    for (const int number : signals) ::sigaction(number, &action, nullptr);
}

bool interrupted() {
    return signals_seen.load() > 0;
}

void clear_interrupt() {
    signals_seen = 0;
}

}  // namespace lc::apps
