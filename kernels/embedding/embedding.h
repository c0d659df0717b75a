// out[i] = weight[ids[i]]          dweight[v] = sum over i with ids[i] = v of dout[i], i in rising order
#pragma once
#include "core/device.h"
#include "core/tensor.h"
#include "kernels/common/grad_write.h"

namespace lc::kernels {

struct EmbeddingForward {
    TensorView weight;  // [V,D]    in
    TensorView ids;     // [...]    in, i32 or i64 in [0,V); checked where they lie on the CPU (they may beside a table on a
                        //          GPU). A GPU cannot refuse: an id outside gives a row of NaN and no gradient.
    TensorView out;     // [...,D]  out, weight's dtype, or bf16 beside an f32 table on a GPU
};
void embedding_forward(const EmbeddingForward& args, Stream stream);
void embedding_forward_cuda(const EmbeddingForward& args, Stream stream);

struct EmbeddingBackward {
    TensorView ids;    // [...]    in
    TensorView dout;   // [...,D]  in
    GradSlot dweight;  // [V,D]    out
};
void embedding_backward(const EmbeddingBackward& args, Stream stream);
void embedding_backward_cuda(const EmbeddingBackward& args, Stream stream);

}  // namespace lc::kernels
