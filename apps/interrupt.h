// Ctrl-C as a question asked between tokens.
#pragma once
#include <initializer_list>

namespace lc::apps {

enum class SecondSignal : bool { Exits, Counts };  // Exits: with 128+n, at once, while the first one is being answered

// From now on these signals only set a mark. Reads from a terminal that they interrupt return early (no SA_RESTART).
void catch_signals(std::initializer_list<int> signals, SecondSignal second);
bool interrupted();
void clear_interrupt();

}  // namespace lc::apps
