// Counter-based random numbers: Philox4x32-10 (Salmon et al., SC 2011). A number is a pure function of
// (seed, stream, index), so there is no generator state to lose or to share between threads; a resumed run draws the same.
#pragma once
#include <array>
#include <cstdint>

namespace lc {

// Ten rounds on a 128-bit counter with a 64-bit key.
std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

// A numbered sequence of random values. `stream` separates uses of one seed (one per tensor, epoch, request, ...).
class Random {
  public:
    explicit Random(uint64_t seed, uint64_t stream = 0) : seed_(seed), stream_(stream) {}

    uint32_t bits(uint64_t index) const;                        // 32 random bits
    double uniform(uint64_t index) const;                       // [0,1), 53 bits
    double normal(uint64_t index) const;                        // N(0,1), Box-Muller on two uniforms of one Philox block
    uint64_t below(uint64_t bound, uint64_t index) const;       // [0,bound), from 64 bits: bias below bound * 2^-64

  private:
    std::array<uint32_t, 4> block(uint64_t index) const;
    uint64_t seed_, stream_;
};

}  // namespace lc
