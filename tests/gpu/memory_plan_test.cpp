// The memory plan against the measured peak on a GPU, with all that kernels take beside tensors.
#include "tests/gpu/gpu.h"
#include "tests/train/memory_cases.h"

namespace lc::train {
namespace {

class MemoryPlanOnGpu : public ::testing::TestWithParam<test::Case> {};

TEST_P(MemoryPlanOnGpu, IsWhatTheGpuMeasures) {
    if (cuda::device_count() == 0) GTEST_SKIP() << "there is no CUDA device";
    for (const models::Placement& placement : {lc::test::kGpuF32, lc::test::kGpuBf16}) {
        PlanInput input = GetParam().input;
        input.placement = placement;
        test::expect_planned(input);
    }
}

INSTANTIATE_TEST_SUITE_P(Stages, MemoryPlanOnGpu, ::testing::ValuesIn(test::cases()),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace lc::train
