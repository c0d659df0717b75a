// y = x W^T + b          dx = dy W     dW = dy^T x     db = sum over rows of dy
#pragma once
#include "core/device.h"
#include "core/tensor.h"
#include "kernels/common/grad_write.h"

namespace lc::kernels {

struct LinearForward {
    TensorView x;  // [...,In]   in
    TensorView w;  // [Out,In]   in
    TensorView b;  // [Out], or empty   in
    TensorView y;  // [...,Out]  out
};
void linear_forward(const LinearForward& args, Stream stream);

struct LinearBackward {
    TensorView x, w;      // as in the forward; x is read for dw only, w for dx only
    TensorView dy;        // [...,Out]  in
    GradSlot dx, dw, db;  // out: shapes of x, w, b
};
void linear_backward(const LinearBackward& args, Stream stream);

}  // namespace lc::kernels
