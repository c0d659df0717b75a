#include "core/rng.h"

#include <cmath>
#include <numbers>

namespace lc {

std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> c, std::array<uint32_t, 2> k) {
    for (int round = 0; round < 10; ++round) {
        const uint64_t p0 = uint64_t{0xD2511F53u} * c[0];
        const uint64_t p1 = uint64_t{0xCD9E8D57u} * c[2];
        c = {static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k[0], static_cast<uint32_t>(p1),
             static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k[1], static_cast<uint32_t>(p0)};
        k[0] += 0x9E3779B9u;  // golden ratio
        k[1] += 0xBB67AE85u;  // sqrt(3) - 1
    }
    return c;
}

std::array<uint32_t, 4> Random::block(uint64_t index) const {
    return philox4x32({static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), static_cast<uint32_t>(stream_),
                       static_cast<uint32_t>(stream_ >> 32)},
                      {static_cast<uint32_t>(seed_), static_cast<uint32_t>(seed_ >> 32)});
}

uint32_t Random::bits(uint64_t index) const { return block(index)[0]; }

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
