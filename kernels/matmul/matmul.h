// c = a b for each of a batch of matrices          da = dc b^T      db = a^T dc
#pragma once
#include "core/device.h"
#include "core/tensor.h"
#include "kernels/common/grad_write.h"

namespace lc::kernels {

struct MatmulForward {
    TensorView a;  // [...,M,K]  in
    TensorView b;  // [...,K,N]  in, the same leading dimensions
    TensorView c;  // [...,M,N]  out
};
void matmul_forward(const MatmulForward& args, Stream stream);
void matmul_forward_cuda(const MatmulForward& args, Stream stream);

struct MatmulBackward {
    TensorView a, b;  // as in the forward
    TensorView dc;    // [...,M,N]  in
    GradSlot da, db;  // out
};
void matmul_backward(const MatmulBackward& args, Stream stream);
void matmul_backward_cuda(const MatmulBackward& args, Stream stream);

}  // namespace lc::kernels
