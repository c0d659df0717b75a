#include "core/rng.h"

namespace lc {

uint64_t Random::below(uint64_t bound, uint64_t index) const {
    const auto b = block(index);
    __extension__ using Wide = unsigned __int128;
    const auto wide = static_cast<Wide>((uint64_t{b[0]} << 32) | b[1]) * bound;
    return static_cast<uint64_t>(wide >> 64);
}

}  // namespace lc
