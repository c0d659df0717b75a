#include "train/loop.h"

#include <cmath>
#include <limits>

#include "core/allocator.h"
#include "core/cuda/runtime.h"
#include "core/log.h"
#include "core/profile.h"

namespace lc::train {
namespace {

using Clock = std::chrono::steady_clock;
constexpr int64_t kMaxCount = std::numeric_limits<int64_t>::max();

double milliseconds_since(Clock::time_point start) {
    return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

// JSON knows no infinity and no NaN; null stands for both.
io::Json to_json(const std::vector<double>& values) {
    io::Json array = io::Json::array();
    for (double value : values) array.push_back(std::isfinite(value) ? io::Json(value) : io::Json());
    return array;
}

std::vector<double> doubles_from(const io::Json& array) {
    std::vector<double> values;
    for (const io::Json& value : array)
        values.push_back(value.is_number() ? value.get<double>() : std::numeric_limits<double>::quiet_NaN());
    return values;
}

}  // namespace

double RunContext::total_seconds() const {
    return seconds + std::chrono::duration<double>(Clock::now() - started).count();
}

TrainLoop::TrainLoop(Stage& stage, ChunkStream& data, const LoopOptions& options, RunContext& context)
    : stage_(stage),
      data_(data),
      options_(options),
      context_(context),
      groups_(stage.groups()),
      optimizer_(groups_, options.optimizer),
      selection_(groups_, options.selection),
      progress_(stage.name(), options.steps, options.log_every) {
    LC_REQUIRE(Usage, options.steps >= 0, "{}: steps must be >= 0, got {}", stage.name(), options.steps);
    LC_REQUIRE(Usage, options.batch_size >= 1 && options.accumulate >= 1,
               "{}: batch-size and accumulate must be at least 1, got {} and {}", stage.name(), options.batch_size,
               options.accumulate);
    LC_REQUIRE(Usage,
               stage.has_layer_losses() || (options.selection == Scope::global && options.plateau == Scope::global),
               "{}: has one loss, so selection and plateau scope must be global", stage.name());
    LC_REQUIRE(Internal, !groups_.empty(), "{}: nothing to train", stage.name());
    const size_t schedules = options.plateau == Scope::layer ? groups_.size() : 1;
    schedules_.assign(schedules, Schedule(options.schedule));
    figures_.first_loss = std::numeric_limits<double>::quiet_NaN();
}

std::optional<LoopResult> TrainLoop::run() {
    const ProfileRange range("stage " + stage_.name());
    profile_reset();
    allocator(device()).reset_peak();
    const bool fresh = step_ == 0 && evaluated_ < 0;
    if (fresh) save();  // what earlier stages found out is safe from here on
    while (true) {
        const bool done = stopped_early_ || step_ >= options_.steps;
        try {
            if (evaluation_due()) evaluate();
        } catch (const Interrupted&) {
            progress_.finish();
            save();
            return std::nullopt;
        }
        const bool last = stopped_early_ || step_ >= options_.steps;
        const bool by_step = options_.save_every > 0 && step_ > 0 && step_ % options_.save_every == 0;
        const bool by_time = options_.save_minutes > 0 && milliseconds_since(last_save_) > options_.save_minutes * 60e3;
        const bool stop = !done && context_.stop && context_.stop();
        if (last || by_step || by_time || stop) save();
        if (last) break;
        if (stop) {
            progress_.finish();
            return std::nullopt;
        }
        profiled_step();
    }
    progress_.finish();
    if (options_.profile) print_profile();
    selection_.load_best();
    figures_.steps = step_, figures_.skipped = skipped_, figures_.memory = peak_memory();
    figures_.best_step = selection_.best_step(), figures_.best_loss = selection_.best_loss();
    return figures_;
}

void TrainLoop::profiled_step() {
    ++steps_here_;
    if (steps_here_ == options_.profile_first) synchronize(device()), cuda::profiler_start();
    if (options_.profile) profile_enable(true, device());
    step();
    profile_enable(false);
    if (steps_here_ == options_.profile_last) synchronize(device()), cuda::profiler_stop();
}

Device TrainLoop::device() const {
    return groups_.front().parameters.front().tensor.device();
}

int64_t TrainLoop::peak_memory() const {
    return allocator(device()).stats().peak_bytes;
}

bool TrainLoop::evaluation_due() const {
    if (evaluated_ >= step_) return false;
    return step_ == 0 || step_ >= options_.steps || (options_.eval_every > 0 && step_ % options_.eval_every == 0);
}

void TrainLoop::evaluate() {
    const ProfileRange range("evaluate");
    const auto start = Clock::now();
    const Validation validation = stage_.evaluate(context_.stop);
    const bool gain = selection_.observe(step_, validation);
    if (step_ == 0) {
        figures_.first_loss = validation.loss;
        figures_.first_layer_losses = validation.layer_losses;
    } else {
        for (size_t s = 0; s < schedules_.size(); ++s)
            schedules_[s].observe(schedules_.size() == 1 ? validation.loss : validation.layer_losses[s]);
    }
    if (figures_.best_layer_losses.empty()) figures_.best_layer_losses = validation.layer_losses;
    for (size_t l = 0; l < validation.layer_losses.size(); ++l) {
        double& best = figures_.best_layer_losses[l];
        if (options_.selection == Scope::global ? gain : validation.layer_losses[l] < best)
            best = validation.layer_losses[l];
    }
    evaluated_ = step_;
    if (options_.early_stop > 0 && selection_.evaluations_without_gain() >= options_.early_stop) stopped_early_ = true;

    Record record = {{"stage", stage_.name()}, {"event", "evaluation"}, {"step", step_}, {"loss", validation.loss}};
    if (!validation.layer_losses.empty()) record["mse"] = to_json(validation.layer_losses);
    record.update(validation.details);
    record["best"] = gain;
    record["best_step"] = selection_.best_step();
    record["ms"] = {{"evaluation", milliseconds_since(start)}};
    if (context_.metrics) context_.metrics->write(record);
    progress_.message(fmt::format("{} step {}/{} | validation loss {:.6g}{}", stage_.name(), step_, options_.steps,
                                  validation.loss, gain ? " (best)" : ""));
}

void TrainLoop::step() {
    const auto start = Clock::now();
    std::vector<Batch> batches;
    for (int64_t a = 0; a < options_.accumulate; ++a) batches.push_back(data_.next(options_.batch_size));
    const double data_ms = milliseconds_since(start);

    const auto gradients = Clock::now();
    optimizer_.zero_grad();
    const StepLoss loss = stage_.accumulate(batches);
    const double gradients_ms = milliseconds_since(gradients);

    const auto update = Clock::now();
    ++step_;
    std::vector<double> rates(groups_.size());
    for (size_t g = 0; g < rates.size(); ++g) rates[g] = schedules_[schedules_.size() == 1 ? 0 : g].rate(step_);
    const StepReport report = optimizer_.step(rates, std::isfinite(loss.loss));
    optimizer_.zero_grad();
    const double update_ms = milliseconds_since(update);

    for (const Batch& batch : batches) figures_.tokens += batch.tokens();
    if (report.skipped) ++skipped_;
    write_step(loss, report, {{"data", data_ms}, {"gradients", gradients_ms}, {"optimizer", update_ms}});
    const double total_ms = milliseconds_since(start);
    profiled_seconds_ += total_ms / 1e3;
    const double tokens = static_cast<double>(batches[0].tokens() * options_.accumulate);
    progress_.step({step_, loss.loss, report.grad_norm, rates[0], total_ms, tokens / total_ms * 1e3, peak_memory()});
    count_skip(report.skipped);
}

void TrainLoop::print_profile() const {
    double gemm = 0;
    for (const ProfileEntry& entry : profile_entries())
        if (entry.name == "gemm") gemm += entry.seconds;
    log_info("{}: {:.1f} s in steps of this process, {:.1f} % of it in gemm\n{}", stage_.name(), profiled_seconds_,
             100 * gemm / std::max(profiled_seconds_, 1e-9), profile_table(profiled_seconds_));
}

void TrainLoop::count_skip(bool skipped) {
    skipped_in_row_ = skipped ? skipped_in_row_ + 1 : 0;
    if (!skipped) return;
    progress_.finish();
    log_warning("{} step {}: loss or gradient is not finite; the step is skipped ({} in a row)", stage_.name(), step_,
                skipped_in_row_);
    if (skipped_in_row_ <= options_.max_skips) return;
    fail(ErrorKind::Numerics,
         "{}: {} steps in a row were not finite, the last at step {}, chunks before {} of the data; the last "
         "checkpoint is "
         "good — lower the learning rate or look at the data",
         stage_.name(), skipped_in_row_, step_, data_.position());
}

void TrainLoop::write_step(const StepLoss& loss, const StepReport& report, const Record& milliseconds) {
    if (!context_.metrics) return;
    Record record = {{"stage", stage_.name()}, {"step", step_}, {"loss", loss.loss}};
    if (!loss.layer_losses.empty()) record["mse"] = to_json(loss.layer_losses);
    record["lr"] = schedules_[0].rate(step_);
    record["grad_norm"] = report.grad_norm;
    record["skipped"] = report.skipped;
    record["skips"] = skipped_;
    record["epoch"] = data_.epoch();
    record["data_position"] = data_.position();
    record["tokens"] = figures_.tokens;
    double total = 0;
    for (const auto& [phase, ms] : milliseconds.items()) total += ms.get<double>();
    const int64_t step_tokens = figures_.tokens / step_;  // every step has the same number
    record["tokens_per_second"] = static_cast<double>(step_tokens) / std::max(total, 1e-6) * 1e3;
    record["memory"] = peak_memory();
    record["ms"] = milliseconds;
    context_.metrics->write(record);
}

io::Json TrainLoop::state() const {
    io::Json schedules = io::Json::array();
    for (const Schedule& schedule : schedules_) schedules.push_back(schedule.state());
    return {{"step", step_},
            {"evaluated", evaluated_},
            {"skipped", skipped_},
            {"skipped_in_row", skipped_in_row_},
            {"stopped_early", stopped_early_},
            {"updates", optimizer_.updates()},
            {"position", data_.position()},
            {"tokens", figures_.tokens},
            {"first_loss", to_json({figures_.first_loss})},
            {"first_layer_losses", to_json(figures_.first_layer_losses)},
            {"best_layer_losses", to_json(figures_.best_layer_losses)},
            {"schedules", schedules},
            {"selection", selection_.state()}};
}

void TrainLoop::save() {
    last_save_ = Clock::now();
    if (!context_.checkpoints) return;
    if (context_.metrics) context_.metrics->sync();
    Checkpoint checkpoint{
        .stage = stage_.name(), .step = step_, .model_hash = context_.model_hash, .tensors = {}, .state = {}};
    checkpoint.tensors = optimizer_.state();
    for (auto& entry : selection_.tensors()) checkpoint.tensors.push_back(entry);
    for (const auto& entry : context_.frozen) checkpoint.tensors.push_back(entry);
    checkpoint.state = {{"config", context_.config},
                        {"results", context_.results},
                        {"metrics_offset", context_.metrics ? context_.metrics->offset() : 0},
                        {"seconds", context_.total_seconds()},
                        {"loop", state()}};
    context_.checkpoints->save(checkpoint, selection_.best_step());
}

void TrainLoop::restore(const Checkpoint& checkpoint, const std::string& source) {
    const io::JsonObject state = io::JsonObject(checkpoint.state, source).get_object("loop");
    step_ = state.get_int("step", 0, kMaxCount);
    evaluated_ = state.get_int("evaluated", -1, kMaxCount);
    skipped_ = state.get_int("skipped", 0, kMaxCount);
    skipped_in_row_ = state.get_int("skipped_in_row", 0, kMaxCount);
    stopped_early_ = state.get_bool("stopped_early");
    optimizer_.set_updates(state.get_int("updates", 0, kMaxCount));
    data_.seek(state.get_int("position", 0, kMaxCount));
    figures_.tokens = state.get_int("tokens", 0, kMaxCount);
    const std::vector<double> first_loss = doubles_from(state.get_array("first_loss"));
    LC_REQUIRE(Checkpoint, first_loss.size() == 1, "{}: key 'loop.first_loss' must hold one number, got {}", source,
               first_loss.size());
    figures_.first_loss = first_loss[0];
    figures_.first_layer_losses = doubles_from(state.get_array("first_layer_losses"));
    figures_.best_layer_losses = doubles_from(state.get_array("best_layer_losses"));
    const io::Json& schedules = state.get_array("schedules");
    LC_REQUIRE(Checkpoint, schedules.size() == schedules_.size(), "{}: has {} schedules, this run {}", source,
               schedules.size(), schedules_.size());
    for (size_t i = 0; i < schedules_.size(); ++i) schedules_[i].restore(schedules[i], source);
    for (auto& [name, tensor] : optimizer_.state()) {
        Tensor target = tensor;
        const Tensor& saved = checkpoint.tensor(name);
        LC_REQUIRE(Checkpoint, saved.shape() == target.shape(), "{}: '{}' has shape {}, this run {}", source, name,
                   saved.shape(), target.shape());
        target.copy_from(saved);
    }
    selection_.restore(state.get("selection"), checkpoint, source);
}

}  // namespace lc::train
