#include "train/memory_ghost.h"

#include <algorithm>
#include <utility>

#include "core/check.h"

namespace lc::train::memory {

// The size classes of core/allocator.cpp: a test compares the two.
int64_t allocated_bytes(int64_t bytes, DeviceType device) {
    const int64_t alignment = device == DeviceType::cpu ? 64 : 256;
    int64_t step = alignment;
    while (step * 16 < bytes) step *= 2;
    return std::max((bytes + step - 1) / step * step, alignment);
}

Ledger::Hold::Hold(Ledger& ledger, int64_t bytes, Owner owner)
    : ledger_(ledger), bytes_(allocated_bytes(bytes, ledger.device_)), owner_(owner), stream_(ledger.stream_) {
    Count& count = ledger_.classes_[{stream_, bytes_}];
    count.most = std::max(count.most, ++count.now);
    ledger_.total_ += bytes_;
    ledger_.add(owner_, bytes_);
}

Ledger::Hold::~Hold() {
    --ledger_.classes_[{stream_, bytes_}].now;
    ledger_.total_ -= bytes_;
    ledger_.add(owner_, -bytes_);
}

void Ledger::Hold::move_to(Owner owner) {
    ledger_.add(owner_, -bytes_);
    owner_ = owner;
    ledger_.add(owner_, bytes_);
}

void Ledger::Hold::save() {
    if (saved_++ == 0 && owner_ == Owner::transient) move_to(Owner::tape);
}

void Ledger::Hold::release() {
    if (--saved_ == 0 && owner_ == Owner::tape) move_to(Owner::transient);
}

void Ledger::add(Owner owner, int64_t bytes) {
    const auto i = static_cast<size_t>(owner);
    in_use_[i] += bytes;
    highest_[i] = std::max(highest_[i], in_use_[i]);
    if (total_ > peak_) peak_ = total_, at_peak_ = in_use_;
}

int64_t Ledger::reserved() const {
    int64_t bytes = 0;
    for (const auto& [key, count] : classes_) bytes += key.second * count.most;
    return bytes;
}

Ghost GhostTape::make(int64_t numel, DType dtype, Owner owner) const {
    return {ledger_.take(numel * size_of(dtype), owner), numel, dtype, nullptr};
}

void GhostTape::require_gradient(Ghost& leaf, DType dtype, Owner owner) const {
    leaf.gradient = std::make_shared<GhostGradient>(GhostGradient{nullptr, leaf.numel, dtype, owner});
}

bool GhostTape::should_record(const std::vector<Ghost>& inputs) const {
    return recording_ && std::ranges::any_of(inputs, [](const Ghost& input) { return input.gradient != nullptr; });
}

std::vector<Ledger::Block> GhostTape::hold(const std::vector<Workspace>& workspace) const {
    std::vector<Ledger::Block> blocks;
    for (const Workspace& part : workspace)
        for (const int64_t bytes : part.buffers)
            if (bytes > 0 && !part.brief) blocks.push_back(ledger_.take(bytes, part.owner));
    return blocks;
}

void GhostTape::pass_through(const std::vector<Workspace>& workspace) const {
    for (const Workspace& part : workspace)
        if (part.brief) hold({{part.owner, part.buffers}});
}

void GhostTape::run(Op op) {
    {
        const std::vector<Ledger::Block> workspace = hold(op.forward);
        pass_through(op.forward);
    }
    if (!should_record(op.inputs) && !(recording_ && op.replay)) return;
    Node node{
        .workspace = std::move(op.backward), .passes = op.passes, .twins = op.twins, .replay = std::move(op.replay)};
    for (const Ghost& input : op.inputs) node.inputs.push_back(input.gradient);
    for (Ghost* output : op.outputs) {
        output->gradient =
            std::make_shared<GhostGradient>(GhostGradient{nullptr, output->numel, output->dtype, Owner::transient});
        node.outputs.push_back(output->gradient);
    }
    for (const Ghost& saved : op.saved)
        if (saved.defined()) saved.block->save(), node.saved.push_back(saved.block);
    nodes_.push_back(std::move(node));
}

void GhostTape::take_gradient(GhostGradient& gradient) const {
    if (!gradient.buffer) gradient.buffer = ledger_.take(gradient.numel * size_of(gradient.dtype), gradient.owner);
}

void GhostTape::share_gradient(const Node& node) const {
    const auto &first = node.inputs[0], &second = node.inputs[1];
    const auto may_share = [](const auto& input) {
        return input && !input->buffer && input->owner == Owner::transient;
    };
    if (!may_share(first) || !may_share(second) || first == second) return;
    take_gradient(*first);
    second->buffer = first->buffer;
}

void GhostTape::run_backward(Node& node) {
    if (node.replay) return node.replay(*node.outputs[0]);
    const std::vector<Ledger::Block> workspace = hold(node.workspace);
    if (node.twins) share_gradient(node);
    GhostGradient* last = nullptr;
    for (const auto& input : node.inputs) {
        if (!input) continue;
        if (last) take_gradient(*last);
        last = input.get();
    }
    if (!last) return;
    if (node.passes && !last->buffer)
        last->buffer = node.outputs[0]->buffer;
    else
        take_gradient(*last);
    pass_through(node.workspace);
}

void GhostTape::unwind() {
    for (auto node = nodes_.rbegin(); node != nodes_.rend(); ++node) {
        const bool reached =
            std::ranges::any_of(node->outputs, [](const auto& output) { return output->buffer != nullptr; });
        if (reached) run_backward(*node);
        for (const auto& output : node->outputs) output->buffer.reset();
        for (const Ledger::Block& saved : node->saved) saved->release();
        node->saved.clear(), node->replay = nullptr;
    }
    nodes_.clear();
}

void GhostTape::backward(const std::vector<Ghost>& roots) {
    const Recording off(*this, false);
    for (const Ghost& root : roots) {
        LC_CHECK(root.gradient != nullptr, "rehearsal: nothing below a root wants a gradient");
        take_gradient(*root.gradient);
    }
    unwind();
}

void GhostTape::replay(const std::function<Ghost()>& block, const GhostGradient& upstream) {
    LC_CHECK(upstream.buffer != nullptr, "rehearsal: a block is replayed without a gradient of its output");
    std::vector<Node> outer = std::exchange(nodes_, {});
    {
        const Recording on(*this, true);
        const Ghost output = block();
        if (output.gradient) backward({output});  // starts from a copy of the gradient
    }
    nodes_ = std::move(outer);
}

}  // namespace lc::train::memory
