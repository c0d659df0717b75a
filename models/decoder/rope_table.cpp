#include "models/decoder/rope_table.h"

#include <cmath>
#include <numbers>

#include "core/parallel.h"

namespace lc::models {

std::vector<double> rope_frequencies(const io::RopeConfig& rope, int64_t head_dim) {
    LC_CHECK(head_dim > 0 && head_dim % 2 == 0, "rope: head_dim must be even, got {}", head_dim);
    std::vector<double> frequencies(static_cast<size_t>(head_dim / 2));
    for (size_t i = 0; i < frequencies.size(); ++i) {
        double f = std::pow(rope.theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
        if (rope.type == io::RopeType::llama3) {
            const double wavelength = 2 * std::numbers::pi / f;
            const double original = static_cast<double>(rope.original_max_position_embeddings);
            const double low = rope.low_freq_factor, high = rope.high_freq_factor;
            if (wavelength > original / low) {
                f /= rope.factor;
            } else if (wavelength >= original / high) {
                const double kept = (original / wavelength - low) / (high - low);
                f = (1 - kept) * f / rope.factor + kept * f;
            }
        }
        frequencies[i] = f;
    }
    return frequencies;
}

RopeTable rope_table(const io::RopeConfig& rope, int64_t head_dim, int64_t positions, DType dtype) {
    const std::vector<double> frequencies = rope_frequencies(rope, head_dim);
    const auto half = static_cast<int64_t>(frequencies.size());
    RopeTable table{Tensor::empty({positions, half}, dtype), Tensor::empty({positions, half}, dtype)};
    dispatch_compute(dtype, "rope_table", [&]<class T>(std::type_identity<T>) {
        T *cos = table.cos.data<T>(), *sin = table.sin.data<T>();
        parallel_for(positions, 256, [&](int64_t begin, int64_t end) {
            for (int64_t p = begin; p < end; ++p)
                for (int64_t i = 0; i < half; ++i) {
                    const double angle = static_cast<double>(p) * frequencies[static_cast<size_t>(i)];
                    cos[p * half + i] = static_cast<T>(std::cos(angle));
                    sin[p * half + i] = static_cast<T>(std::sin(angle));
                }
        });
    });
    return table;
}

}  // namespace lc::models
