// The arguments of frozen_linear as its kernels for Hopper take them.
#pragma once
#include <optional>

#include "kernels/frozen_linear/frozen_linear_stream.cuh"

namespace lc::kernels {

// What of the arguments does not depend on the size of a tile; tensor maps do.
struct Described {
    StreamArgs args;
    const void *w[3] = {}, *x = nullptr;
    int64_t stride[3] = {}, ld_x = 0;
};

// None where the kernels do not apply: other numbers than bf16, more than `most_rows` rows of x, columns that are no whole panels, rows that
// the copy engine cannot address.
std::optional<Described> describe_frozen(const FrozenLinear& a, int64_t most_rows);
// Numbers the tiles of `rows` rows.
void number_tiles(StreamArgs& a, bool gated, int rows);

}  // namespace lc::kernels
