#include "bench/targets.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/check.h"

namespace lc::bench {
namespace {

using io::Json;
using ::testing::HasSubstr;

Json timed(const char* variant, const char* phase, double us, const char* utc = "2026-01-01T00:00:00Z") {
    return {{"kind", "op"},   {"gpu", "GPU A"},  {"op", "linear"},        {"variant", variant},
            {"phase", phase}, {"us_median", us}, {"roofline_frac", 0.44}, {"utc", utc}};
}

std::string table(Json target, const std::vector<Json>& lines) {
    target["what"] = "it";
    return targets_table({{"device", "GPU A"}, {"targets", Json::array({target})}}, "targets.json", lines);
}

Json of(const char* variant) {
    return {{"op", "linear"}, {"variant", variant}, {"phase", "forward"}};
}

TEST(Targets, TimesAreComparedWithABound) {
    Json target = of("a");
    target["us"] = 50, target["limit"] = "memory";
    const auto lines = {timed("a", "forward", 40, "2026-01-02T00:00:00Z"), timed("a", "forward", 99),
                        timed("a", "backward", 1)};
    EXPECT_THAT(table(target, lines), HasSubstr("\n| it | 50 us | 40 us | 125 % | memory |\n"));
}

TEST(Targets, PartsOfTheRoofline) {
    Json target = of("a");
    target["roofline"] = 0.88;
    EXPECT_THAT(table(target, {timed("a", "forward", 40)}),
                HasSubstr("\n| it | 88 % of the roofline | 44.0 % | 50 % |  |\n"));
}

TEST(Targets, TimesOverOthersTogether) {
    Json target = of("a");
    target["over"] = {{"op", "linear"}, {"variant", "b"}, {"phases", {"forward", "backward"}}, {"factor", 1.1}};
    const std::vector<Json> lines = {timed("a", "forward", 220), timed("b", "forward", 60), timed("b", "backward", 40)};
    EXPECT_THAT(table(target, lines), HasSubstr("\n| it | 110 us (100 us + 10 %) | 220 us | 50 % |  |\n"));
}

TEST(Targets, TimesManyTimesFasterThanAnOp) {
    Json target = of("a");
    target["faster"] = {{"op", "linear"}, {"variant", "b"}, {"factor", 15}};
    const std::vector<Json> lines = {timed("a", "forward", 8), timed("b", "forward", 150)};
    EXPECT_THAT(table(target, lines), HasSubstr("\n| it | 10 us (150 us / 15) | 8 us | 125 % |  |\n"));
}

TEST(Targets, TimesBesideAReferenceOfTheSameRun) {
    Json target = of("a");
    target["reference"] = {{"name", "theirs"}, {"factor", 1.0}};
    Json line = timed("a", "forward", 80);
    line.update({{"kind", "comparison"}, {"reference", "theirs"}, {"ours_us", 64}});
    EXPECT_THAT(table(target, {line}), HasSubstr("\n| it | 80 us (theirs) | 64 us | 125 % |  |\n"));
}

TEST(Targets, WholeSteps) {
    const Json target = {{"model", "m"}, {"stage", "transfer"}, {"shape", "8 x 1024"}, {"tokens_per_second", 1000}};
    const Json line = {{"kind", "e2e"},
                       {"gpu", "GPU A"},
                       {"model", "m"},
                       {"stage", "transfer"},
                       {"attention", "hybrid"},
                       {"shape", "8 x 1024"},
                       {"tokens_per_second", 900.4}};
    EXPECT_THAT(table(target, {line}), HasSubstr("\n| it | 1000 tokens/s | 900 | 90 % |  |\n"));
}

TEST(Targets, SayWhatWasNotMeasuredOnTheirDevice) {
    Json target = of("a"), elsewhere = timed("a", "forward", 40);
    target["us"] = 50, elsewhere["gpu"] = "GPU B";
    EXPECT_THAT(table(target, {elsewhere}), HasSubstr("\n| it |  | not measured |  |  |\n"));
}

TEST(Targets, RefuseOnesWithoutABound) {
    EXPECT_THROW(table(of("a"), {}), Error);
}

}  // namespace
}  // namespace lc::bench
