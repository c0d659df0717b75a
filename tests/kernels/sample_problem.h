// Random problems of sampling for tests of every form of it: what models give, and what they should never give.
#pragma once
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "core/rng.h"
#include "core/tensor.h"
#include "kernels/sample/sample_rules.h"

namespace lc::test {

struct SampleProblem {
    Tensor logits, bias, seen, settings, positions, ids, results;

    SampleProblem to(Device device) const {
        return {logits.to(device),    bias.to(device), seen.to(device),   settings.to(device),
                positions.to(device), ids.to(device),  results.to(device)};
    }
    kernels::Sample args() const {
        return {.logits = logits.view(),
                .bias = bias.view(),
                .seen = seen.view(),
                .settings = settings.view(),
                .positions = positions.view(),
                .ids = ids.view(),
                .results = results.view()};
    }
};

// Draws for one problem, in order.
class Draws {
  public:
    explicit Draws(uint64_t seed) : random_(seed, 99) {}
    uint64_t below(uint64_t bound) { return random_.below(bound, next_++); }
    double normal() { return random_.normal(next_++); }
    double uniform() { return random_.uniform(next_++); }
    template <class T, size_t N>
    T one_of(const std::array<T, N>& values) {
        return values[below(N)];
    }

  private:
    Random random_;
    uint64_t next_ = 0;
};

// A row of logits of one of many kinds; `kind` counts them through.
inline std::vector<float> sample_logits(int64_t v, uint64_t kind, Draws& draws) {
    constexpr float inf = std::numeric_limits<float>::infinity();
    std::vector<float> x(static_cast<size_t>(v));
    const auto fill = [&](auto&& value) {
        for (float& number : x) number = static_cast<float>(value());
    };
    switch (kind % 12) {
        case 0:
        case 1:
            fill([&] { return 3 * draws.normal(); });
            break;
        case 2:
            fill([&] { return 0.05 * draws.normal(); });
            break;
        case 3:
            fill([&] { return 40 * draws.normal(); });
            break;
        case 4:
            fill([&] { return std::floor(4 * draws.uniform()) / 2 - 1; });
            break;  // ties, both zeros' signs below
        case 5:
            fill([&] { return 7.25; });
            break;
        case 6:
            fill([&] { return draws.below(3) == 0 ? -INFINITY : 2 * draws.normal(); });
            break;
        case 7:
            fill([&] { return draws.normal() * 1e-40; });
            break;  // subnormal
        case 8:
            fill([&] { return draws.normal() * 1e38; });
            break;
        case 9:
            fill([&] { return -INFINITY; }), x[draws.below(x.size())] = -1e30f;
            break;
        case 10:
            fill([&] { return 1e-4 * std::floor(1000 * draws.normal()); });
            break;  // many near ties
        case 11:
            fill([&] { return draws.normal(); }), x[draws.below(x.size())] = 60;
            break;
    }
    if (kind % 12 == 4)
        for (float& number : x)
            if (number == 0 && draws.below(2) == 0) number = -0.0f;
    const uint64_t fault = draws.below(40);  // now and then, what a broken model gives
    if (fault == 0) x[draws.below(x.size())] = std::numeric_limits<float>::quiet_NaN();
    if (fault <= 1) x[draws.below(x.size())] = inf;
    if (fault == 2) fill([&] { return -INFINITY; });
    return x;
}

inline kernels::SampleSettings sample_settings(int64_t v, Draws& draws) {
    kernels::SampleSettings s;
    const double temperature =
        draws.one_of(std::array{0.0, 5e-324, 1e-30, 0.01, 0.3, 0.7, 1.0, 1.0, 1.5, 100.0, 1e300});
    s.greedy = temperature == 0;
    if (!s.greedy) s.sharpness = kernels::sample_sharpness(temperature);
    s.top_k = static_cast<int32_t>(draws.one_of(std::array<int64_t, 9>{0, 0, 0, 1, 2, 50, v - 1, v, 1'000'000'000}));
    if (draws.below(4) == 0) s.top_k = static_cast<int32_t>(1 + draws.below(static_cast<uint64_t>(v)));
    s.top_p = draws.one_of(std::array{1.0, 1.0, 0.9999999999999999, 0.95, 0.9, 0.5, 0.01, 1e-300});
    s.min_weight = kernels::sample_min_weight(draws.one_of(std::array{0.0, 0.0, 1e-6, 0.05, 0.5, 1.0}));
    s.random = Random(draws.below(5), draws.below(1000));
    s.uses_bias = draws.below(3) == 0, s.uses_seen = draws.below(3) == 0;
    s.repetition = draws.one_of(std::array{1.0, 1.2, 0.8, 1e-300});
    s.presence = draws.one_of(std::array{0.0, 0.5, -0.5});
    s.frequency = draws.one_of(std::array{0.0, 0.1, -0.3});
    return s;
}

// `batch` rows whose logits are numbers of `values`, f32 all the same; every eighth sequence is idle.
inline SampleProblem sample_problem(int64_t batch, int64_t v, DType values, uint64_t seed) {
    Draws draws(seed);
    std::vector<float> logits, bias;
    std::vector<int32_t> seen;
    std::vector<uint8_t> settings;
    std::vector<int64_t> positions;
    for (int64_t b = 0; b < batch; ++b) {
        const std::vector<float> row = sample_logits(v, draws.below(12), draws);
        logits.insert(logits.end(), row.begin(), row.end());
        const kernels::SampleSettings own = sample_settings(v, draws);
        const auto* bytes = reinterpret_cast<const uint8_t*>(&own);
        settings.insert(settings.end(), bytes, bytes + sizeof own);
        positions.push_back(draws.below(8) == 0 ? -1 : static_cast<int64_t>(draws.below(100000)));
        const bool bans_all = draws.below(20) == 0;
        for (int64_t i = 0; i < v; ++i) {
            const uint64_t kind = draws.below(50);
            bias.push_back(bans_all || kind == 0 ? -std::numeric_limits<float>::infinity()
                           : kind < 5            ? static_cast<float>(3 * draws.normal())
                                                 : 0.0f);
            seen.push_back(kind >= 45 ? static_cast<int32_t>(draws.below(4)) : kind == 44 ? kernels::kSeenInPrompt : 0);
        }
    }
    const auto none = [](const Shape& shape) { return Tensor::full(shape, -7, DType::i32); };
    return {Tensor::from(logits, {batch, v}).to(values).to(DType::f32),
            Tensor::from(bias, {batch, v}),
            Tensor::from(seen, {batch, v}),
            Tensor::from(settings, {batch, static_cast<int64_t>(sizeof(kernels::SampleSettings))}),
            Tensor::from(positions, {batch}),
            none({batch}),
            none({batch, 2})};
}

}  // namespace lc::test
