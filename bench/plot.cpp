#include "bench/plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <set>

#include "core/check.h"

namespace lc::bench {
namespace {

using io::JsonObject;

constexpr double kAnything = 1e300;
constexpr int64_t kMost = int64_t{1} << 40;
constexpr double kWidth = 1120, kHeight = 440, kPanel = 300, kPanelHeight = 310, kTop = 70, kTickWidth = 22;
constexpr std::array<double, 2> kLeft = {60, 620};
constexpr std::array<std::string_view, 6> kColors = {"#c2571a", "#1b7f6b", "#8a6d00", "#a03a6c", "#2f5fb3", "#5b57a6"};
constexpr std::array<std::string_view, 5> kDashes = {"", "7 3", "2 3", "9 3 2 3", "12 4"};

struct Point {
    std::string attention;  // with the storage of states, where that is not f32
    int64_t batch = 0, context = 0;
    double tokens_per_second = 0, peak_bytes = 0;
    std::string utc;
    auto key() const { return std::tie(attention, batch, context); }
};

std::string escaped(const std::string& text) {
    std::string result;
    for (const char c : text) result += c == '&' ? "&amp;" : c == '<' ? "&lt;" : c == '>' ? "&gt;" : std::string(1, c);
    return result;
}

// 4096 -> "4k"
std::string short_count(int64_t n) {
    return n >= 1024 && n % 1024 == 0 ? fmt::format("{}k", n / 1024) : fmt::format("{}", n);
}

// The decode lines of the device and model that most of them are from, one a place.
std::vector<Point> points_of(const std::vector<io::Json>& lines, std::string& title) {
    std::map<std::string, std::map<std::tuple<std::string, int64_t, int64_t>, Point>> groups;
    for (size_t i = 0; i < lines.size(); ++i) {
        const JsonObject line(lines[i], fmt::format("result {}", i + 1));
        if (line.find_string("kind") != "e2e" || line.find_string("stage") != "decode" || !line.has("context"))
            continue;
        Point p{.attention = line.get_string("attention"),
                .batch = line.get_int("batch", 1, kMost),
                .context = line.get_int("context", 1, kMost),
                .tokens_per_second = line.get_double("tokens_per_second", 1e-9, kAnything),
                .peak_bytes = line.get_double("peak_bytes", 1, kAnything),
                .utc = line.get_string("utc")};
        const std::string state = line.find_string("state_dtype").value_or("f32");
        if (state != "f32" && p.attention != "softmax") p.attention += ", " + state + " state";
        const std::string weights = line.find_string("weights_dtype").value_or("auto");
        if (weights != "auto") p.attention += ", " + weights + " weights";
        const std::string machine = line.has("gpu") ? line.get_string("gpu") : line.get_string("cpu");
        auto& group = groups[fmt::format("{} on {}, {}", line.get_string("model"), machine, line.get_string("dtype"))];
        const auto [old, fresh] = group.try_emplace(p.key(), p);
        if (!fresh && old->second.utc <= p.utc) old->second = p;
    }
    const auto largest = std::max_element(
        groups.begin(), groups.end(), [](const auto& a, const auto& b) { return a.second.size() < b.second.size(); });
    LC_REQUIRE(BadInput, largest != groups.end(), "there is no line of bench e2e --stage decode with its context");
    title = largest->first;
    std::vector<Point> points;
    for (const auto& [key, point] : largest->second) points.push_back(point);
    return points;
}

struct Axis {
    double low = 1, high = 1;  // both on the axis
    double share(double value) const { return std::log(value / low) / std::log(high / low); }
};
Axis axis_over(const std::vector<double>& values) {
    const auto [low, high] = std::minmax_element(values.begin(), values.end());
    return {*low / 1.25, *high * 1.25};
}

// 1, 2 and 5 times powers of ten.
std::vector<double> decimal_ticks(const Axis& axis) {
    std::vector<double> ticks;
    for (double ten = std::pow(10, std::floor(std::log10(axis.low))); ten <= axis.high; ten *= 10)
        for (const double tick : {ten, 2 * ten, 5 * ten})
            if (tick >= axis.low && tick <= axis.high) ticks.push_back(tick);
    return ticks;
}

// One panel: curves of (x, y) by name, x at the values that occur.
struct Curve {
    std::string name;
    std::string_view color, dash;
    std::map<int64_t, double> at;
};

class Panel {
  public:
    Panel(double left, const std::vector<Curve>& curves) : left_(left) {
        std::vector<double> xs, ys;
        for (const Curve& curve : curves)
            for (const auto& [x, y] : curve.at) xs.push_back(static_cast<double>(x)), ys.push_back(y), ticks_.insert(x);
        x_ = axis_over(xs), y_ = axis_over(ys);
    }

    std::string draw(const std::vector<Curve>& curves, std::string_view heading, std::string_view x_name) const {
        std::string svg = text(left_, kTop - 14, "start", heading, "font-weight='bold'");
        svg += text(left_ + kPanel / 2, kTop + kPanelHeight + 36, "middle", x_name);
        double after = left_;  // the last number below the axis
        for (const int64_t tick : ticks_) {
            const double x = place_x(static_cast<double>(tick));
            svg += line(x, kTop, x, kTop + kPanelHeight, "#ddd");
            if (x < after) continue;
            after = x + kTickWidth;
            svg += text(x, kTop + kPanelHeight + 17, "middle", short_count(tick));
        }
        for (const double tick : decimal_ticks(y_)) {
            svg += line(left_, place_y(tick), left_ + kPanel, place_y(tick), "#ddd");
            svg += text(left_ - 6, place_y(tick) + 4, "end", fmt::format("{:g}", tick));
        }
        std::vector<double> taken;  // heights of labels
        for (const Curve& curve : curves) svg += draw_curve(curve, taken);
        return svg;
    }

  private:
    double place_x(double x) const { return left_ + kPanel * x_.share(x); }
    double place_y(double y) const { return kTop + kPanelHeight * (1 - y_.share(y)); }

    std::string draw_curve(const Curve& curve, std::vector<double>& taken) const {
        std::string path, svg;
        double x = 0, y = 0;
        for (const auto& [at, value] : curve.at) {
            x = place_x(static_cast<double>(at)), y = place_y(value);
            path += fmt::format("{}{:.1f},{:.1f}", path.empty() ? "" : " ", x, y);
            svg += fmt::format("<circle cx='{:.1f}' cy='{:.1f}' r='2.6' fill='{}'/>\n", x, y, curve.color);
        }
        svg += fmt::format("<polyline points='{}' fill='none' stroke='{}' stroke-width='1.6' stroke-dasharray='{}'/>\n",
                           path, curve.color, curve.dash);
        const auto collides = [&](double at) {
            return std::any_of(taken.begin(), taken.end(), [&](double other) { return std::abs(other - at) < 11; });
        };
        double label = y + 4;  // beside the last point, or the next free place below
        while (collides(label)) label += 2;
        taken.push_back(label);
        const double right = left_ + kPanel + 6;
        svg +=
            fmt::format("<line x1='{:.1f}' y1='{:.1f}' x2='{:.1f}' y2='{:.1f}' stroke='{}' stroke-dasharray='{}'/>\n",
                        right, label - 4, right + 22, label - 4, curve.color, curve.dash);
        return svg + text(right + 27, label, "start", curve.name, fmt::format("fill='{}'", curve.color));
    }
    static std::string text(double x, double y, std::string_view anchor, std::string_view content,
                            std::string_view style = "") {
        return fmt::format("<text x='{:.1f}' y='{:.1f}' text-anchor='{}' {}>{}</text>\n", x, y, anchor, style,
                           escaped(std::string(content)));
    }
    static std::string line(double x1, double y1, double x2, double y2, std::string_view color) {
        return fmt::format("<line x1='{:.1f}' y1='{:.1f}' x2='{:.1f}' y2='{:.1f}' stroke='{}'/>\n", x1, y1, x2, y2,
                           color);
    }

    double left_;
    Axis x_, y_;
    std::set<int64_t> ticks_;
};

// Curves along `x_of` with one for each attention and value of `fixed_of`; colors by attention, dashes by the other.
template <class X, class Fixed, class Y>
std::vector<Curve> curves_of(const std::vector<Point>& points, X&& x_of, Fixed&& fixed_of, Y&& y_of,
                             std::string_view name) {
    std::set<std::string> attentions;
    std::set<int64_t> fixed;
    for (const Point& p : points) attentions.insert(p.attention), fixed.insert(fixed_of(p));
    const auto index = [](const auto& all, const auto& one) {
        return static_cast<size_t>(std::distance(all.begin(), all.find(one)));
    };
    std::map<std::pair<std::string, int64_t>, Curve> curves;
    for (const Point& p : points) {
        Curve& curve = curves[{p.attention, fixed_of(p)}];
        curve.name = fmt::format("{}, {} {}", p.attention, name, short_count(fixed_of(p)));
        curve.color = kColors[index(attentions, p.attention) % kColors.size()];
        curve.dash = kDashes[index(fixed, fixed_of(p)) % kDashes.size()];
        curve.at[x_of(p)] = y_of(p);
    }
    std::vector<Curve> result;
    for (auto& [key, curve] : curves) result.push_back(std::move(curve));
    return result;
}

}  // namespace

std::string decode_plot(const std::vector<io::Json>& lines) {
    std::string title;
    const std::vector<Point> points = points_of(lines, title);
    const auto batch = [](const Point& p) { return p.batch; };
    const auto context = [](const Point& p) { return p.context; };
    const std::vector<Curve> speed = curves_of(
        points, batch, context, [](const Point& p) { return p.tokens_per_second; }, "context");
    const std::vector<Curve> memory = curves_of(
        points, context, batch, [](const Point& p) { return p.peak_bytes * 1e-9; }, "batch");
    std::string svg = fmt::format(
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {:.0f} {:.0f}' font-family='sans-serif' font-size='11'>\n"
        "<rect width='100%' height='100%' fill='white'/>\n"
        "<text x='20' y='26' font-size='15'>Decoding, {}</text>\n",
        kWidth, kHeight, escaped(title));
    svg += Panel(kLeft[0], speed).draw(speed, "tokens per second", "sequences at a time");
    svg += Panel(kLeft[1], memory).draw(memory, "most memory in use, GB", "tokens of context");
    return svg + "</svg>\n";
}

}  // namespace lc::bench
