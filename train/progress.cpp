#include "train/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>

#include "core/log.h"

namespace lc::train {

using Clock = std::chrono::steady_clock;

std::string format_duration(double seconds) {
    const auto s = static_cast<int64_t>(std::llround(std::max(0.0, seconds)));
    if (s < 60) return fmt::format("{}s", s);
    if (s < 3600) return fmt::format("{}m", s / 60);
    return fmt::format("{}h{:02}m", s / 3600, s / 60 % 60);
}

std::string format_rate(double per_second) {
    if (per_second >= 1e6) return fmt::format("{:.1f}M", per_second / 1e6);
    if (per_second >= 1e3) return fmt::format("{:.1f}k", per_second / 1e3);
    return fmt::format("{:.0f}", per_second);
}

Progress::Progress(std::string stage, int64_t total_steps, int64_t every)
    : stage_(std::move(stage)), total_(total_steps), every_(every), terminal_(::isatty(STDERR_FILENO) != 0) {}

std::string Progress::line(const StepFigures& f) const {
    std::string text =
        fmt::format("{} step {}/{} | loss {:.4f} | norm {:.3g} | lr {:.1e} | {:.0f} ms | {} tok/s | {:.2f} GiB", stage_,
                    f.step, total_, f.loss, f.grad_norm, f.rate, f.milliseconds, format_rate(f.tokens_per_second),
                    static_cast<double>(f.memory) / (1 << 30));
    if (f.step > first_step_) {
        const double spent = std::chrono::duration<double>(Clock::now() - first_time_).count();
        const double left = spent / static_cast<double>(f.step - first_step_) * static_cast<double>(total_ - f.step);
        text += " | ETA " + format_duration(left);
    }
    return text;
}

void Progress::step(const StepFigures& figures) {
    if (every_ == 0) return;
    const auto now = Clock::now();
    if (first_step_ < 0) first_step_ = figures.step, first_time_ = now;
    if (!terminal_) {
        if (figures.step % every_ == 0 || figures.step == total_) log_info("{}", line(figures));
        return;
    }
    // A terminal that is redrawn more often than the eye sees costs more than the step itself on a small model.
    if (bar_drawn_ && now - drawn_ < std::chrono::milliseconds(100) && figures.step != total_) return;
    constexpr int kWidth = 20;
    const int filled = static_cast<int>(kWidth * figures.step / std::max<int64_t>(1, total_));
    const std::string text = fmt::format("\r\x1b[K[{:#<{}}{:.<{}}] {}", "", filled, "", kWidth - filled, line(figures));
    std::fwrite(text.data(), 1, text.size(), stderr);
    bar_drawn_ = true, drawn_ = now;
}

void Progress::message(const std::string& text) {
    if (every_ == 0) return;
    finish();
    log_info("{}", text);
}

void Progress::finish() {
    if (bar_drawn_) std::fputc('\n', stderr);
    bar_drawn_ = false;
}

}  // namespace lc::train
