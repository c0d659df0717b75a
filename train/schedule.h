// The learning rate over a run.
//   constant  base after the warm-up
//   cosine    from base to min over the steps after the warm-up
//   plateau   base; times `factor` when the validation loss stopped falling (torch's ReduceLROnPlateau, mode min,
//             relative threshold): an evaluation is a gain when loss < best (1 - threshold); after more than `patience`
//             evaluations in a row without one the rate drops, never below min
// Warm-up: base * step / warmup for steps 1..warmup.
#pragma once
#include <cstdint>
#include <limits>
#include <string_view>

#include "io/json.h"

namespace lc::train {

enum class ScheduleKind : uint8_t { constant, cosine, plateau };
ScheduleKind schedule_kind_from(std::string_view name);  // throws Error(Usage)
std::string_view name_of(ScheduleKind kind);

struct ScheduleOptions {
    ScheduleKind kind = ScheduleKind::plateau;
    double base = 1e-2, min = 1e-5;
    int64_t warmup = 0, total = 0;  // steps; total is needed by cosine
    double factor = 0.1, threshold = 1e-4;
    int64_t patience = 10;  // evaluations
};

class Schedule {
  public:
    explicit Schedule(const ScheduleOptions& options);  // throws Error(Usage) for what makes no sense
    double rate(int64_t step) const;                    // of optimizer step 1, 2, ...
    void observe(double validation_loss);               // after an evaluation; only plateau listens

    io::Json state() const;
    void restore(const io::Json& state, const std::string& source);

  private:
    ScheduleOptions options_;
    double plateau_rate_;  // what is left of base
    double best_ = std::numeric_limits<double>::infinity();
    int64_t bad_ = 0;  // evaluations without gain
};

}  // namespace lc::train
