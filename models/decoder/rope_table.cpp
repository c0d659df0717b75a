#include "models/decoder/rope_table.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <optional>

#include "core/parallel.h"

namespace lc::models {

namespace {

double llama3_frequency(const io::RopeConfig& rope, double f) {
    const double wavelength = 2 * std::numbers::pi / f;
    const double original = static_cast<double>(rope.original_max_position_embeddings);
    const double low = rope.low_freq_factor, high = rope.high_freq_factor;
    if (wavelength > original / low) return f / rope.factor;
    if (wavelength < original / high) return f;
    const double kept = (original / wavelength - low) / (high - low);
    return (1 - kept) * f / rope.factor + kept * f;
}

// Which share of frequency i yarn divides.
struct YarnRamp {
    double low, high;
    YarnRamp(const io::RopeConfig& rope, int64_t rotary_dim) {
        const double width = static_cast<double>(rotary_dim);
        const double original = static_cast<double>(rope.original_max_position_embeddings);
        const auto dimension = [&](double turns) {
            return width * std::log(original / (turns * 2 * std::numbers::pi)) / (2 * std::log(rope.theta));
        };
        low = dimension(rope.beta_fast), high = dimension(rope.beta_slow);
        if (rope.truncate) low = std::floor(low), high = std::ceil(high);
        low = std::max(low, 0.0), high = std::min(high, width - 1);
        if (low == high) high += 0.001;  // a step, as the reference has it
    }
    double operator()(size_t i) const { return std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0); }
};

}  // namespace

std::vector<double> rope_frequencies(const io::RopeConfig& rope, int64_t rotary_dim) {
    LC_CHECK(rotary_dim > 0 && rotary_dim % 2 == 0, "rope: the rotated part of a head must be even, got {}",
             rotary_dim);
    std::vector<double> frequencies(static_cast<size_t>(rotary_dim / 2));
    std::optional<YarnRamp> ramp;
    if (rope.type == io::RopeType::yarn) ramp.emplace(rope, rotary_dim);
    for (size_t i = 0; i < frequencies.size(); ++i) {
        double f = std::pow(rope.theta, -2.0 * static_cast<double>(i) / static_cast<double>(rotary_dim));
        if (rope.type == io::RopeType::linear) f /= rope.factor;
        if (rope.type == io::RopeType::llama3) f = llama3_frequency(rope, f);
        if (ramp) f = (*ramp)(i)*f / rope.factor + (1 - (*ramp)(i)) * f;
        frequencies[i] = f;
    }
    return frequencies;
}

RopeTable rope_table(const io::RopeConfig& rope, int64_t rotary_dim, int64_t positions, DType dtype) {
    const std::vector<double> frequencies = rope_frequencies(rope, rotary_dim);
    const auto half = static_cast<int64_t>(frequencies.size());
    RopeTable table{Tensor::empty({positions, half}, dtype), Tensor::empty({positions, half}, dtype)};
    const double factor = rope.type == io::RopeType::yarn ? rope.attention_factor : 1;
    dispatch_compute(dtype, "rope_table", [&]<class T>(std::type_identity<T>) {
        T *cos = table.cos.data<T>(), *sin = table.sin.data<T>();
        parallel_for(positions, 256, [&](int64_t begin, int64_t end) {
            for (int64_t p = begin; p < end; ++p)
                for (int64_t i = 0; i < half; ++i) {
                    const double angle = static_cast<double>(p) * frequencies[static_cast<size_t>(i)];
                    cos[p * half + i] = static_cast<T>(factor * std::cos(angle));
                    sin[p * half + i] = static_cast<T>(factor * std::sin(angle));
                }
        });
    });
    return table;
}

}  // namespace lc::models
