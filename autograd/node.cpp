#include "autograd/node.h"

#include <atomic>
#include <unordered_set>

namespace lc {
namespace {

thread_local bool grad_mode = true;
std::atomic<uint64_t> next_sequence{1};

AutogradMeta* meta_of(const Tensor& tensor) { return static_cast<AutogradMeta*>(tensor.autograd().get()); }

Edge edge_to(const Tensor& input) {
    if (!requires_grad(input)) return {};
    auto meta = std::static_pointer_cast<AutogradMeta>(input.autograd());
    const bool wide = !meta->node && !meta->stands_in;
    const DType dtype = wide ? statistics_dtype(input.dtype()) : input.dtype();
    Edge edge{meta->node, meta->output, nullptr, input.layout(), dtype, input.device()};
    if (!edge.node) edge.leaf = std::move(meta);
    return edge;
}

}  // namespace

bool grad_enabled() { return grad_mode; }
GradModeGuard::GradModeGuard(bool enabled) : previous_(grad_mode) { grad_mode = enabled; }
GradModeGuard::~GradModeGuard() { grad_mode = previous_; }

SavedTensor::SavedTensor(Node* owner, std::string_view name) : owner_(owner), name_(name) {
    owner->saved_.push_back(this);
}

void SavedTensor::save(const Tensor& tensor) {
    tensor_ = tensor.detach();
    version_ = tensor.version();
}

const Tensor& SavedTensor::get() const {
    LC_CHECK(!released_, "{}: saved tensor '{}' was already released; pass retain_graph to run backward twice",
             owner_->name(), name_);
    LC_CHECK(tensor_.version() == version_,
             "{}: saved tensor '{}' was modified in place after forward (version {}, saved at {})", owner_->name(), name_,
             tensor_.version(), version_);
    return tensor_;
}

void SavedTensor::release() {
    if (tensor_.defined()) released_ = true;
    tensor_ = Tensor();
    version_ = 0;
}

Node::Node() : sequence_(next_sequence++) {}

// Without care, freeing a tape of n nodes recurses n deep through the edges. Take the edges of every node that dies with
// us into one worklist instead.
Node::~Node() {
    std::vector<std::shared_ptr<Node>> pending;
    auto take_edges = [&pending](std::vector<Edge>& edges) {
        for (Edge& edge : edges)
            if (edge.node) pending.push_back(std::move(edge.node));
        edges.clear();
    };
    take_edges(inputs_);
    while (!pending.empty()) {
        std::shared_ptr<Node> node = std::move(pending.back());
        pending.pop_back();
        if (node.use_count() == 1) take_edges(node->inputs_);
    }
}

int64_t Node::saved_bytes() const {
    int64_t bytes = 0;
    for (const SavedTensor* tensor : saved_) bytes += tensor->bytes();
    return bytes;
}

void Node::release_saved() {
    for (SavedTensor* tensor : saved_) tensor->release();
}

bool requires_grad(const Tensor& tensor) {
    const AutogradMeta* meta = meta_of(tensor);
    return meta && (meta->requires_grad || meta->node);
}

Tensor& set_requires_grad(Tensor& tensor, bool value) {
    LC_CHECK(tensor.defined() && is_floating(tensor.dtype()), "requires_grad: needs a floating-point tensor, got {}",
             tensor.defined() ? name_of(tensor.dtype()) : "an undefined one");
    if (!tensor.autograd()) {
        if (!value) return tensor;
        tensor.autograd() = std::make_shared<AutogradMeta>();
    }
    LC_CHECK(!meta_of(tensor)->node, "requires_grad: the tensor is the result of '{}', not a leaf; detach it first",
             meta_of(tensor)->node->name());
    meta_of(tensor)->requires_grad = value;
    return tensor;
}

Tensor grad_of(const Tensor& tensor) {
    const AutogradMeta* meta = meta_of(tensor);
    return meta ? meta->grad : Tensor();
}

void set_grad(Tensor& tensor, Tensor grad) {
    LC_CHECK(meta_of(tensor), "set_grad: the tensor does not require a gradient");
    LC_CHECK(!grad.defined() || grad.shape() == tensor.shape(), "set_grad: gradient {} for a tensor {}", grad.shape(),
             tensor.shape());
    meta_of(tensor)->grad = std::move(grad);
}

bool should_record(std::initializer_list<const Tensor*> inputs) {
    if (!grad_mode) return false;
    for (const Tensor* input : inputs)
        if (requires_grad(*input)) return true;
    return false;
}

bool should_record(std::span<const Tensor> inputs) {
    if (!grad_mode) return false;
    for (const Tensor& input : inputs)
        if (requires_grad(input)) return true;
    return false;
}

namespace {
void attach(const std::shared_ptr<Node>& node, Tensor& output, int index) {
    auto meta = std::make_shared<AutogradMeta>();
    meta->node = node;
    meta->output = index;
    output.autograd() = std::move(meta);
}
}  // namespace

void record(const std::shared_ptr<Node>& node, std::initializer_list<const Tensor*> inputs,
            std::initializer_list<Tensor*> outputs) {
    for (const Tensor* input : inputs) node->inputs_.push_back(edge_to(*input));
    for (Tensor* output : outputs) attach(node, *output, node->num_outputs_++);
}

void record(const std::shared_ptr<Node>& node, std::span<const Tensor> inputs, std::span<Tensor> outputs) {
    for (const Tensor& input : inputs) node->inputs_.push_back(edge_to(input));
    for (Tensor& output : outputs) attach(node, output, node->num_outputs_++);
}

TapeSummary dump_tape(const Tensor& root) {
    TapeSummary summary;
    const AutogradMeta* meta = meta_of(root);
    std::vector<const Node*> pending;
    std::unordered_set<const Node*> seen;
    if (meta && meta->node) pending.push_back(meta->node.get());
    while (!pending.empty()) {
        const Node* node = pending.back();
        pending.pop_back();
        if (!seen.insert(node).second) continue;
        summary.nodes++;
        summary.saved_bytes += node->saved_bytes();
        summary.text += fmt::format("#{} {} {} B:", node->sequence(), node->name(), node->saved_bytes());
        for (const SavedTensor* saved : node->saved())
            if (saved->peek().defined())
                summary.text += fmt::format(" {}{}:{}", saved->name(), saved->peek().shape(), name_of(saved->peek().dtype()));
        summary.text += '\n';
        for (const Edge& edge : node->inputs())
            if (edge.node) pending.push_back(edge.node.get());
    }
    return summary;
}

}  // namespace lc
