#include "bench/targets.h"

#include <fmt/format.h>

#include <optional>

#include "core/check.h"

namespace lc::bench {
namespace {

using io::Json;
using io::JsonObject;
constexpr double kAnything = 1e300;

// One measured number beside its bound, in words and as the part of the target that is reached.
struct Reached {
    std::string target, measured;
    double part = 0;
};

class Table {
  public:
    Table(std::string device, const std::vector<Json>& lines) : device_(std::move(device)), lines_(lines) {}

    std::optional<Reached> look_up(const JsonObject& target) const {
        if (target.has("stage")) return steps(target);
        if (target.has("us")) return at_most(target, number(target, "us"), "");
        if (target.has("roofline")) return of_roofline(target);
        if (target.has("over")) return over(target);
        if (target.has("faster")) return faster(target);
        if (target.has("reference")) return beside(target);
        fail(ErrorKind::BadInput, "{}: '{}' has no bound: us, roofline, over, faster, reference or tokens_per_second",
             target.source(), target.get_string("what"));
    }

  private:
    static double number(const JsonObject& object, const char* key) { return object.get_double(key, 0, kAnything); }

    // The newest line of the device with these values.
    const Json* newest(const std::vector<std::pair<const char*, std::string>>& values) const {
        const Json* found = nullptr;
        for (const Json& line : lines_) {
            bool fits = line.value("gpu", "") == device_;
            for (const auto& [key, value] : values) fits = fits && line.value(key, "") == value;
            if (fits && (!found || found->value("utc", "") <= line.value("utc", ""))) found = &line;
        }
        return found;
    }
    const Json* timed(const std::string& op, const std::string& variant, const std::string& phase) const {
        return newest({{"kind", "op"}, {"op", op}, {"variant", variant}, {"phase", phase}});
    }
    const Json* timed(const JsonObject& target) const {
        return timed(target.get_string("op"), target.get_string("variant"), target.get_string("phase"));
    }
    static double us(const Json& line) { return number(JsonObject(line, "result"), "us_median"); }

    std::optional<Reached> at_most(const JsonObject& target, double bound, const std::string& because) const {
        const Json* line = timed(target);
        if (!line) return std::nullopt;
        return Reached{fmt::format("{:.4g} us{}", bound, because), fmt::format("{:.4g} us", us(*line)),
                       bound / us(*line)};
    }
    std::optional<Reached> of_roofline(const JsonObject& target) const {
        const double bound = number(target, "roofline");
        const Json* line = timed(target);
        if (!line) return std::nullopt;
        const double part = number(JsonObject(*line, "result"), "roofline_frac");
        return Reached{fmt::format("{:.0f} % of the roofline", 100 * bound), fmt::format("{:.1f} %", 100 * part),
                       part / bound};
    }
    std::optional<Reached> over(const JsonObject& target) const {
        const JsonObject over(target.get("over"), target.source(), "over");
        double sum = 0;
        const Json phases = over.has("phases") ? over.get("phases") : Json{target.get_string("phase")};
        for (const Json& phase : phases) {
            const Json* line = timed(over.get_string("op"), over.get_string("variant"), phase.get<std::string>());
            if (!line) return std::nullopt;
            sum += us(*line);
        }
        const double factor = number(over, "factor");
        return at_most(target, factor * sum, fmt::format(" ({:.4g} us + {:.0f} %)", sum, 100 * (factor - 1)));
    }
    std::optional<Reached> faster(const JsonObject& target) const {
        const JsonObject than(target.get("faster"), target.source(), "faster");
        const Json* line = timed(than.get_string("op"), than.get_string("variant"), target.get_string("phase"));
        if (!line) return std::nullopt;
        const double factor = number(than, "factor");
        return at_most(target, us(*line) / factor, fmt::format(" ({:.4g} us / {:g})", us(*line), factor));
    }
    std::optional<Reached> beside(const JsonObject& target) const {
        const JsonObject reference(target.get("reference"), target.source(), "reference");
        const std::string name = reference.get_string("name");
        const Json* line = newest({{"kind", "comparison"},
                                   {"op", target.get_string("op")},
                                   {"variant", target.get_string("variant")},
                                   {"phase", target.get_string("phase")},
                                   {"reference", name}});
        if (!line) return std::nullopt;
        const double ours = number(JsonObject(*line, "result"), "ours_us"),
                     bound = number(reference, "factor") * us(*line);
        return Reached{fmt::format("{:.4g} us ({})", bound, name), fmt::format("{:.4g} us", ours), bound / ours};
    }
    std::optional<Reached> steps(const JsonObject& target) const {
        const Json* line = newest({{"kind", "e2e"},
                                   {"model", target.get_string("model")},
                                   {"stage", target.get_string("stage")},
                                   {"attention", target.find_string("attention").value_or("hybrid")},
                                   {"shape", target.get_string("shape")}});
        if (!line) return std::nullopt;
        const double bound = number(target, "tokens_per_second");
        const double rate = number(JsonObject(*line, "result"), "tokens_per_second");
        return Reached{fmt::format("{:.0f} tokens/s", bound), fmt::format("{:.0f}", rate), rate / bound};
    }

    std::string device_;
    const std::vector<Json>& lines_;
};

}  // namespace

std::string targets_table(const Json& targets, const std::string& source, const std::vector<Json>& lines) {
    const JsonObject file(targets, source);
    const std::string device = file.get_string("device");
    const Table table(device, lines);
    std::string text = fmt::format("\n## Targets on one {}\n\n", device);
    text += "| what | target | measured | reached | what is in the way |\n|---|--:|--:|--:|---|\n";
    for (const Json& entry : file.get("targets")) {
        const JsonObject target(entry, source, "targets");
        const std::string what = target.get_string("what"), limit = target.find_string("limit").value_or("");
        const std::optional<Reached> reached = table.look_up(target);
        text += reached ? fmt::format("| {} | {} | {} | {:.0f} % | {} |\n", what, reached->target, reached->measured,
                                      100 * reached->part, limit)
                        : fmt::format("| {} |  | not measured |  | {} |\n", what, limit);
    }
    return text;
}

}  // namespace lc::bench
