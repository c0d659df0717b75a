#include "train/stage_config.h"

#include <algorithm>

#include "kernels/common/gemm.h"

namespace lc::train {

using io::Json;

int64_t steps_of(const StageBudget& budget, const LoopOptions& loop, int64_t chunks) {
    LC_REQUIRE(Usage, budget.steps >= 0 && budget.epochs > 0, "steps must be >= 0 and epochs > 0, got {} and {}",
               budget.steps, budget.epochs);
    if (budget.steps > 0) return budget.steps;
    const double per_step = static_cast<double>(loop.batch_size * loop.accumulate);
    return std::max<int64_t>(1, static_cast<int64_t>(budget.epochs * static_cast<double>(chunks) / per_step));
}

void add_placement_config(Json& config, const models::Placement& placement) {
    config["device"] = placement.device.is_cuda() ? "cuda" : "cpu";  // another GPU of the machine gives the same bits
    config["dtype"] = name_of(placement.dtype);
}

void add_data_config(Json& config, const DataOptions& options, const TrainingData& data) {
    config["data"] = data.hash;
    config["data-format"] = io::name_of(options.format);
    config["data-limit"] = options.limit;
    config["seq-len"] = options.seq_len;
    config["validation-chunks"] = options.validation_chunks;
}

void add_loop_config(Json& config, const std::string& stage, const LoopOptions& loop) {
    config["batch-size"] = loop.batch_size;
    config["accumulate"] = loop.accumulate;
    config["eval-every"] = loop.eval_every;
    config["early-stop"] = loop.early_stop;
    config["max-skips"] = loop.max_skips;
    const auto put = [&](const char* name, Json value) {
        config[stage.empty() ? name : stage + "-" + name] = std::move(value);
    };
    put("steps", loop.steps);
    put("lr", loop.schedule.base);
    put("min-lr", loop.schedule.min);
    put("schedule", name_of(loop.schedule.kind));
    put("warmup", loop.schedule.warmup);
    put("plateau-factor", loop.schedule.factor);
    put("plateau-patience", loop.schedule.patience);
    put("plateau-threshold", loop.schedule.threshold);
    put("beta1", loop.optimizer.beta1);
    put("beta2", loop.optimizer.beta2);
    put("eps", loop.optimizer.eps);
    put("weight-decay", loop.optimizer.weight_decay);
    put("clip-scope", name_of(loop.optimizer.clip));
    put("clip-norm", loop.optimizer.max_norm);
    put("clip-block", loop.optimizer.block_layers);
    put("selection-scope", name_of(loop.selection));
    put("plateau-scope", name_of(loop.plateau));
}

Record versions() {
    return {{"lolcats", LOLCATS_VERSION}, {"gemm", kernels::gemm_backend()}};
}

}  // namespace lc::train
