#include "core/rng.h"

#include <cmath>
#include <numbers>

namespace lc {

double Random::uniform(uint64_t index) const {
    const auto b = block(index);
    return static_cast<double>((uint64_t{b[0]} << 21) ^ (b[1] >> 11)) * 0x1p-53;
}

double Random::normal(uint64_t index) const {
    const auto b = block(index);
    const double u1 = (static_cast<double>((uint64_t{b[0]} << 21) ^ (b[1] >> 11)) + 0.5) * 0x1p-53;  // never 0
    const double u2 = static_cast<double>((uint64_t{b[2]} << 21) ^ (b[3] >> 11)) * 0x1p-53;
    return std::sqrt(-2.0 * std::log(u1)) * std::cos(2.0 * std::numbers::pi * u2);
}

uint64_t Random::below(uint64_t bound, uint64_t index) const {
    const auto b = block(index);
    __extension__ using Wide = unsigned __int128;
    const auto wide = static_cast<Wide>((uint64_t{b[0]} << 32) | b[1]) * bound;
    return static_cast<uint64_t>(wide >> 64);
}

}  // namespace lc
