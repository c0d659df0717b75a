#include "train/dry_run.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "core/cuda/runtime.h"
#include "core/log.h"
#include "train/memory_plan.h"

namespace lc::train {
namespace {

constexpr double kGiB = 1024.0 * 1024 * 1024;

struct PlannedStage {
    const char* name;
    PlanInput input;
};

// Chunks of instruction data have unequal numbers of labels.
bool unequal_labels(const DataOptions& data, bool token_weighted) {
    return !token_weighted && data.format != io::DataFormat::text && data.format != io::DataFormat::automatic;
}

std::vector<PlannedStage> stages_of(const LinearizeOptions& options) {
    PlanInput input{.config = read_plan_config(options.model.directory),
                    .attention = options.attention,
                    .lora = options.lora,
                    .seq_len = options.data.seq_len,
                    .eval_batch = options.eval_batch,
                    .placement = options.placement,
                    .checkpoint_layers = options.checkpoint_layers,
                    .transfer_fp8 = options.transfer_fp8,
                    .train_feature_maps = options.train_feature_maps || !options.transfer,
                    .unequal_labels = unequal_labels(options.data, options.token_weighted)};
    if (!options.feature_map.empty())
        models::apply_feature_map_name(input.attention, options.feature_map, input.config.head_dim);
    std::vector<PlannedStage> stages;
    const auto add = [&](const char* name, PlanStage stage, const LoopOptions& loop) {
        input.stage = stage, input.batch_size = loop.batch_size, input.accumulate = loop.accumulate;
        stages.push_back({name, input});
    };
    if (options.transfer) add("transfer", PlanStage::transfer, options.transfer_loop);
    if (options.finetune) add("finetune", PlanStage::finetune, options.finetune_loop);
    return stages;
}

std::vector<PlannedStage> stages_of(const PretrainOptions& options) {
    return {{"pretrain",
             {.config = read_plan_config(options.model_config),
              .stage = PlanStage::pretrain,
              .batch_size = options.loop.batch_size,
              .accumulate = options.loop.accumulate,
              .seq_len = options.data.seq_len,
              .eval_batch = options.eval_batch,
              .placement = options.placement,
              .checkpoint_layers = options.checkpoint_layers,
              .unequal_labels = unequal_labels(options.data, options.token_weighted)}}};
}

// Of the device, if it is on this machine.
std::optional<int64_t> memory_of(Device device) {
    if (!device.is_cuda() || device.index >= cuda::device_count()) return std::nullopt;
    return cuda::device_info(device.index).memory_bytes;
}

// A checkpoint holds parameters, both moments and the best parameters, f32 each.
std::string disk_row(const MemoryPlan& plan, int64_t keep) {
    const DType wide = plan.input.placement.wide();
    const double bytes = 4.0 * static_cast<double>(plan.trained) * static_cast<double>(size_of(wide));
    return fmt::format("disk: {:.2f} GiB a checkpoint, {} kept and the best: {:.2f} GiB\n", bytes / kGiB, keep,
                       bytes * static_cast<double>(keep + 1) / kGiB);
}

std::string tables(const std::vector<PlannedStage>& stages, int64_t keep) {
    std::string text;
    for (const auto& [name, input] : stages) {
        const MemoryPlan plan = plan_memory(input);
        text += fmt::format("{}stage {}, {} on {}\n", text.empty() ? "" : "\n", name, name_of(input.placement.dtype),
                            input.placement.device.str());
        text += memory_table(plan, memory_of(input.placement.device)) + disk_row(plan, keep);
    }
    return text;
}

void require(const std::vector<PlannedStage>& stages) {
    const Device device = stages.front().input.placement.device;
    if (!device.is_cuda()) return;
    const int64_t free = cuda::device_info(device.index).free_bytes;
    for (const auto& [name, input] : stages) {
        const MemoryPlan plan = plan_memory(input);
        if (plan.total() <= free) continue;
        log_info("{}", memory_table(plan, free));
        fail(ErrorKind::Resource,
             "{}: stage {} needs {:.2f} GiB of device memory, {:.2f} GiB are free — the table above names flags that "
             "reduce it",
             device.str(), name, static_cast<double>(plan.total()) / kGiB, static_cast<double>(free) / kGiB);
    }
}

}  // namespace

std::string dry_run(const LinearizeOptions& options) {
    return tables(stages_of(options), options.keep);
}
std::string dry_run(const PretrainOptions& options) {
    return tables(stages_of(options), options.keep);
}
void require_device_memory(const LinearizeOptions& options) {
    require(stages_of(options));
}
void require_device_memory(const PretrainOptions& options) {
    require(stages_of(options));
}

}  // namespace lc::train
