// What kernels take from the allocator while they run, in bytes a buffer. Each function follows the kernel that it
// names; change both together (tests/gpu/memory_plan_test.cpp holds them against each other).
//
// The CPU's attention keeps its scratch in std::vector, outside the allocator's count: a few blocks of rows a thread
// and O(T F') a task.
#pragma once
#include <cstdint>
#include <vector>

#include "core/device.h"
#include "core/dtype.h"
#include "kernels/common/attention_spec.h"

namespace lc::train::memory {

using Buffers = std::vector<int64_t>;

// One call of linearized attention, forward or with the gradients named.
struct AttentionCall {
    int64_t batch = 0, heads = 0, kv_heads = 0, length = 0, head_dim = 0;
    int64_t key_maps = 0, features = 0;  // wk is [key_maps, D, F]
    kernels::LinearizedSpec spec;
    DType dtype = DType::f32;
    bool dq = false, dk = false, dv = false, dmaps = false;
    int64_t bias_width = 0;         // F, 1 or no bias
    int64_t multiprocessors = 132;  // of the GPU: into how many segments the fused form cuts a sequence

    bool backward() const { return dq || dk || dv || dmaps; }
};

// The fused forms' cases (hybrid_fused_covers and linear_fused_covers in kernels/), for tensors as the decoder makes them:
// bf16, heads of 64 or 128, softmax_dim maps of 64 features; terraced windows of 64, or none, which transfer_loss lacks.
bool is_fused(const AttentionCall& call);
bool is_fused_transfer_loss(const AttentionCall& call);
// Of hybrid_attention and linear_attention on a GPU: fused, else chunked (kernels/hybrid_attention/hybrid_chunked.cu),
// which needs the products' own workspace as well.
Buffers cuda_linearized_attention_workspace(const AttentionCall& call);
// Of transfer_loss on a GPU: the same with the loss in between (kernels/transfer_loss).
Buffers cuda_transfer_loss_workspace(const AttentionCall& call);

// Of softmax_attention's backward: two f32 a row and query head (one in some of its forms). Its forward takes none.
Buffers softmax_backward_workspace(int64_t rows, DeviceType device);

// One matrix product [m,k] x [k,n]: cuBLASLt's workspace, or the packed blocks of the threads that share it in the
// portable form (kernels/common/gemm.cpp). Inside a parallel loop every thread has a product of its own.
struct Product {
    int64_t m = 0, n = 0, k = 0;
    bool in_every_thread = false;
};
Buffers product_workspace(const Product& product, DeviceType device);

// kernels/lora_linear on a GPU, beside products: factors, and in the backward q and what its gradients are summed in. Layers of one
// input are one call.
struct LoraCall {
    int64_t rows = 0, in = 0, rank = 0;
    std::vector<int64_t> outs;
    DType dtype = DType::f32;
    bool dx = false;  // wanted
    int64_t multiprocessors = 132;
};
Buffers lora_factors_workspace(const LoraCall& call, DeviceType device);
Buffers lora_gradients_workspace(const LoraCall& call, DeviceType device);

// kernels/linear_cross_entropy: logits of a chunk of rows, and what lies beside them.
struct LossCall {
    int64_t rows = 0, labelled = 0;  // labelled: those that are predicted
    int64_t vocabulary = 0, hidden = 0;
    DType dtype = DType::f32, weight_dtype = DType::f32;
    bool is_frozen = false;  // a head without bias that wants no gradient: on a GPU, as Hopper does it
    bool dhidden = false;    // wanted
};
Buffers loss_workspace(const LossCall& call, DeviceType device);

// kernels/embedding/embedding.cu, kernels/common/cuda/norm_rows.cuh and column_sum.cu: gradients of the table, of a norm's weight
// and of a bias.
Buffers embedding_backward_workspace(int64_t vocabulary, int64_t ids, DeviceType device);
Buffers norm_weight_workspace(int64_t rows, int64_t columns, DeviceType device);
Buffers column_sum_workspace(int64_t rows, int64_t columns, DeviceType device);

}  // namespace lc::train::memory
