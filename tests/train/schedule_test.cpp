#include "train/schedule.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "core/check.h"

namespace lc::train {
namespace {

TEST(Schedule, ConstantWithWarmup) {
    const Schedule schedule({.kind = ScheduleKind::constant, .base = 0.4, .warmup = 4});
    const std::vector<double> expected{0.1, 0.2, 0.3, 0.4, 0.4, 0.4};
    for (size_t i = 0; i < expected.size(); ++i)
        EXPECT_NEAR(schedule.rate(static_cast<int64_t>(i) + 1), expected[i], 1e-15);
}

// By hand: 2 warm-up steps, then half a cosine over 8 steps from 1.0 to 0.2.
TEST(Schedule, CosineByHand) {
    const Schedule schedule({.kind = ScheduleKind::cosine, .base = 1.0, .min = 0.2, .warmup = 2, .total = 10});
    EXPECT_DOUBLE_EQ(schedule.rate(1), 0.5);
    EXPECT_DOUBLE_EQ(schedule.rate(2), 1.0);
    EXPECT_NEAR(schedule.rate(4), 0.2 + 0.4 * (1 + std::sqrt(0.5)), 1e-15);
    EXPECT_NEAR(schedule.rate(6), 0.6, 1e-15);
    EXPECT_NEAR(schedule.rate(8), 0.2 + 0.4 * (1 - std::sqrt(0.5)), 1e-15);
    EXPECT_NEAR(schedule.rate(10), 0.2, 1e-15);
    EXPECT_NEAR(schedule.rate(15), 0.2, 1e-15);
}

// The trace of torch.optim.lr_scheduler.ReduceLROnPlateau(mode="min", factor=0.1, patience=10, threshold=1e-4,
// min_lr=1e-5): the rate falls at the 11th evaluation in a row without gain.
TEST(Schedule, PlateauFallsAtTheEleventhEvaluationWithoutGain) {
    Schedule schedule({.kind = ScheduleKind::plateau, .base = 1e-2});
    schedule.observe(1.0);
    for (int i = 1; i <= 10; ++i) {
        schedule.observe(1.0);
        EXPECT_EQ(schedule.rate(5), 1e-2) << i;
    }
    schedule.observe(1.0);
    EXPECT_NEAR(schedule.rate(5), 1e-3, 1e-18);
    // The count starts again: eleven more.
    for (int i = 1; i <= 10; ++i) schedule.observe(2.0);
    EXPECT_NEAR(schedule.rate(5), 1e-3, 1e-18);
    schedule.observe(2.0);
    EXPECT_NEAR(schedule.rate(5), 1e-4, 1e-18);
    for (int i = 0; i < 11; ++i) schedule.observe(2.0);
    EXPECT_NEAR(schedule.rate(5), 1e-5, 1e-18);
    for (int i = 0; i < 50; ++i) schedule.observe(2.0);
    EXPECT_NEAR(schedule.rate(5), 1e-5, 1e-18) << "never below min";
}

TEST(Schedule, PlateauThresholdIsRelative) {
    Schedule schedule({.kind = ScheduleKind::plateau, .base = 1.0, .min = 0, .patience = 0});
    schedule.observe(1.0);
    schedule.observe(1.0 - 0.9e-4);  // too small a gain
    EXPECT_DOUBLE_EQ(schedule.rate(1), 0.1);
    schedule.observe(1.0 - 1.1e-4);  // still judged against 1.0
    EXPECT_DOUBLE_EQ(schedule.rate(1), 0.1);
    schedule.observe((1.0 - 1.1e-4) * (1 - 0.5e-4));
    EXPECT_NEAR(schedule.rate(1), 0.01, 1e-16);
}

TEST(Schedule, NanAndInfinityAreNoGain) {
    Schedule schedule({.kind = ScheduleKind::plateau, .base = 1.0, .patience = 1});
    schedule.observe(std::nan(""));
    schedule.observe(std::numeric_limits<double>::infinity());
    EXPECT_DOUBLE_EQ(schedule.rate(1), 0.1);
    schedule.observe(5.0);
    schedule.observe(std::nan(""));
    EXPECT_DOUBLE_EQ(schedule.rate(1), 0.1) << "5.0 was a gain";
}

TEST(Schedule, OnlyPlateauListens) {
    Schedule schedule({.kind = ScheduleKind::constant, .base = 1.0, .patience = 0});
    for (int i = 0; i < 5; ++i) schedule.observe(1.0);
    EXPECT_EQ(schedule.rate(9), 1.0);
}

TEST(Schedule, StateGoesThroughJsonUnchanged) {
    const ScheduleOptions options{
        .kind = ScheduleKind::plateau, .base = 0.3, .min = 1e-9, .factor = 0.7, .patience = 2};
    Schedule a(options), fresh(options);
    fresh.restore(io::parse_json(fresh.state().dump(), "test"), "test");  // infinity survives
    for (int i = 0; i < 23; ++i) {
        Schedule b(options);
        b.restore(io::parse_json(a.state().dump(), "test"), "test");
        const double loss = 1.0 / (1 + i % 7);
        a.observe(loss), b.observe(loss);
        ASSERT_EQ(a.rate(1), b.rate(1));
        ASSERT_EQ(a.state(), b.state());
    }
    EXPECT_LT(a.rate(1), 0.3);
}

TEST(Schedule, ChangedBaseKeepsTheDrops) {
    Schedule old({.kind = ScheduleKind::plateau, .base = 1.0, .patience = 0});
    old.observe(1), old.observe(1);
    Schedule changed({.kind = ScheduleKind::plateau, .base = 0.5, .patience = 0});
    changed.restore(old.state(), "test");
    EXPECT_DOUBLE_EQ(changed.rate(1), 0.05);
}

TEST(Schedule, RefusesNonsense) {
    EXPECT_THROW(Schedule({.base = -1}), Error);
    EXPECT_THROW(Schedule({.base = std::nan("")}), Error);
    EXPECT_THROW(Schedule({.min = -1}), Error);
    EXPECT_THROW(Schedule({.warmup = -1}), Error);
    EXPECT_THROW(Schedule({.factor = 1.0}), Error);
    EXPECT_THROW(schedule_kind_from("linear"), Error);
    EXPECT_EQ(schedule_kind_from("cosine"), ScheduleKind::cosine);
}

}  // namespace
}  // namespace lc::train
