#include "bench/plot.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <regex>

#include "core/check.h"

namespace lc::bench {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

io::Json line(const std::string& attention, int64_t batch, int64_t context, double tokens_per_second, double peak_bytes,
              const std::string& utc = "2026-01-02T00:00:00Z") {
    return {{"kind", "e2e"},    {"stage", "decode"},       {"model", "llama-3-8b"},
            {"gpu", "GPU <A>"}, {"dtype", "bf16"},         {"attention", attention},
            {"batch", batch},   {"context", context},      {"tokens_per_second", tokens_per_second},
            {"utc", utc},       {"peak_bytes", peak_bytes}};
}

std::vector<io::Json> table() {
    std::vector<io::Json> lines;
    for (const int64_t batch : {1, 16, 64})
        for (const int64_t context : {1024, 16384}) {
            const auto b = static_cast<double>(batch);
            lines.push_back(line("hybrid", batch, context, 130 * b, 17e9 + 1e8 * b));
            lines.push_back(
                line("softmax", batch, context, 1e5 * b / (800 + b * static_cast<double>(context) / 1024), 17e9 * b));
        }
    return lines;
}

size_t count(const std::string& text, const std::string& what) {
    size_t n = 0;
    for (size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++n;
    return n;
}

// y of the points of the first curve, in their order.
std::vector<double> heights(const std::string& svg) {
    const std::string points = svg.substr(svg.find("points='"), svg.find("' fill='none'") - svg.find("points='"));
    std::vector<double> ys;
    const std::regex pair("[0-9.]+,([0-9.]+)");
    for (std::sregex_iterator it(points.begin(), points.end(), pair), end; it != end; ++it)
        ys.push_back(std::stod((*it)[1]));
    return ys;
}

TEST(DecodePlot, DrawsACurveForEachKindAndContextAndEachKindAndBatch) {
    const std::string svg = decode_plot(table());
    EXPECT_EQ(count(svg, "<polyline"), 2u * 2 + 2u * 3);
    EXPECT_EQ(count(svg, "<circle"), 2u * 12);
    for (const char* text :
         {"hybrid, context 1k", "softmax, context 16k", "hybrid, batch 64", "llama-3-8b on GPU &lt;A&gt;, bf16"})
        EXPECT_THAT(svg, HasSubstr(text));
    EXPECT_EQ(count(svg, "<text"), count(svg, "</text>"));
    EXPECT_THAT(svg, testing::EndsWith("</svg>\n"));
    EXPECT_THAT(svg, Not(HasSubstr("nan")));
    const std::vector<double> ys = heights(svg);
    ASSERT_EQ(ys.size(), 3u);
    EXPECT_TRUE(ys[0] > ys[1] && ys[1] > ys[2]) << "more tokens a second lie higher";
    EXPECT_NEAR((ys[0] - ys[1]) / (ys[1] - ys[2]), 2, 0.01) << "factors of 16 and 4: the axis is logarithmic";
}

TEST(DecodePlot, TakesTheNewestOfTheDeviceThatMostAreFrom) {
    std::vector<io::Json> lines = table();
    lines.push_back(line("hybrid", 1, 1024, 65, 17.1e9, "2026-01-03T00:00:00Z"));
    lines.push_back(line("hybrid", 1, 1024, 1, 17.1e9, "2026-01-01T00:00:00Z"));
    io::Json other = line("hybrid", 256, 1024, 9000, 30e9), step = line("hybrid", 512, 1024, 1, 1);
    other["gpu"] = "GPU B", step["stage"] = "finetune";
    lines.push_back(other), lines.push_back(step), lines.push_back({{"kind", "op"}});
    const std::vector<double> ys = heights(decode_plot(lines));
    ASSERT_EQ(ys.size(), 3u);
    EXPECT_NEAR((ys[0] - ys[1]) / (ys[1] - ys[2]), 2.5, 0.01) << "65 instead of 130: a factor of 32 and one of 4";
}

TEST(DecodePlot, NamesStatesInBf16) {
    std::vector<io::Json> lines = table();
    lines.push_back(line("hybrid", 64, 1024, 9500, 18e9));
    lines.back()["state_dtype"] = "bf16";
    EXPECT_THAT(decode_plot(lines), HasSubstr("hybrid, bf16 state, context 1k"));
    EXPECT_EQ(count(decode_plot({line("hybrid", 1, 1024, 130, 17e9)}), "<circle"), 2u)
        << "a single line has a place too";
}

TEST(DecodePlot, Refusals) {
    const auto error = [](const std::vector<io::Json>& lines) -> std::string {
        try {
            decode_plot(lines);
        } catch (const Error& e) {
            return e.what();
        }
        return "";
    };
    EXPECT_THAT(error({}), HasSubstr("no line"));
    io::Json wrong = line("hybrid", 1, 1024, 130, 17e9);
    wrong["tokens_per_second"] = "fast";
    EXPECT_THAT(error({wrong}), HasSubstr("tokens_per_second"));
}

}  // namespace
}  // namespace lc::bench
