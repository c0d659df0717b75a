#include "core/allocator.h"

#include <gtest/gtest.h>

#include <cstring>

#include "core/cuda/runtime.h"
#include "core/tensor.h"

namespace lc {
namespace {

TEST(Allocator, HandsFreedBlocksOutAgain) {
    Allocator& cpu = allocator({});
    cpu.release_cached();
    std::byte* first = cpu.allocate(100000, {}).get();  // freed at once
    const int64_t asked = cpu.stats().system_allocations;
    for (int i = 0; i < 10; ++i) {
        const auto block = cpu.allocate(99990, {});  // the same size class
        EXPECT_EQ(block.get(), first);
    }
    EXPECT_EQ(cpu.stats().system_allocations, asked);
}

TEST(Allocator, CountsBytes) {
    Allocator& cpu = allocator({});
    cpu.release_cached();
    const AllocatorStats before = cpu.stats();
    {
        const auto a = cpu.allocate(1 << 20, {}), b = cpu.allocate(1 << 20, {});
        EXPECT_GE(cpu.stats().bytes_in_use, before.bytes_in_use + (2 << 20));
        EXPECT_LE(cpu.stats().bytes_in_use, before.bytes_in_use + (9 << 18)) << "at most 12.5 % are lost";
    }
    EXPECT_EQ(cpu.stats().bytes_in_use, before.bytes_in_use);
    EXPECT_GE(cpu.stats().peak_bytes, before.bytes_in_use + (2 << 20));
    EXPECT_GE(cpu.stats().bytes_reserved, before.bytes_in_use + (2 << 20)) << "freed blocks stay cached";
    cpu.reset_peak();
    EXPECT_EQ(cpu.stats().peak_bytes, before.bytes_in_use);
    cpu.release_cached();
    EXPECT_EQ(cpu.stats().bytes_reserved, before.bytes_in_use);
}

TEST(Allocator, KeepsWhatSomethingRecordedUses) {
    Allocator& cpu = allocator({});
    cpu.release_cached();
    std::byte* first = cpu.allocate(1 << 20, {}).get();  // freed at once
    const int64_t reserved = cpu.stats().bytes_reserved;
    cpu.keep_cached({}, true);
    cpu.release_cached();
    EXPECT_EQ(cpu.stats().bytes_reserved, reserved);
    EXPECT_EQ(cpu.allocate(1 << 20, {}).get(), first);
    cpu.keep_cached({}, false);
    cpu.release_cached();
    EXPECT_LT(cpu.stats().bytes_reserved, reserved);
}

TEST(Allocator, BlocksAreAlignedAndApart) {
    Allocator& cpu = allocator({});
    for (const int64_t bytes : {0, 1, 63, 64, 65, 1000, 4097}) {
        const auto a = cpu.allocate(bytes, {}), b = cpu.allocate(bytes, {});
        EXPECT_EQ(reinterpret_cast<uintptr_t>(a.get()) % 64, 0u);
        ASSERT_NE(a.get(), b.get());
        std::memset(a.get(), 1, static_cast<size_t>(bytes));
        std::memset(b.get(), 2, static_cast<size_t>(bytes));
        for (int64_t i = 0; i < bytes; ++i) ASSERT_EQ(static_cast<int>(a.get()[i]), 1);
    }
    EXPECT_THROW((void)cpu.allocate(-1, {}), Error);
    if (cuda::device_count() == 0) {
        EXPECT_THROW(Tensor::empty({1}, DType::f32, {DeviceType::cuda, 0}), Error);
    }
}

TEST(Allocator, GuardsNoticeWritesBesideABlock) {
    const ScopedMemoryDebug debug;
    const int64_t before = ScopedMemoryDebug::guard_violations();
    {
        const auto block = allocator({}).allocate(100, {});
        std::memset(block.get(), 0, 100);
    }
    EXPECT_EQ(ScopedMemoryDebug::guard_violations(), before);
    {
        const auto block = allocator({}).allocate(100, {});
        block.get()[100] = std::byte{1};
    }
    EXPECT_EQ(ScopedMemoryDebug::guard_violations(), before + 1);
    {
        const auto block = allocator({}).allocate(100, {});
        block.get()[-1] = std::byte{1};
    }
    EXPECT_EQ(ScopedMemoryDebug::guard_violations(), before + 2);
}

TEST(Allocator, DebugMemoryStartsAsNan) {
    const ScopedMemoryDebug debug;
    for (const DType dtype : {DType::f64, DType::f32, DType::bf16, DType::f16})
        for (const double value : Tensor::empty({7}, dtype).to_vector<double>())
            EXPECT_NE(value, value) << name_of(dtype);
}

}  // namespace
}  // namespace lc
