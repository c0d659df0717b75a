#include "autograd/checkpoint.h"

#include "autograd/engine.h"

namespace lc {
namespace {

struct CheckpointNode final : Node {
    BlockFn fn;
    std::vector<std::unique_ptr<SavedTensor>> saved_inputs;
    std::vector<bool> wants_grad;
    std::string_view name() const override { return "checkpoint"; }

    void backward(std::span<const Tensor> dout, GradSink& din) override {
        std::vector<Tensor> inputs;
        for (size_t i = 0; i < saved_inputs.size(); ++i) {
            inputs.push_back(saved_inputs[i]->get().detach());
            if (!wants_grad[i]) continue;
            set_requires_grad(inputs.back());
            static_cast<AutogradMeta*>(inputs.back().autograd().get())->stands_in = true;
        }
        std::vector<Tensor> roots, grads;
        {
            const GradModeGuard record_again(true);
            const std::vector<Tensor> outputs = fn(inputs);
            for (size_t i = 0; i < outputs.size(); ++i)
                if (dout[i].defined() && requires_grad(outputs[i])) roots.push_back(outputs[i]), grads.push_back(dout[i]);
        }
        if (!roots.empty()) lc::backward(roots, grads);
        for (size_t i = 0; i < inputs.size(); ++i)
            if (wants_grad[i] && grad_of(inputs[i]).defined()) din.pass(static_cast<int>(i), grad_of(inputs[i]));
    }
};

}  // namespace

std::vector<Tensor> checkpoint(BlockFn fn, const std::vector<Tensor>& inputs) {
    if (!grad_enabled()) return fn(inputs);
    std::vector<Tensor> outputs;
    {
        const NoGrad no_grad;
        outputs = fn(inputs);
    }
    for (Tensor& output : outputs) output = output.detach();
    auto node = std::make_shared<CheckpointNode>();
    for (const Tensor& input : inputs) {
        node->saved_inputs.push_back(std::make_unique<SavedTensor>(node.get(), "input"));
        node->saved_inputs.back()->save(input);
        node->wants_grad.push_back(requires_grad(input));
    }
    node->fn = std::move(fn);
    record(node, inputs, outputs);
    return outputs;
}

}  // namespace lc
