// Reverse-mode differentiation of a recorded tape.
#pragma once
#include "autograd/node.h"

namespace lc {

struct BackwardOptions {
    bool retain_graph = false;  // keep saved tensors for another backward over the same tape
};

// Adds d(root)/d(leaf) to the gradient of every leaf below `root`. `grad` is the gradient of the root itself; it may be
// undefined for a tensor of one element (then 1). Leaf gradients are f32 (f64 for f64 leaves). Not differentiable itself.
void backward(const Tensor& root, const Tensor& grad = {}, BackwardOptions options = {});

// The same for several roots at once; grads[i] belongs to roots[i].
void backward(std::span<const Tensor> roots, std::span<const Tensor> grads, BackwardOptions options = {});

}  // namespace lc
