// Counter-based random numbers: Philox4x32-10 (Salmon et al., SC 2011). A number is a pure function of
// (seed, stream, index), so there is no generator state to lose or to share between threads; a resumed run draws the same,
// and so does a GPU.
#pragma once
#include <array>
#include <cmath>
#include <cstdint>
#include <numbers>

#include "core/device.h"

namespace lc {

// Ten rounds on a 128-bit counter with a 64-bit key.
LC_HOST_DEVICE constexpr std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> c, std::array<uint32_t, 2> k) {
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

// A numbered sequence of random values. `stream` separates uses of one seed (one per tensor, epoch, request, ...).
class Random {
  public:
    explicit Random(uint64_t seed, uint64_t stream = 0) : seed_(seed), stream_(stream) {}

    LC_HOST_DEVICE uint32_t bits(uint64_t index) const { return block(index)[0]; }  // 32 random bits
    LC_HOST_DEVICE double uniform(uint64_t index) const {  // [0,1), 53 bits
        const auto b = block(index);
        return fraction(b[0], b[1]) * 0x1p-53;
    }
    // N(0,1), Box-Muller on two uniforms of one Philox block. Host and device may differ by the rounding of log and cos.
    LC_HOST_DEVICE double normal(uint64_t index) const {
        const auto b = block(index);
        const double u1 = (fraction(b[0], b[1]) + 0.5) * 0x1p-53;  // never 0
        const double u2 = fraction(b[2], b[3]) * 0x1p-53;
        return std::sqrt(-2.0 * std::log(u1)) * std::cos(2.0 * std::numbers::pi * u2);
    }
    uint64_t below(uint64_t bound, uint64_t index) const;  // [0,bound), from 64 bits: bias below bound * 2^-64

  private:
    LC_HOST_DEVICE std::array<uint32_t, 4> block(uint64_t index) const {
        return philox4x32({static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), static_cast<uint32_t>(stream_),
                           static_cast<uint32_t>(stream_ >> 32)},
                          {static_cast<uint32_t>(seed_), static_cast<uint32_t>(seed_ >> 32)});
    }
    LC_HOST_DEVICE static double fraction(uint32_t high, uint32_t low) {  // in [0, 2^53)
        return static_cast<double>((uint64_t{high} << 21) ^ (low >> 11));
    }
    uint64_t seed_, stream_;
};

}  // namespace lc
