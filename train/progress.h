// The line that says how training goes, on stderr: redrawn in place with a bar on a terminal, else one line every N
// steps.
#pragma once
#include <chrono>
#include <cstdint>
#include <string>

namespace lc::train {

struct StepFigures {
    int64_t step = 0;
    double loss = 0, grad_norm = 0, rate = 0, milliseconds = 0, tokens_per_second = 0;
    int64_t memory = 0;  // bytes: the largest that were in use at once, in this stage
};

class Progress {
  public:
    // `every`: steps between lines where there is no terminal; 0 is silent.
    Progress(std::string stage, int64_t total_steps, int64_t every);
    void step(const StepFigures& figures);
    void message(const std::string& text);  // a line of its own
    void finish();                          // leaves the bar

  private:
    std::string line(const StepFigures& figures) const;
    std::string stage_;
    int64_t total_, every_;
    bool terminal_;
    bool bar_drawn_ = false;
    int64_t first_step_ = -1;
    std::chrono::steady_clock::time_point first_time_, drawn_;
};

std::string format_duration(double seconds);  // "14m", "2h05m", "9s"
std::string format_rate(double per_second);   // "19.9k"

}  // namespace lc::train
