// The tape: one Node for each recorded op, edges from a node to the nodes (or leaves) that made its inputs.
//
//   x ──edge── MulNode ──edge── SumNode      backward(sum) walks the edges to the left.
//
// A node is a class with named saved tensors, not a closure: it can be printed, measured and freed.
#pragma once
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "autograd/grad_mode.h"
#include "autograd/saved_tensor.h"
#include "core/tensor.h"
#include "kernels/common/grad_write.h"

namespace lc {

class Node;
class GradSink;

// What autograd hangs on a tensor. A leaf has no node and collects `grad`; the result of an op has its node.
struct AutogradMeta final : AutogradSlot {
    bool requires_grad = false;
    bool stands_in = false;      // a leaf in the place of an op's output: its gradient has its own dtype, as that one's would
    Tensor grad;                 // leaves only
    std::shared_ptr<Node> node;  // null for a leaf
    int output = 0;              // which output of `node` this tensor is
};

// The way from a node's input to what made it: an op's output or a leaf; empty when nobody wants that gradient.
struct Edge {
    std::shared_ptr<Node> node;
    int output = 0;
    std::shared_ptr<AutogradMeta> leaf;
    Layout layout;  // of the input: its gradient buffer gets the same order of axes
    DType dtype = DType::f32;  // of the gradient: the input's own, but f32 for a bf16 leaf
    Device device;
    explicit operator bool() const { return node || leaf; }
};

class Node {
  public:
    Node();
    virtual ~Node();  // iterative: a long tape does not overflow the stack
    Node(const Node&) = delete;
    Node& operator=(const Node&) = delete;

    virtual std::string_view name() const = 0;
    // dout[i] is the gradient of output i, undefined when nothing depended on it. The node writes the gradient of each
    // wanted input once, into the buffer that `din` hands out.
    virtual void backward(std::span<const Tensor> dout, GradSink& din) = 0;

    const std::vector<Edge>& inputs() const { return inputs_; }
    int num_outputs() const { return num_outputs_; }
    uint64_t sequence() const { return sequence_; }  // grows with creation: backward runs in falling order
    const std::vector<SavedTensor*>& saved() const { return saved_; }
    int64_t saved_bytes() const;
    void release_saved();

  private:
    friend class SavedTensor;
    friend void record(const std::shared_ptr<Node>&, std::initializer_list<const Tensor*>, std::initializer_list<Tensor*>);
    friend void record(const std::shared_ptr<Node>&, std::span<const Tensor>, std::span<Tensor>);
    std::vector<Edge> inputs_;
    std::vector<SavedTensor*> saved_;
    int num_outputs_ = 0;
    uint64_t sequence_ = 0;
};

// Hands a node's backward the buffers for its input gradients. Buffers start uninitialized: the first writer overwrites.
class GradSink {
  public:
    virtual ~GradSink() = default;
    virtual bool wants(int input) const = 0;
    virtual GradSlot slot(int input) = 0;              // at most once for each input
    // One buffer for the gradient of two inputs that have the same one, instead of their slots; it is overwritten, and copied when
    // something is added to one of them before the other was used. Empty where each must have its own: one is a parameter, is not wanted,
    // already has a gradient, or lies in memory in another order.
    virtual GradSlot shared_slot(int first, int second) = 0;
    // For views: `grad` itself becomes the gradient (no copy) if it is the first, else it is added. The caller must not
    // touch the tensor's memory afterwards.
    virtual void pass(int input, const Tensor& grad) = 0;
};

// --- metadata of tensors ---
bool requires_grad(const Tensor& tensor);
// Makes a tensor a leaf that collects a gradient (a parameter), or stops it.
Tensor& set_requires_grad(Tensor& tensor, bool value = true);
Tensor grad_of(const Tensor& tensor);        // undefined when there is none
void set_grad(Tensor& tensor, Tensor grad);  // undefined clears it

// --- recording ---
// True when grad mode is on and one of the inputs requires a gradient: only then does an op build a node.
bool should_record(std::initializer_list<const Tensor*> inputs);
bool should_record(std::span<const Tensor> inputs);
// Connects node -> inputs and outputs -> node. Input i of the node is inputs[i]; undefined inputs give empty slots.
void record(const std::shared_ptr<Node>& node, std::initializer_list<const Tensor*> inputs,
            std::initializer_list<Tensor*> outputs);
void record(const std::shared_ptr<Node>& node, std::span<const Tensor> inputs, std::span<Tensor> outputs);

// The tape below `root`, one line a node: sequence, name, saved tensors with shape and bytes.
struct TapeSummary {
    std::string text;
    int64_t nodes = 0;
    int64_t saved_bytes = 0;
};
TapeSummary dump_tape(const Tensor& root);

}  // namespace lc
