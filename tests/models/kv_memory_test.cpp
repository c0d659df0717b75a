#include "models/generation/kv_memory.h"

#include <gtest/gtest.h>

namespace lc::models {
namespace {

KvMemory::Shape shape() {
    return {.layers = {true, false, true}, .rows = 3, .kv_heads = 2, .head_dim = 4, .most = 700};
}

TEST(KvMemory, GrowsByDoublingUpToTheModelsLimitAndKeepsWhatIsThere) {
    KvMemory memory(shape());
    EXPECT_EQ(memory.bytes(), 0);
    EXPECT_TRUE(memory.holds(0) && !memory.holds(1) && memory.holds(2));
    memory.grow(5);
    EXPECT_EQ(memory.capacity(), 256);
    EXPECT_EQ(memory.bytes(), 2 * 2 * 3 * 2 * 256 * 4 * 4);
    const int64_t version = memory.version();
    memory.grow(256);
    EXPECT_EQ(memory.version(), version) << "there was room";
    for (const int64_t layer : {0, 2}) {
        Tensor values = memory.values(layer);
        values.fill(2.0 + static_cast<double>(layer));
    }
    memory.grow(257);
    EXPECT_EQ(memory.capacity(), 514);
    EXPECT_NE(memory.version(), version);
    memory.grow(515);
    EXPECT_EQ(memory.capacity(), 700);
    for (const int64_t layer : {0, 2})
        for (const float value : memory.values(layer).sliced(2, 0, 256).to_vector<float>())
            ASSERT_EQ(value, 2.0f + static_cast<float>(layer));
    EXPECT_FALSE(memory.keys(1).defined());
}

TEST(KvMemory, ReservesWhatIsAskedForAndReleasesAll) {
    const auto memory = std::make_shared<KvMemory>(shape());
    memory->reserve(123);
    EXPECT_EQ(memory->capacity(), 123);
    const KvRows rows{memory, 1, 2};
    EXPECT_EQ(rows.keys(2).shape(), (Shape{2, 2, 123, 4}));
    EXPECT_EQ(rows.bytes(), memory->bytes() / 3 * 2);
    rows.values(0).fill(3);
    EXPECT_EQ(memory->values(0).sliced(0, 2, 1).to_vector<float>()[0], 3) << "rows are a part of it";
    const int64_t version = memory->version();
    memory->release();
    EXPECT_EQ(memory->bytes(), 0);
    EXPECT_EQ(memory->capacity(), 0);
    EXPECT_NE(memory->version(), version);
}

TEST(KvMemory, TakesNothingWhereNoLayerNeedsIt) {
    KvMemory::Shape none = shape();
    none.layers = {false, false};
    KvMemory memory(none);
    memory.grow(100), memory.reserve(1000);
    EXPECT_EQ(memory.version(), 0);
    EXPECT_EQ(memory.bytes(), 0);
}

}  // namespace
}  // namespace lc::models
