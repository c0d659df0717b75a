// What --device and --dtype say, on a machine with or without a GPU.
#include "models/placement.h"

#include <gtest/gtest.h>

#include "core/cuda/runtime.h"
#include "tests/models/tiny.h"

namespace lc::models {
namespace {

std::string refusal(ErrorKind kind, std::string_view device, std::string_view dtype) {
    try {
        placement_from(device, dtype);
    } catch (const Error& error) {
        EXPECT_EQ(error.kind(), kind) << error.what();
        return error.what();
    }
    ADD_FAILURE() << device << " " << dtype << " was accepted";
    return {};
}

TEST(Placement, TheCpuComputesInF32) {
    for (const char* dtype : {"auto", "f32"}) {
        const Placement placement = placement_from("cpu", dtype);
        EXPECT_TRUE(placement.device.is_cpu());
        EXPECT_EQ(placement.dtype, DType::f32);
        EXPECT_EQ(describe(placement), "cpu, f32");
    }
    EXPECT_NE(refusal(ErrorKind::Usage, "cpu", "bf16").find("computes in f32"), std::string::npos);
}

TEST(Placement, AutoTakesAGpuIfThereIsOne) {
    const Placement placement = placement_from("auto", "auto");
    EXPECT_EQ(placement.device.is_cuda(), cuda::device_count() > 0);
    EXPECT_EQ(placement.dtype, placement.device.is_cuda() ? DType::bf16 : DType::f32);
}

TEST(Placement, APlannedGpuNeedNotBeThere) {
    const Placement placement = planned_placement("cuda:3", "auto");
    EXPECT_EQ(placement.device, (Device{DeviceType::cuda, 3}));
    EXPECT_EQ(placement.dtype, DType::bf16);
    EXPECT_EQ(planned_placement("cuda", "f32").dtype, DType::f32);
    EXPECT_THROW(planned_placement("gpu", "auto"), Error);
}

TEST(Placement, UnknownWordsAreWrongUse) {
    for (const char* device : {"gpu", "", "cuda:", "cuda:x", "cuda:-1", "cuda:0x", "CPU", "cuda:99999999999"})
        EXPECT_NE(refusal(ErrorKind::Usage, device, "auto").find("--device must be"), std::string::npos) << device;
    for (const char* dtype : {"f16", "", "float", "f64"})
        EXPECT_NE(refusal(ErrorKind::Usage, "cpu", dtype).find("--dtype must be"), std::string::npos) << dtype;
}

TEST(Placement, AnAbsentGpuIsALackOfResources) {
    EXPECT_NE(refusal(ErrorKind::Resource, "cuda:4096", "auto").find("--device cuda"), std::string::npos);
    if (cuda::device_count() > 0) return;
    EXPECT_NE(refusal(ErrorKind::Resource, "cuda", "auto").find("use --device cpu"), std::string::npos);
}

TEST(Placement, DecodersRefuseWhatTheirDeviceDoesNotComputeIn) {
    EXPECT_THROW(Decoder::random(test::tiny_config(), 1, {.dtype = DType::bf16}), Error);
    EXPECT_THROW(Decoder::random(test::tiny_config(), 1, {.dtype = DType::i32}), Error);
}

}  // namespace
}  // namespace lc::models
