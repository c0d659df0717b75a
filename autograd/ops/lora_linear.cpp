#include "autograd/ops/lora_linear.h"

#include <deque>

#include "autograd/node.h"
#include "kernels/lora_linear/lora_linear.h"

namespace lc {
namespace {

struct LoraLinearNode final : Node {
    struct Saved {
        SavedTensor w, a, b;
        double s = 1;
        Shape out;  // of y
        explicit Saved(Node* node) : w{node, "w"}, a{node, "a"}, b{node, "b"} {}
    };
    SavedTensor x{this, "x"}, p{this, "p"};
    std::deque<Saved> projections;  // saved tensors do not move
    std::string_view name() const override { return "lora_linear"; }

    // Inputs: x, then w, a, b and bias of each projection.
    void backward(std::span<const Tensor> dout, GradSink& din) override {
        kernels::LoraLinearBackward args{.x = x.view(), .p = p.view(), .projections = {}, .dx = din.slot(0)};
        std::vector<Tensor> dy(dout.begin(), dout.end());
        for (size_t i = 0; i < projections.size(); ++i) {
            Saved& saved = projections[i];
            if (!dy[i].defined()) dy[i] = Tensor::zeros(saved.out, args.x.dtype, args.x.device);  // nobody used y_i
            const int first = 1 + 4 * static_cast<int>(i);
            args.projections.push_back({.w = saved.w.view(),
                                        .a = saved.a.view(),
                                        .b = saved.b.view(),
                                        .dy = dy[i].view(),
                                        .dw = din.slot(first),
                                        .da = din.slot(first + 1),
                                        .db = din.slot(first + 2),
                                        .dbias = din.slot(first + 3),
                                        .s = saved.s});
        }
        kernels::lora_linear_backward(args, current_stream(args.x.device));
    }
};

}  // namespace

std::vector<Tensor> lora_linear(const Tensor& x, std::span<const LoraProjection> projections) {
    kernels::LoraLinearForward args{.x = x.view(), .projections = {}, .p = {}};
    std::vector<Tensor> inputs{x}, outputs;
    int64_t columns = 0;
    for (const auto& [w, a, b, s, bias] : projections) {
        LC_CHECK(x.rank() >= 1 && x.size(-1) > 0 && w.rank() == 2 && a.rank() == 2,
                 "lora_linear: x must be [...,In], w [Out,In], a [R,In], got {}, {}, {}", x.shape(), w.shape(),
                 a.shape());
        Shape shape = x.shape();
        shape[-1] = w.size(0);
        outputs.push_back(Tensor::empty(shape, x.dtype(), x.device()));
        columns += kernels::lora_columns(a.size(0));
        args.projections.push_back(
            {.w = w.view(), .a = a.view(), .b = b.view(), .bias = bias.view(), .y = outputs.back().view(), .s = s});
        inputs.insert(inputs.end(), {w, a, b, bias});
    }
    LC_CHECK(!projections.empty(), "lora_linear: no projections");
    const Tensor p = Tensor::empty({x.numel() / x.size(-1), columns}, x.dtype(), x.device());
    args.p = p.view();
    kernels::lora_linear_forward(args, current_stream(x.device()));
    if (should_record(inputs)) {
        auto node = std::make_shared<LoraLinearNode>();
        node->x.save(x), node->p.save(p);
        for (size_t i = 0; i < projections.size(); ++i) {
            LoraLinearNode::Saved& saved = node->projections.emplace_back(node.get());
            saved.w.save(projections[i].w), saved.a.save(projections[i].a), saved.b.save(projections[i].b);
            saved.s = projections[i].s, saved.out = outputs[i].shape();
        }
        record(node, inputs, outputs);
    }
    return outputs;
}

Tensor lora_linear(const Tensor& x, const Tensor& w, const Tensor& a, const Tensor& b, double s, const Tensor& bias) {
    const LoraProjection one[] = {{w, a, b, s, bias}};
    return lora_linear(x, one)[0];
}

}  // namespace lc
