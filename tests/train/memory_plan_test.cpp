// The memory plan: exact enough on the CPU, and what it says about models that no test can run.
#include "io/json.h"
#include "tests/io/faults.h"
#include "tests/train/memory_cases.h"
#include "train/memory_ghost.h"
#include "train/memory_workspace.h"

namespace lc::train {
namespace {

using memory::allocated_bytes;
using memory::Ledger;
using memory::Owner;
using models::AttentionKind;
using test::Case;
using test::cases;
using test::config_of;
using test::expect_planned;
using test::models_under_test;

class MemoryPlanOf : public ::testing::TestWithParam<Case> {};

TEST_P(MemoryPlanOf, IsWhatTheCpuMeasures) {
    expect_planned(GetParam().input);
}

INSTANTIATE_TEST_SUITE_P(Stages, MemoryPlanOf, ::testing::ValuesIn(cases()),
                         [](const auto& test) { return test.param.name; });

TEST(MemoryPlan, KnowsTheAllocatorsSizeClasses) {
    Allocator& memory = allocator({});
    for (const int64_t bytes : {1, 64, 65, 1000, 1025, 4097, 65536, 70000, 1 << 20, (1 << 20) + 1, 12345678}) {
        const int64_t before = memory.stats().bytes_in_use;
        const auto block = memory.allocate(bytes, current_stream({}));
        EXPECT_EQ(memory.stats().bytes_in_use - before, allocated_bytes(bytes, DeviceType::cpu)) << bytes;
    }
}

// Two blocks of a class one after the other are one block of cache; two at a time are two.
TEST(MemoryPlan, LedgerCountsPeakOwnersAndCache) {
    Ledger ledger(DeviceType::cuda);
    const auto kept = ledger.take(1024, Owner::weights);
    for (int i = 0; i < 2; ++i) ledger.take(2048, Owner::transient);
    EXPECT_EQ(ledger.peak(), 1024 + 2048);
    EXPECT_EQ(ledger.reserved(), 1024 + 2048);
    {
        const auto a = ledger.take(2048, Owner::transient), b = ledger.take(2048, Owner::loss);
        a->save();
        const auto c = ledger.take(256, Owner::transient);
        EXPECT_EQ(ledger.at_peak()[static_cast<size_t>(Owner::tape)], 2048);
        a->release();
    }
    const auto other = ledger.take(300, Owner::transient);
    EXPECT_EQ(ledger.peak(), 1024 + 2 * 2048 + 256);
    EXPECT_EQ(ledger.reserved(), 1024 + 2 * 2048 + 256 + 512);
    EXPECT_EQ(ledger.at_peak()[static_cast<size_t>(Owner::weights)], 1024);
    EXPECT_EQ(ledger.highest()[static_cast<size_t>(Owner::transient)], 2048 + 256);
}

PlanInput llama(PlanStage stage) {
    models::DecoderConfig c;
    c.vocab_size = 128256, c.hidden_size = 4096, c.intermediate_size = 14336, c.num_layers = 32;
    c.num_heads = 32, c.num_kv_heads = 8, c.head_dim = 128, c.max_positions = 131072;
    PlanInput input{.config = c, .stage = stage, .batch_size = 8, .seq_len = 1024};
    input.placement = {{DeviceType::cuda, 0}, DType::bf16};
    return input;
}

int64_t bytes_of(const MemoryPlan& plan, std::string_view owner) {
    for (const MemoryPlan::Row& row : plan.rows)
        if (row.owner == owner) return row.bytes;
    return -1;
}

// What is certain about Llama 3.1 8B: 8.03e9 bf16 weights; LoRA of rank 8 on q, k, v, o is 6.8e6 numbers; and the tape
// of a layer holds h, x, q, k, v, y, sum, gate and up: beside frozen weights nothing else is kept.
TEST(MemoryPlan, OfAnEightBillionModel) {
    const PlanInput input = llama(PlanStage::finetune);
    const MemoryPlan plan = plan_memory(input);
    EXPECT_NEAR(static_cast<double>(bytes_of(plan, "weights")), 2 * 8.03e9, 0.05e9 + 2 * 2 * 131072 * 64 * 4);
    EXPECT_NEAR(static_cast<double>(bytes_of(plan, "optimizer")), 2 * 4 * 6815744.0, 1e6);
    EXPECT_EQ(bytes_of(plan, "best so far") * 2, bytes_of(plan, "optimizer"));
    const double layer = 2.0 * 8 * 1024 * (5 * 4096 + 2 * 1024 + 2 * 14336);
    EXPECT_GE(static_cast<double>(bytes_of(plan, "activations, saved")), 31 * layer);
    EXPECT_LE(static_cast<double>(bytes_of(plan, "activations, saved")), 33 * layer);
    PlanInput recomputed = input;
    recomputed.checkpoint_layers = true;
    EXPECT_LT(plan_memory(recomputed).total(), plan.total() / 2);
    // Stage 1 holds no tape of layers: with one layer or with all, activations are the same.
    PlanInput transfer = llama(PlanStage::transfer), shallow = transfer;
    shallow.config.num_layers = 3;
    const char* one_layer = "activations, one layer";
    EXPECT_EQ(bytes_of(plan_memory(transfer), one_layer), bytes_of(plan_memory(shallow), one_layer));
}

// Llama-3-8B's attention on 132 multiprocessors: eight sequences of 1024 fill them, one of 16384 is walked in four segments.
TEST(MemoryPlan, CountsTheSegmentsOfALongSequence) {
    memory::AttentionCall call{.batch = 8, .heads = 32, .kv_heads = 8, .length = 1024, .head_dim = 128, .features = 64};
    call.dtype = DType::bf16;
    const auto total = [](const memory::Buffers& bytes) {
        return std::accumulate(bytes.begin(), bytes.end(), int64_t{});
    };
    EXPECT_EQ(total(memory::cuda_linearized_attention_workspace(call)), 0);
    call.batch = 1, call.length = 16384;
    const int64_t states = (32 * 3 + 132 + 32 * 3) * 128 * 129 * 4, rows = 32 * 16384, map = 128 * 64 * 4;
    EXPECT_EQ(total(memory::cuda_linearized_attention_workspace(call)), states);
    EXPECT_EQ(total(memory::cuda_transfer_loss_workspace(call)), states + 2 * 8 * 32 * 4);
    call.dmaps = true;
    const int64_t gradients = rows * (2 * 128 + 3 * 4) + 2 * 32 * 4 * map;
    EXPECT_EQ(total(memory::cuda_linearized_attention_workspace(call)), states + gradients + 8 * 32 * 4);
    EXPECT_EQ(total(memory::cuda_transfer_loss_workspace(call)), states + gradients + 2 * 8 * 32 * 4);
    call.multiprocessors = 32;
    EXPECT_LT(total(memory::cuda_transfer_loss_workspace(call)), gradients);
}

// Query, key and value of Llama-3-8B together: 80 strips of 128 columns, and so 6 slices of the rows.
TEST(MemoryPlan, CountsTheSlicesOfLoraGradients) {
    const memory::LoraCall call{.rows = 8192, .in = 4096, .rank = 8, .outs = {4096, 1024, 1024}, .dtype = DType::bf16};
    const memory::Buffers bytes = memory::lora_gradients_workspace(call, DeviceType::cuda);
    EXPECT_EQ(std::accumulate(bytes.begin(), bytes.end(), int64_t{}), 4 * 6 * (8 * 6144 + 24 * 4096));
    EXPECT_EQ(memory::lora_gradients_workspace(call, DeviceType::cpu), memory::Buffers{});
}

// Llama-3-8B's frozen head: shares of 2048 rows in bf16 and their product with W, 501 tiles of columns; evaluation stores no shares.
TEST(MemoryPlan, CountsTheSharesOfAFrozenHead) {
    memory::LossCall call{.rows = 8192, .labelled = 8184, .vocabulary = 128256, .hidden = 4096};
    call.dtype = call.weight_dtype = DType::bf16;
    call.is_frozen = true;
    const auto total = [&] {
        const memory::Buffers bytes = memory::loss_workspace(call, DeviceType::cuda);
        return std::accumulate(bytes.begin(), bytes.end(), int64_t{});
    };
    const int64_t of_rows = 3 * 4 * 8192 + 2 * 4 + 2048 * (4 + 8 * 501 + 8);
    EXPECT_EQ(total(), of_rows);
    call.dhidden = true;
    EXPECT_EQ(total(), of_rows + 2048 * (2 * 128256 + 4 * 4096));
    call.is_frozen = false;
    EXPECT_EQ(total(), 1024 * 4 * 128256 + 4 * 8192 + 4);
}

TEST(MemoryPlan, TableSaysWhatWouldFit) {
    const MemoryPlan plan = plan_memory(llama(PlanStage::finetune));
    const int64_t gib = int64_t{1} << 30;
    const std::string fits = memory_table(plan, 1000 * gib);
    EXPECT_EQ(fits.find("too little"), std::string::npos);
    EXPECT_NE(fits.find("of it used"), std::string::npos);
    EXPECT_EQ(memory_table(plan, std::nullopt).find("of it used"), std::string::npos);
    const std::string tight = memory_table(plan, plan.total() - gib);
    for (const char* part : {"too little memory: 1.00 GiB", "--batch-size 4 --accumulate 16", "--checkpoint-layers",
                             "--seq-len 512", ", fits"})
        EXPECT_NE(tight.find(part), std::string::npos) << part << "\n" << tight;
    EXPECT_EQ(memory_table(plan, gib).find(", fits"), std::string::npos);
}

TEST(MemoryPlan, RowsAddUpToTheTotal) {
    const MemoryPlan plan = plan_memory(models_under_test()[2]);
    int64_t sum = 0;
    for (const MemoryPlan::Row& row : plan.rows) {
        sum += row.bytes;
        EXPECT_GE(row.highest, row.bytes) << row.owner;
        EXPECT_FALSE(row.what.empty()) << row.owner;
    }
    EXPECT_EQ(sum, plan.total());
    EXPECT_GT(plan.rows.back().bytes, 0) << "nine chunks are evaluated at a time, three learned from";
}

TEST(MemoryPlan, RefusesWhatCannotRun) {
    const auto refused = [](auto&& change) {
        PlanInput input = models_under_test()[0];
        change(input);
        EXPECT_THROW(plan_memory(input), Error);
    };
    refused([](PlanInput& in) { in.seq_len = in.config.max_positions + 1; });
    refused([](PlanInput& in) { in.batch_size = 0; });
    refused([](PlanInput& in) { in.placement.dtype = DType::bf16; });
    refused([](PlanInput& in) { in.config.num_kv_heads = 3; });
    refused([](PlanInput& in) { in.attention.window_size = 0; });
    refused([](PlanInput& in) { in.attention.kind = AttentionKind::softmax; });
}

TEST(MemoryPlan, ReadsAConfigWithoutWeights) {
    const io::test::ScratchDir scratch;
    const models::DecoderConfig config = config_of(4, 2, 64, true);
    scratch.write("config.json", models::hf_config_from(config, DType::bf16).to_json().dump());
    for (const auto& path : {scratch.path(), scratch / "config.json"}) {
        const models::DecoderConfig read = read_plan_config(path);
        EXPECT_EQ(read.num_parameters(), config.num_parameters());
        EXPECT_EQ(read.max_positions, config.max_positions);
    }
    EXPECT_THROW(read_plan_config(scratch / "nothing"), Error);
}

}  // namespace
}  // namespace lc::train
