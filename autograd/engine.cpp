#include "autograd/engine.h"

#include <queue>
#include <unordered_map>

#include "kernels/accumulate/accumulate.h"

namespace lc {
namespace {

// What the engine knows of a node during one backward: gradients of its outputs so far, and how many consumers are
// left.
struct NodeState {
    std::shared_ptr<Node> node;
    std::vector<Tensor> grads;
    int waiting = 0;
};
using States = std::unordered_map<const Node*, NodeState>;

void add_into(Tensor& target, const Tensor& source) {
    kernels::accumulate({.source = source.view(), .target = target.view()}, current_stream(target.device()));
}

class Sink final : public GradSink {
  public:
    Sink(const Node& node, States& states) : node_(node), states_(states) {}

    bool wants(int input) const override { return static_cast<bool>(edge(input)); }

    GradSlot slot(int input) override {
        const Edge& e = edge(input);
        if (!e) return {};
        Tensor& buffer = target(e);
        if (!buffer.defined()) {
            buffer = Tensor::empty_like(e.layout, e.dtype, e.device);
            written_.push_back(&buffer);
            return {buffer.view(), GradWrite::Overwrite};
        }
        for (const Tensor* taken : written_)
            if (taken == &buffer) {  // one tensor is two inputs of this node: a kernel may write both at once
                extra_.push_back({&buffer, Tensor::empty_like(e.layout, buffer.dtype(), e.device)});
                return {extra_.back().second.view(), GradWrite::Overwrite};
            }
        make_own(e, buffer);
        written_.push_back(&buffer);
        return {buffer.view(), GradWrite::Accumulate};
    }

    GradSlot shared_slot(int first, int second) override {
        const Edge &a = edge(first), &b = edge(second);
        if (!may_share(a) || !may_share(b)) return {};
        Tensor &buffer = target(a), &twin = target(b);
        if (buffer.defined() || twin.defined() || &buffer == &twin) return {};
        if (a.dtype != b.dtype || a.device != b.device || a.layout.dense_like() != b.layout.dense_like()) return {};
        buffer = Tensor::empty_like(a.layout, a.dtype, a.device);
        twin = buffer.detach();
        return {buffer.view(), GradWrite::Overwrite};
    }

    void pass(int input, const Tensor& grad) override {
        const Edge& e = edge(input);
        if (!e) return;
        LC_CHECK(grad.shape() == e.layout.shape, "{}: gradient {} for an input {}", node_.name(), grad.shape(),
                 e.layout.shape);
        Tensor& buffer = target(e);
        if (buffer.defined()) return make_own(e, buffer), add_into(buffer, grad);
        // A leaf's gradient lies in memory like the leaf: optimizers walk both as flat arrays.
        if (grad.dtype() == e.dtype && (!e.leaf || grad.layout() == e.layout.dense_like())) {
            buffer = grad.detach();
        } else {
            buffer = Tensor::empty_like(e.layout, e.dtype, e.device);
            copy_strided(grad.view(), buffer.view());
        }
    }

    void finish() {
        for (auto& [buffer, grad] : extra_) add_into(*buffer, grad);
    }

  private:
    const Edge& edge(int input) const {
        LC_CHECK(input >= 0 && input < static_cast<int>(node_.inputs().size()), "{}: has no input {}", node_.name(),
                 input);
        return node_.inputs()[input];
    }
    // Not the gradient of a parameter: that lies where it lay, whoever else looks at it.
    static bool may_share(const Edge& e) { return e.node || (e.leaf && e.leaf->stands_in); }
    // Before something is added to a gradient that is another tensor's, too.
    static void make_own(const Edge& e, Tensor& buffer) {
        if (may_share(e) && buffer.storage().use_count() > 1) buffer = buffer.clone();
    }
    Tensor& target(const Edge& e) { return e.leaf ? e.leaf->grad : states_.at(e.node.get()).grads[e.output]; }

    const Node& node_;
    States& states_;
    std::vector<const Tensor*> written_;
    std::vector<std::pair<Tensor*, Tensor>> extra_;
};

// Finds every node below the roots and counts the edges that point at it.
void discover(const std::shared_ptr<Node>& root, States& states) {
    std::vector<std::shared_ptr<Node>> pending{root};
    while (!pending.empty()) {
        const std::shared_ptr<Node> node = std::move(pending.back());
        pending.pop_back();
        NodeState& state = states[node.get()];
        if (state.node) continue;
        state.node = node;
        state.grads.resize(node->num_outputs());
        for (const Edge& edge : node->inputs())
            if (edge.node) {
                pending.push_back(edge.node);
            }
    }
}

void seed(const Tensor& root, const Tensor& grad, States& states) {
    auto* meta = static_cast<AutogradMeta*>(root.autograd().get());
    Tensor start = grad;
    if (!start.defined()) {
        LC_CHECK(root.numel() == 1, "backward: a root of shape {} needs a gradient of that shape", root.shape());
        start = Tensor::full(root.shape(), 1.0, root.dtype(), root.device());
    }
    LC_CHECK(start.shape() == root.shape(), "backward: gradient {} for a root {}", start.shape(), root.shape());
    Tensor& target = meta->node ? states.at(meta->node.get()).grads[meta->output] : meta->grad;
    if (target.defined())
        add_into(target, start);
    else
        target = start.clone();
}

}  // namespace

void backward(const Tensor& root, const Tensor& grad, BackwardOptions options) {
    backward(std::span(&root, 1), std::span(&grad, 1), options);
}

void backward(std::span<const Tensor> roots, std::span<const Tensor> grads, BackwardOptions options) {
    LC_CHECK(roots.size() == grads.size(), "backward: {} roots but {} gradients", roots.size(), grads.size());
    const NoGrad no_grad;
    States states;
    for (const Tensor& root : roots) {
        LC_CHECK(requires_grad(root), "backward: the root does not depend on anything that requires a gradient");
        if (const auto& node = static_cast<AutogradMeta*>(root.autograd().get())->node) discover(node, states);
    }
    for (auto& [key, state] : states)
        for (const Edge& edge : state.node->inputs())
            if (edge.node) states.at(edge.node.get()).waiting++;
    for (size_t i = 0; i < roots.size(); ++i) seed(roots[i], grads[i], states);

    // Youngest first. A node is ready when all its consumers are done; the sequence number makes the order, and with it
    // the order of every sum, the same in every run.
    const auto older = [](const NodeState* a, const NodeState* b) { return a->node->sequence() < b->node->sequence(); };
    std::priority_queue<NodeState*, std::vector<NodeState*>, decltype(older)> ready(older);
    for (auto& [key, state] : states)
        if (state.waiting == 0) ready.push(&state);
    while (!ready.empty()) {
        NodeState& state = *ready.top();
        ready.pop();
        Node& node = *state.node;
        bool reached = false;
        for (const Tensor& grad : state.grads) reached = reached || grad.defined();
        if (reached) {
            Sink sink(node, states);
            node.backward(state.grads, sink);
            sink.finish();
        }
        state.grads.clear();
        if (!options.retain_graph) node.release_saved();
        for (const Edge& edge : node.inputs())
            if (edge.node && --states.at(edge.node.get()).waiting == 0) ready.push(&states.at(edge.node.get()));
    }
}

}  // namespace lc
