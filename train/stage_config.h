// How long a stage runs, and the part of a run's configuration that all stages share: what a resumed run must agree with.
#pragma once
#include <string>

#include "io/json.h"
#include "train/data.h"
#include "train/loop.h"

namespace lc::train {

struct StageBudget {
    int64_t steps = 0;  // optimizer steps; 0: by epochs
    double epochs = 2;
};

// At least one step; the last epoch's chunks that fill no whole step are left out.
int64_t steps_of(const StageBudget& budget, const LoopOptions& loop, int64_t chunks);

// Everything that changes a bit of the result; nothing that does not (threads, logging, how often to save). Keys are the
// option names, those of a stage with "<stage>-" in front ("" for none).
void add_placement_config(io::Json& config, const models::Placement& placement);
void add_data_config(io::Json& config, const DataOptions& options, const TrainingData& data);
void add_loop_config(io::Json& config, const std::string& stage, const LoopOptions& loop);

// Of the program and what it computes with.
Record versions();

}  // namespace lc::train
