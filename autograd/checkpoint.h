// Activation checkpointing: run a block without recording it, keep only its inputs, and record it again when its gradient
// is asked for. Trades one more forward for the memory of the block's saved tensors. Gradients are bitwise equal to the
// plain ones: every op is deterministic and random numbers are counters, not generator state.
#pragma once
#include <functional>
#include <vector>

#include "autograd/node.h"

namespace lc {

using BlockFn = std::function<std::vector<Tensor>(const std::vector<Tensor>& inputs)>;

// `fn` may read parameters it captured; their gradients are collected too. It must compute the same each time.
std::vector<Tensor> checkpoint(BlockFn fn, const std::vector<Tensor>& inputs);

}  // namespace lc
