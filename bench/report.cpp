#include "bench/report.h"

#include <fmt/format.h>

#include <fstream>
#include <map>
#include <tuple>

#include "bench/roofline.h"
#include "core/log.h"

namespace lc::bench {
namespace {

using io::JsonObject;
constexpr double kAnything = 1e300;

double number(const JsonObject& line, const char* key) {
    return line.get_double(key, 0, kAnything);
}

std::string machine_of(const JsonObject& line) {
    if (line.has("gpu")) return line.get_string("gpu");
    return fmt::format("{}, {} threads", line.get_string("cpu"), line.get_int("threads", 1, 1 << 20));
}

// "ab12cd (2026-01-31)"
std::string origin_of(const JsonObject& line) {
    return fmt::format("{} ({})", line.get_string("revision"), line.get_string("utc").substr(0, 10));
}

// What qualifies a number: the reader should know before comparing it.
std::string notes_of(const JsonObject& line) {
    std::string notes;
    const auto note = [&](const std::string& text) { notes += (notes.empty() ? "" : ", ") + text; };
    if (line.find_string("l2").value_or("") == "warm") note("L2 warm");
    if (line.find_bool("starved").value_or(false)) note("host-bound");
    if (const double drift = line.find_double("drift", 0, kAnything).value_or(0); drift > kDriftLimit)
        note(fmt::format("roofline drifted {:.1f} %", 100 * drift));
    return notes;
}

std::string percent(const std::optional<double>& fraction) {
    return fraction ? fmt::format("{:.1f} %", 100 * *fraction) : "";
}

// A row with its key, kept while no newer one comes.
template <class Key>
class Newest {
  public:
    void put(const Key& key, const JsonObject& line) {
        const auto found = rows_.find(key);
        if (found == rows_.end())
            rows_.emplace(key, line);
        else if (found->second.get_string("utc") <= line.get_string("utc"))
            found->second = line;
    }
    const std::map<Key, JsonObject>& rows() const { return rows_; }

  private:
    std::map<Key, JsonObject> rows_;
};

using OpKey =
    std::tuple<std::string, std::string, std::string, int, std::string>;  // op, variant, dtype, phase, its name
using LadderKey = std::tuple<std::string, std::string, std::string>;      // machine, op with its variant, step
using StepKey = std::tuple<std::string, std::string, std::string, std::string, std::string, std::string>;

std::string op_row(const OpKey& key, const JsonObject& line) {
    const auto& [op, variant, dtype, order, phase] = key;
    return fmt::format("| {} | {} | {} | {} | {:.1f} | {:.0f} | {:.4g} | {} | {} | {} |\n", op, variant, phase, dtype,
                       number(line, "us_median"), number(line, "gbps"), number(line, "tflops"),
                       percent(number(line, "roofline_frac")), notes_of(line), origin_of(line));
}

std::string step_row(const StepKey& key, const JsonObject& line) {
    const auto& [machine, model, stage, attention, shape, dtype] = key;
    return fmt::format("| {} | {} | {} | {} | {} | {} | {:.1f} | {:.3f} | {:.2f} GB | {} | {} | {} | {} |\n", machine,
                       model, stage, attention, shape, dtype, number(line, "tokens_per_second"),
                       number(line, "ms_per_step"), number(line, "peak_bytes") * 1e-9,
                       percent(line.find_double("mfu", 0, kAnything)),
                       percent(line.find_double("roofline_frac", 0, kAnything)), notes_of(line), origin_of(line));
}

std::string ladder_row(const LadderKey& key, const JsonObject& line) {
    const auto& [machine, course, step] = key;
    return fmt::format("| {} | {} | {} | {:.1f} | {:.1f} | {} | {:.1f} | {} |\n", machine, course, step,
                       number(line, "us_median"), number(line, "tflops"), percent(number(line, "roofline_frac")),
                       number(line, "gain"), origin_of(line));
}

std::string ladder_table(const Newest<LadderKey>& ladder) {
    std::string text = "\n## Attention forward, from the formula to our kernels (`bench ladder`)\n\n";
    text +=
        "| device | op | step | us | TFLOP/s | of roofline | x step 1 | revision "
        "|\n|---|---|---|--:|--:|--:|--:|---|\n";
    for (const auto& [key, line] : ladder.rows()) text += ladder_row(key, line);
    return text;
}

std::string op_table(const std::string& machine, const Newest<OpKey>& ops) {
    std::string text = fmt::format("\n## Ops on {}\n\n", machine);
    text += "| op | variant | phase | dtype | us | GB/s | TFLOP/s | of roofline | notes | revision |\n";
    text += "|---|---|---|---|--:|--:|--:|--:|---|---|\n";
    for (const auto& [key, line] : ops.rows()) text += op_row(key, line);
    return text;
}

std::string step_table(const Newest<StepKey>& steps) {
    std::string text = "\n## Whole steps\n\n";
    text +=
        "| device | model | stage | attention | shape | dtype | tokens/s | ms/step | peak memory | MFU | of roofline | "
        "notes | "
        "revision |\n|---|---|---|---|---|---|--:|--:|--:|--:|--:|---|---|\n";
    for (const auto& [key, line] : steps.rows()) text += step_row(key, line);
    return text;
}

}  // namespace

std::string performance_report(const std::vector<io::Json>& lines, const std::string& made_with,
                               const std::string& before) {
    std::map<std::string, Newest<OpKey>> ops;
    Newest<StepKey> steps;
    Newest<LadderKey> ladder;
    int64_t skipped = 0;
    for (size_t i = 0; i < lines.size(); ++i) {
        const JsonObject line(lines[i], fmt::format("result {}", i + 1));
        const std::string kind = line.find_string("kind").value_or("");
        if (kind == "op") {
            const std::string phase = line.get_string("phase");
            ops[machine_of(line)].put({line.get_string("op"), line.get_string("variant"), line.get_string("dtype"),
                                       phase == "forward" ? 0 : 1, phase},
                                      line);
        } else if (kind == "e2e") {
            steps.put({machine_of(line), line.get_string("model"), line.get_string("stage"),
                       line.get_string("attention"), line.get_string("shape"), line.get_string("dtype")},
                      line);
        } else if (kind == "ladder") {
            ladder.put(
                {machine_of(line), line.get_string("op") + " " + line.get_string("variant"), line.get_string("step")},
                line);
        } else {
            ++skipped;
        }
    }
    if (skipped > 0) log_info("{} lines of another kind are left out", skipped);
    std::string text = fmt::format(
        "# Performance\n\nGenerated by `{}` from the lines of benchmark results named there; not edited by hand. What "
        "is "
        "measured, and how, is in [bench/README.md](../bench/README.md). `of roofline` is the least time that the "
        "case's FLOPs "
        "and bytes take on that machine, as measured in the same run, over the time taken; MFU is useful FLOPs over "
        "the measured "
        "GEMM rate.\n",
        made_with);
    text += before;
    if (!steps.rows().empty()) text += step_table(steps);
    if (!ladder.rows().empty()) text += ladder_table(ladder);
    for (const auto& [machine, table] : ops) text += op_table(machine, table);
    return text;
}

std::vector<io::Json> read_lines(const std::vector<std::filesystem::path>& files) {
    std::vector<io::Json> lines;
    for (const std::filesystem::path& path : files) {
        std::ifstream file(path);
        LC_REQUIRE(BadInput, file.good(), "{}: cannot be read", path.string());
        int64_t count = 0;
        for (std::string text; std::getline(file, text);) {
            ++count;
            if (!text.empty()) lines.push_back(io::parse_json(text, fmt::format("{}:{}", path.string(), count)));
        }
    }
    return lines;
}

}  // namespace lc::bench
