// Whole runs on the GPU: the CPU's losses, the same bits every time, no memory asked for once warm.
#include <cmath>
#include <fstream>

#include "autograd/node.h"
#include "core/allocator.h"
#include "core/profile.h"
#include "tests/gpu/gpu.h"
#include "tests/train/memory_cases.h"
#include "tests/train/tiny.h"
#include "train/attention_transfer.h"
#include "train/next_token.h"
#include "train/pretrain.h"

namespace lc::train {
namespace {

using lc::test::kGpu;
using lc::test::kGpuBf16;
using lc::test::kGpuF32;
using lc::test::OnGpu;
using models::Placement;
using test::ScratchDir;
using test::tiny_options;
using test::TinyWorld;
namespace fs = std::filesystem;

class TrainOnGpu : public OnGpu {};

LinearizeOptions options_for(const fs::path& run, const Placement& placement, int64_t steps) {
    LinearizeOptions options = tiny_options(run);
    options.placement = placement;
    options.transfer_budget.steps = options.finetune_budget.steps = steps;
    return options;
}

std::vector<double> losses_of(const fs::path& run, const std::string& stage) {
    std::vector<double> losses;
    std::ifstream file(run / "metrics.jsonl");
    for (std::string line; std::getline(file, line);) {
        const Record record = Record::parse(line);
        if (record.value("stage", "") == stage && record.contains("loss") && !record.contains("event"))
            losses.push_back(record["loss"].get<double>());
    }
    return losses;
}

std::string weights_of(const fs::path& run) {
    return io::read_file(run / "feature_maps.safetensors", 1 << 30) +
           io::read_file(run / "adapter_model.safetensors", 1 << 30);
}

TEST_F(TrainOnGpu, FiftyStepsOfBothStagesHaveTheCpusLosses) {
    const ScratchDir scratch;
    ASSERT_TRUE(linearize(options_for(scratch / "cpu", {}, 50), {}));
    ASSERT_TRUE(linearize(options_for(scratch / "gpu", kGpuF32, 50), {}));
    for (const char* stage : {"transfer", "finetune"}) {
        const auto cpu = losses_of(scratch / "cpu", stage), gpu = losses_of(scratch / "gpu", stage);
        ASSERT_EQ(cpu.size(), 50u) << stage;
        ASSERT_EQ(gpu.size(), 50u) << stage;
        for (size_t i = 0; i < cpu.size(); ++i)
            EXPECT_NEAR(gpu[i], cpu[i], 1e-3 * cpu[i]) << stage << " step " << i + 1;
    }
}

TEST_F(TrainOnGpu, TwoRunsAreBitwiseEqual) {
    for (const Placement& placement : {kGpuF32, kGpuBf16}) {
        const ScratchDir scratch;
        ASSERT_TRUE(linearize(options_for(scratch / "a", placement, 7), {}));
        ASSERT_TRUE(linearize(options_for(scratch / "b", placement, 7), {}));
        EXPECT_TRUE(weights_of(scratch / "a") == weights_of(scratch / "b")) << name_of(placement.dtype);
    }
}

// Products of codes on the tensor cores that have them, and of what codes stand for on the CPU.
TEST_F(TrainOnGpu, TransferInFp8HasTheCpusLosses) {
    const ScratchDir scratch;
    for (const auto& [name, placement] :
         {std::pair<const char*, Placement>{"cpu", {}}, {"a", kGpuBf16}, {"b", kGpuBf16}}) {
        LinearizeOptions options = options_for(scratch / name, placement, 12);
        options.transfer_fp8 = true;
        ASSERT_TRUE(linearize(options, {}));
    }
    const auto cpu = losses_of(scratch / "cpu", "transfer"), gpu = losses_of(scratch / "a", "transfer");
    ASSERT_EQ(gpu.size(), 12u);
    for (size_t i = 0; i < gpu.size(); ++i) EXPECT_NEAR(gpu[i], cpu[i], 0.05 * cpu[i]) << "step " << i + 1;
    EXPECT_TRUE(weights_of(scratch / "a") == weights_of(scratch / "b"));
}

TEST_F(TrainOnGpu, AResumedRunIsTheUnbrokenOne) {
    const ScratchDir scratch;
    ASSERT_TRUE(linearize(options_for(scratch / "unbroken", kGpuBf16, 7), {}));
    for (const char* stage : {"transfer", "finetune"}) {
        const fs::path run = scratch / stage;
        const StopCheck after_four = [&] { return losses_of(run, stage).size() >= 4; };
        ASSERT_FALSE(linearize(options_for(run, kGpuBf16, 7), after_four));
        LinearizeOptions resumed = options_for(run, kGpuBf16, 7);
        resumed.resume.automatic = true;
        ASSERT_TRUE(linearize(resumed, {}));
        EXPECT_TRUE(weights_of(run) == weights_of(scratch / "unbroken")) << stage;
    }
}

TEST_F(TrainOnGpu, SoftmaxIsTheControl) {
    const ScratchDir scratch;
    LinearizeOptions options = options_for(scratch / "run", kGpuF32, 7);
    options.attention.kind = models::AttentionKind::softmax, options.transfer = false;
    ASSERT_TRUE(linearize(options, {}));
    models::Decoder decoder = models::load_model(options.model, {.placement = kGpuF32});
    models::apply_run(decoder, options.out, models::hash_of(options.model));
    EXPECT_FALSE(decoder.attention().has_value());
    EXPECT_TRUE(decoder.layer(0).q.lora_a.defined());
}

TEST_F(TrainOnGpu, PretrainingLearnsInBf16) {
    const ScratchDir scratch;
    PretrainOptions options;
    options.model_config = TinyWorld::get().model(), options.tokenizer = TinyWorld::get().tokenizer();
    options.out = scratch / "model";
    options.placement = kGpuBf16;
    options.data = {.file = TinyWorld::get().text(), .format = io::DataFormat::text, .seq_len = 24};
    options.budget.steps = 30;
    options.loop.batch_size = 4, options.loop.accumulate = 1, options.loop.log_every = 0;
    options.loop.schedule.base = 5e-3;
    ASSERT_TRUE(pretrain(options, {}));
    const auto losses = losses_of(scratch / "model", "pretrain");
    ASSERT_EQ(losses.size(), 30u);
    EXPECT_LT(losses.back(), 0.7 * losses.front());
}

// Zones that are timed do not overlap, so with a profile the student takes its turn.
TEST_F(TrainOnGpu, AStudentBesideItsTeacherLearnsTheSameBits) {
    PlanInput input{.config = test::config_of(4, 2, 64, true), .batch_size = 4, .seq_len = 512, .placement = kGpuBf16};
    models::Decoder decoder = test::make_decoder(input);
    const PackedChunks data = test::chunks_of(input, 8, false);
    AttentionTransfer stage(decoder, data, 4);
    const std::vector<Batch> batches{make_batch(data, std::vector<int64_t>{0, 1, 2, 3}),
                                     make_batch(data, std::vector<int64_t>{4, 5, 6, 7})};
    const auto learned = [&](bool in_turn) {
        profile_enable(in_turn, kGpu);
        std::vector<double> numbers = stage.accumulate(batches).layer_losses;
        profile_enable(false);
        for (models::NamedTensor parameter : decoder.feature_map_parameters()) {
            const std::vector<double> gradient = grad_of(parameter.tensor).to_vector<double>();
            numbers.insert(numbers.end(), gradient.begin(), gradient.end());
            set_grad(parameter.tensor, {});
        }
        return numbers;
    };
    const std::vector<double> in_turn = learned(true);
    for (int run = 0; run < 5; ++run) EXPECT_TRUE(learned(false) == in_turn) << "run " << run;
}

// Blocks come from the allocator's cache once two steps have been made.
TEST_F(TrainOnGpu, AWarmStepAsksTheDriverForNoMemory) {
    const io::Tokenizer tokenizer = io::Tokenizer::load(TinyWorld::get().tokenizer());
    const TrainingData data = load_training_data({.file = TinyWorld::get().text(), .seq_len = 32}, tokenizer, 300);
    models::Decoder decoder = models::load_model({TinyWorld::get().model(), {}}, {.placement = kGpuBf16});
    decoder.linearize({.window_size = 4}, 1);
    decoder.add_lora({.rank = 2}, 1);
    const auto expect_quiet = [&](Stage& stage) {
        ChunkStream stream(data.train, 1, true);
        Optimizer optimizer(stage.groups(), {});
        const std::vector<double> rates(stage.groups().size(), 1e-3);
        int64_t warm = 0;
        for (int step = 0; step < 6; ++step) {
            if (step == 2) warm = allocator(kGpu).stats().system_allocations;
            const std::vector<Batch> batches{stream.next(2), stream.next(2)};
            optimizer.zero_grad();
            stage.accumulate(batches);
            optimizer.step(rates);
        }
        EXPECT_EQ(allocator(kGpu).stats().system_allocations, warm) << stage.name();
    };
    AttentionTransfer transfer(decoder, data.validation, 2);
    expect_quiet(transfer);
    NextTokenStage finetune("finetune", decoder, decoder.lora_parameters(), data.validation,
                            {.forward = {.mode = models::AttentionMode::Linearized}});
    expect_quiet(finetune);
}

}  // namespace
}  // namespace lc::train
