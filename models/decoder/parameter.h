// Private to models: tensors that own a place for their gradient from the start, so that every copy of the handle (in a
// NamedTensor, in an optimizer) shares it with the model.
#pragma once
#include "autograd/node.h"

namespace lc::models {

inline Tensor trainable(Tensor tensor) {
    set_requires_grad(tensor, true);
    return tensor;
}

inline Tensor frozen(Tensor tensor) {
    set_requires_grad(tensor, true);
    set_requires_grad(tensor, false);
    return tensor;
}

}  // namespace lc::models
