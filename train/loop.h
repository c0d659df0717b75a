// The loop under every stage: steps, evaluations, selection, checkpoints, signals. Stages say what a gradient is; this
// says when. Its state is a handful of numbers and tensors, all of which go into a checkpoint, so that a resumed run
// continues byte for byte.
#pragma once
#include <chrono>
#include <optional>
#include <string>

#include "train/checkpoint.h"
#include "train/progress.h"
#include "train/schedule.h"
#include "train/selection.h"
#include "train/stage.h"

namespace lc::train {

struct LoopOptions {
    int64_t steps = 0;  // optimizer steps
    int64_t batch_size = 1, accumulate = 8;
    int64_t eval_every = 100;  // steps; 0: only before the first and after the last step
    int64_t save_every = 100;  // steps; 0: only at the ends of a stage
    double save_minutes = 5;   // 0: off
    int64_t log_every = 10;
    bool profile = false;  // print where the time of the steps went
    // Steps first..last, counted from 1 and over this process, lie between cudaProfilerStart and Stop; 0: none.
    int64_t profile_first = 0, profile_last = 0;
    int64_t max_skips = 10;  // non-finite steps in a row that are tolerated
    int64_t early_stop = 0;  // evaluations without gain after which the stage ends; 0: off
    Scope selection = Scope::global, plateau = Scope::global;
    ScheduleOptions schedule;
    OptimizerOptions optimizer;
};

// What the stages of one run share.
struct RunContext {
    CheckpointStore* checkpoints = nullptr;  // null: none are written
    MetricsLog* metrics = nullptr;           // null: none
    io::Json config;                         // what a resumed run must agree with, key by key
    std::string model_hash;
    io::Json results = io::Json::object();               // of earlier stages and evaluations
    std::vector<std::pair<std::string, Tensor>> frozen;  // further tensors of a checkpoint: results of earlier stages
    double seconds = 0;                                  // spent by processes before this one
    std::chrono::steady_clock::time_point started = std::chrono::steady_clock::now();
    StopCheck stop;

    double total_seconds() const;
};

struct LoopResult {
    int64_t steps = 0, skipped = 0, best_step = 0, tokens = 0;
    int64_t memory = 0;  // bytes: the largest that were in use at once
    double best_loss = 0;
    double first_loss = 0;                                      // validation, before the first step
    std::vector<double> first_layer_losses, best_layer_losses;  // validation
};

class TrainLoop {
  public:
    TrainLoop(Stage& stage, ChunkStream& data, const LoopOptions& options, RunContext& context);
    void restore(const Checkpoint& checkpoint, const std::string& source);
    // Runs to the end and loads the best parameters; nullopt when it was asked to stop, after saving a checkpoint.
    std::optional<LoopResult> run();
    int64_t parameter_count() const { return optimizer_.parameter_count(); }

  private:
    bool evaluation_due() const;
    void evaluate();
    void step();
    void profiled_step();
    void count_skip(bool skipped);
    void save();
    io::Json state() const;
    Device device() const;
    int64_t peak_memory() const;
    void print_profile() const;
    void write_step(const StepLoss& loss, const StepReport& report, const Record& milliseconds);

    Stage& stage_;
    ChunkStream& data_;
    LoopOptions options_;
    RunContext& context_;
    std::vector<ParameterGroup> groups_;
    Optimizer optimizer_;
    Selection selection_;
    std::vector<Schedule> schedules_;  // one, or one a group
    Progress progress_;
    double profiled_seconds_ = 0;
    int64_t steps_here_ = 0;  // of this process
    std::chrono::steady_clock::time_point last_save_ = std::chrono::steady_clock::now();
    // What follows is in checkpoints.
    int64_t step_ = 0, evaluated_ = -1, skipped_ = 0, skipped_in_row_ = 0;
    bool stopped_early_ = false;
    LoopResult figures_;
};

}  // namespace lc::train
