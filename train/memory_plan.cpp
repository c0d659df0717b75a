#include "train/memory_plan.h"

#include <algorithm>
#include <numeric>

#include "core/check.h"
#include "train/memory_rehearsal.h"

namespace lc::train {
namespace {

using memory::Ledger;
using memory::Owner;

// Of the whole table.
struct Unit {
    const char* name = "GiB";
    double bytes = 1024.0 * 1024 * 1024;
    explicit Unit(int64_t total) {
        if (static_cast<double>(total) < bytes) name = "MiB", bytes /= 1024;
    }
    std::string number(int64_t of) const { return fmt::format("{:.2f}", static_cast<double>(of) / bytes); }
    std::string operator()(int64_t of) const { return number(of) + " " + name; }
};

std::string count_of(int64_t numbers) {
    const auto count = static_cast<double>(numbers);
    return count < 1e9 ? fmt::format("{:.2f} M", count / 1e6) : fmt::format("{:.2f} B", count / 1e9);
}

void require(const PlanInput& in) {
    models::validate(in.config);
    const bool attention = in.stage == PlanStage::transfer ||
                           (in.stage == PlanStage::finetune && in.attention.kind != models::AttentionKind::softmax);
    if (attention) models::validate(in.attention, in.config.head_dim, in.config.num_layers);
    LC_REQUIRE(Usage, in.batch_size >= 1 && in.accumulate >= 1 && in.eval_batch >= 1,
               "batch-size, accumulate and eval-batch must be at least 1, got {}, {} and {}", in.batch_size,
               in.accumulate, in.eval_batch);
    LC_REQUIRE(Usage, in.seq_len >= 2 && in.seq_len <= in.config.max_positions,
               "seq-len must be 2 to {} (max_position_embeddings), got {}", in.config.max_positions, in.seq_len);
    LC_REQUIRE(Usage, in.stage != PlanStage::finetune || in.lora.rank >= 1, "LoRA: rank must be at least 1, got {}",
               in.lora.rank);
    models::validate(in.placement);
    LC_REQUIRE(Usage, in.placement.dtype != DType::f64, "memory plan: training computes in f32 or bf16, not in f64");
}

// Owner by owner, in the order of the table: its name and what its bytes are.
struct Entry {
    Owner owner;
    const char* name;
    std::string what;
};

std::vector<Entry> describe(const PlanInput& in, int64_t trained, const Ledger::Bytes& highest) {
    const models::DecoderConfig& c = in.config;
    const bool pretrain = in.stage == PlanStage::pretrain, transfer = in.stage == PlanStage::transfer;
    const int64_t f = in.attention.feature_dim_for(c.head_dim);
    const std::string chunks = fmt::format("[{},{}] tokens", in.batch_size, in.seq_len);
    const int64_t saved = highest[static_cast<size_t>(Owner::tape)] / c.num_layers;
    std::string tape = fmt::format("{}: {} layers of {}", chunks, c.num_layers, Unit(saved)(saved));
    if (transfer) tape = "gradients that one layer's loss made beside it";
    if (!transfer && in.checkpoint_layers) tape = fmt::format("{}: every layer's input, and the tape of one", chunks);
    std::string maps = fmt::format("maps [{},{},{}]", c.num_heads, c.head_dim, f);
    if (in.stage == PlanStage::finetune)
        maps += fmt::format(", LoRA rank {} on {}", in.lora.rank, fmt::join(in.lora.targets, " "));
    return {
        {Owner::weights, "weights",
         fmt::format("{} parameters in {}{}, rotary tables of {} positions", count_of(c.num_parameters()),
                     name_of(pretrain ? DType::f32 : in.placement.dtype),
                     transfer && in.transfer_fp8 ? ", those of the layers in fp8 too" : "", c.max_positions)},
        {Owner::trainables, "feature maps, LoRA", maps + ", f32"},
        {Owner::moments, "optimizer", fmt::format("AdamW m and v of {} parameters, f32", count_of(trained))},
        {Owner::best, "best so far", "the parameters of the best evaluation"},
        {Owner::gradients, "gradients", fmt::format("of {} parameters, f32", count_of(trained))},
        {Owner::tape, "activations, saved", tape},
        {Owner::transient, "activations, one layer", fmt::format("{}: alive in the layer at work", chunks)},
        {Owner::attention, "attention workspace", "of its kernels: copies, maps, scores, states, partial sums"},
        {Owner::loss, "loss", fmt::format("a chunk of logits over {} ids, gradients made with it", c.vocab_size)},
        {Owner::products, "GEMM workspace", "cuBLASLt's or packed blocks, weights rounded for a product"},
    };
}

struct Change {
    std::string flags;
    PlanInput input;
};

// Smaller micro-batches, evaluations and recomputing leave the step as it is; shorter chunks do not.
std::vector<Change> reductions(const PlanInput& in) {
    std::vector<Change> changes;
    if (in.batch_size > 1) {
        PlanInput less = in;
        less.batch_size = in.batch_size / 2;
        while (in.batch_size % less.batch_size != 0) --less.batch_size;
        less.accumulate = in.accumulate * (in.batch_size / less.batch_size);
        changes.push_back({fmt::format("--batch-size {} --accumulate {}", less.batch_size, less.accumulate), less});
    }
    if (in.eval_batch > 1) {
        PlanInput half = in;
        half.eval_batch = in.eval_batch / 2;
        changes.push_back({fmt::format("--eval-batch {}", half.eval_batch), half});
    }
    if (in.stage != PlanStage::transfer && !in.checkpoint_layers) {
        PlanInput recomputed = in;
        recomputed.checkpoint_layers = true;
        changes.push_back({"--checkpoint-layers", recomputed});
    }
    if (in.seq_len >= 4) {
        PlanInput half = in;
        half.seq_len = in.seq_len / 2;
        changes.push_back({fmt::format("--seq-len {}", half.seq_len), half});
    }
    return changes;
}

std::string too_small(const MemoryPlan& plan, int64_t device_bytes, const Unit& unit) {
    std::string text = fmt::format("too little memory: {} more are needed. What would reduce it:\n",
                                   unit(plan.total() - device_bytes));
    for (const Change& change : reductions(plan.input)) {
        const int64_t total = plan_memory(change.input).total();
        if (total >= plan.total()) continue;
        text += fmt::format("  {:<34} {:>12}, {} less{}\n", change.flags, unit(total), unit(plan.total() - total),
                            total <= device_bytes ? ", fits" : "");
    }
    return text;
}

}  // namespace

models::DecoderConfig read_plan_config(const std::filesystem::path& model_or_config) {
    models::DecoderConfig config = models::decoder_config_from(io::load_hf_config(model_or_config));
    models::validate(config);
    return config;
}

int64_t MemoryPlan::total() const {
    return std::accumulate(rows.begin(), rows.end(), int64_t{0},
                           [](int64_t sum, const Row& row) { return sum + row.bytes; });
}

MemoryPlan plan_memory(const PlanInput& input) {
    require(input);
    // A linearization's perplexities come before the stage and its optimizer; then steps and evaluations.
    Ledger before(input.placement.device.type), ledger(input.placement.device.type);
    if (input.stage == PlanStage::transfer) memory::Rehearsal(input, before).measure();
    memory::Rehearsal stage(input, ledger);
    stage.begin_stage();
    stage.step();
    const int64_t step_peak = ledger.peak();
    const Ledger::Bytes at_peak = ledger.at_peak(), highest = ledger.highest();
    stage.evaluate();

    MemoryPlan plan{.input = input};
    for (const Entry& entry : describe(input, stage.trained(), highest)) {
        const auto i = static_cast<size_t>(entry.owner);
        if (highest[i] > 0) plan.rows.push_back({entry.name, at_peak[i], highest[i], entry.what});
    }
    const int64_t more = std::max({before.peak(), ledger.peak(), step_peak}) - step_peak;
    plan.rows.push_back({"evaluation", more, more,
                         fmt::format("[{},{}] tokens, above the step's peak", input.eval_batch, input.seq_len)});
    plan.trained = stage.trained();
    plan.reserved = std::max(before.reserved(), ledger.reserved());
    return plan;
}

std::string memory_table(const MemoryPlan& plan, std::optional<int64_t> device_bytes) {
    const int64_t total = plan.total();
    const Unit unit(total);
    std::string text = fmt::format("{:<24} {:>9} {:>8}\n", "memory", unit.name, "share");
    const auto line = [&](std::string_view name, int64_t bytes, int64_t of, std::string_view what) {
        const double share = 100.0 * static_cast<double>(bytes) / static_cast<double>(of);
        text += fmt::format("{:<24} {:>9} {:>6.1f} %  {}\n", name, unit.number(bytes), share, what);
    };
    for (const MemoryPlan::Row& row : plan.rows) {
        const bool elsewhere = unit.number(row.highest) != unit.number(row.bytes);
        line(row.owner, row.bytes, total,
             elsewhere ? fmt::format("{} ({} at another time)", row.what, unit(row.highest)) : row.what);
    }
    line("total", total, total, fmt::format("peak in use; {} with the allocator's cache", unit(plan.reserved)));
    if (!device_bytes) return text;
    text += fmt::format("{:<24} {:>9} {:>6.1f} %  of it used\n", "device", unit.number(*device_bytes),
                        100.0 * static_cast<double>(total) / static_cast<double>(*device_bytes));
    return total <= *device_bytes ? text : text + too_small(plan, *device_bytes, unit);
}

}  // namespace lc::train
