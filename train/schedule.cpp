#include "train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/check.h"

namespace lc::train {
namespace {
constexpr double kSmallestDrop = 1e-8;  // torch's eps: a smaller change of the rate is not made
}

ScheduleKind schedule_kind_from(std::string_view name) {
    for (ScheduleKind kind : {ScheduleKind::constant, ScheduleKind::cosine, ScheduleKind::plateau})
        if (name == name_of(kind)) return kind;
    fail(ErrorKind::Usage, "unknown schedule '{}'; known: constant, cosine, plateau", name);
}

std::string_view name_of(ScheduleKind kind) {
    return kind == ScheduleKind::constant ? "constant" : kind == ScheduleKind::cosine ? "cosine" : "plateau";
}

Schedule::Schedule(const ScheduleOptions& options) : options_(options), plateau_rate_(options.base) {
    LC_REQUIRE(Usage, std::isfinite(options.base) && options.base >= 0, "learning rate must be >= 0, got {}",
               options.base);
    LC_REQUIRE(Usage, options.min >= 0, "smallest learning rate must be >= 0, got {}", options.min);
    LC_REQUIRE(Usage, options.warmup >= 0, "warm-up must be >= 0 steps, got {}", options.warmup);
    LC_REQUIRE(Usage, options.factor > 0 && options.factor < 1, "plateau factor must lie in (0,1), got {}",
               options.factor);
}

double Schedule::rate(int64_t step) const {
    if (step <= options_.warmup)
        return options_.base * static_cast<double>(step) / static_cast<double>(options_.warmup);
    if (options_.kind == ScheduleKind::constant) return options_.base;
    if (options_.kind == ScheduleKind::plateau) return plateau_rate_;
    const double span = static_cast<double>(std::max<int64_t>(1, options_.total - options_.warmup));
    const double done = std::min(1.0, static_cast<double>(step - options_.warmup) / span);
    const double low = std::min(options_.min, options_.base);
    return low + 0.5 * (options_.base - low) * (1 + std::cos(std::numbers::pi * done));
}

void Schedule::observe(double validation_loss) {
    if (options_.kind != ScheduleKind::plateau) return;
    const bool gain = validation_loss < best_ * (1 - options_.threshold);  // false for NaN
    if (gain) best_ = validation_loss;
    bad_ = gain ? 0 : bad_ + 1;
    if (bad_ <= options_.patience) return;
    bad_ = 0;
    const double next = std::max(plateau_rate_ * options_.factor, options_.min);
    if (plateau_rate_ - next > kSmallestDrop) plateau_rate_ = next;
}

io::Json Schedule::state() const {
    // JSON has no infinity: null stands for "nothing seen".
    return {{"base", options_.base},
            {"rate", plateau_rate_},
            {"best", std::isfinite(best_) ? io::Json(best_) : io::Json()},
            {"bad", bad_}};
}

void Schedule::restore(const io::Json& state, const std::string& source) {
    const io::JsonObject object(state, source, "schedule");
    constexpr double kLargest = std::numeric_limits<double>::max();
    plateau_rate_ = object.get_double("rate", 0, kLargest);
    // A base that was changed on purpose (--allow-config-change) keeps the drops made so far.
    const double base = object.get_double("base", 0, kLargest);
    if (base != options_.base) plateau_rate_ = base > 0 ? plateau_rate_ / base * options_.base : options_.base;
    best_ = object.find_double("best", -kLargest, kLargest).value_or(std::numeric_limits<double>::infinity());
    bad_ = object.get_int("bad", 0, std::numeric_limits<int64_t>::max());
}

}  // namespace lc::train
