// Tests of whole models on a GPU skip where there is none; CTest counts them as skipped.
#pragma once
#include <gtest/gtest.h>

#include "core/cuda/runtime.h"
#include "models/placement.h"

namespace lc::test {

inline constexpr Device kGpu{DeviceType::cuda, 0};
inline constexpr models::Placement kGpuF32{.device = kGpu, .dtype = DType::f32};
inline constexpr models::Placement kGpuBf16{.device = kGpu, .dtype = DType::bf16};

class OnGpu : public ::testing::Test {
  protected:
    void SetUp() override {
        if (cuda::device_count() == 0) GTEST_SKIP() << "there is no CUDA device";
    }
};

}  // namespace lc::test
