// The GPU draws the CPU's token from the same logits, whatever these are.
#include "tests/gpu/gpu.h"
#include "tests/kernels/sample_problem.h"

namespace lc::kernels {
namespace {

class SampleOnGpu : public test::OnGpu {};

void expect_same(int64_t batch, int64_t v, DType dtype, uint64_t seed) {
    SCOPED_TRACE(fmt::format("{} x {} {}, seed {}", batch, v, name_of(dtype), seed));
    const test::SampleProblem cpu = test::sample_problem(batch, v, dtype, seed), gpu = cpu.to(test::kGpu);
    sample(cpu.args(), Stream{});
    Sample args = gpu.args();
    const Tensor logits = gpu.logits.to(dtype);
    args.logits = logits.view();
    sample(args, current_stream(test::kGpu));
    EXPECT_EQ(gpu.ids.to_vector<int32_t>(), cpu.ids.to_vector<int32_t>());
    EXPECT_EQ(gpu.results.to_vector<int32_t>(), cpu.results.to_vector<int32_t>());
    EXPECT_EQ(gpu.seen.to_vector<int32_t>(), cpu.seen.to_vector<int32_t>());
}

TEST_F(SampleOnGpu, EqualsTheCpuAtEverySize) {
    uint64_t seed = 0;
    for (const DType dtype : {DType::f32, DType::bf16})
        for (const int64_t v : {1, 2, 7, 8, 9, 283, 1024, 8191, 8192, 8193, 20000})
            for (int repeat = 0; repeat < (v < 2000 ? 12 : 3); ++repeat) expect_same(32, v, dtype, seed++);
}

TEST_F(SampleOnGpu, EqualsTheCpuOnRealVocabularies) {
    for (const DType dtype : {DType::f32, DType::bf16})
        expect_same(48, 128256, dtype, 7), expect_same(3, 262144, dtype, 8);
}

// Rows of logits and tables that lie apart, as those of one slot of a running batch do.
TEST_F(SampleOnGpu, TakesOneRowOfMany) {
    const test::SampleProblem cpu = test::sample_problem(6, 283, DType::f32, 5), gpu = cpu.to(test::kGpu);
    sample(cpu.args(), Stream{});
    for (int64_t b = 0; b < 6; ++b) {
        const auto row = [&](const Tensor& x) { return x.sliced(0, b, 1); };
        const test::SampleProblem one{row(gpu.logits),    row(gpu.bias), row(gpu.seen),   row(gpu.settings),
                                      row(gpu.positions), row(gpu.ids),  row(gpu.results)};
        sample(one.args(), current_stream(test::kGpu));
    }
    EXPECT_EQ(gpu.ids.to_vector<int32_t>(), cpu.ids.to_vector<int32_t>());
    EXPECT_EQ(gpu.results.to_vector<int32_t>(), cpu.results.to_vector<int32_t>());
}

}  // namespace
}  // namespace lc::kernels
