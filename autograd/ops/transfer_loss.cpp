#include "autograd/ops/transfer_loss.h"

#include "autograd/node.h"
#include "kernels/transfer_loss/transfer_loss.h"

namespace lc {
namespace {

// The forward made the gradients; the backward scales them.
struct TransferLossNode final : Node {
    SavedTensor dwq{this, "dwq"}, dbq{this, "dbq"}, dwk{this, "dwk"}, dbk{this, "dbk"}, dmix_logit{this, "dmix_logit"};
    std::string_view name() const override { return "transfer_loss"; }

    void backward(std::span<const Tensor> dout, GradSink& din) override {
        const SavedTensor* gradients[] = {&dwq, &dbq, &dwk, &dbk, &dmix_logit};
        for (int i = 0; i < 5; ++i)
            if (din.wants(i))
                kernels::transfer_loss_backward(
                    {.dloss = dout[0].view(), .gradient = gradients[i]->view(), .out = din.slot(i)}, current_stream(dout[0].device()));
    }
};

}  // namespace

Tensor transfer_loss(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& target, const FeatureMaps& maps,
                     const Tensor& mix_logit, const kernels::LinearizedSpec& spec, double factor) {
    for (const auto& [name, constant] : {std::pair{"q", &q}, {"k", &k}, {"v", &v}, {"target", &target}})
        LC_CHECK(!should_record({constant}), "transfer_loss: {} is a constant here and cannot collect a gradient",
                 name);
    Tensor loss = Tensor::empty({}, statistics_dtype(q.dtype()), q.device());
    const Tensor* parameters[] = {&maps.wq, &maps.bq, &maps.wk, &maps.bk, &mix_logit};
    Tensor gradients[5];
    GradSlot slots[5];
    for (int i = 0; i < 5; ++i) {
        if (!parameters[i]->defined() || !should_record({parameters[i]})) continue;
        gradients[i] = Tensor::empty(parameters[i]->shape(), statistics_dtype(parameters[i]->dtype()), parameters[i]->device());
        slots[i] = {gradients[i].view(), GradWrite::Overwrite};
    }
    kernels::transfer_loss({.q = q.view(),
                            .k = k.view(),
                            .v = v.view(),
                            .target = target.view(),
                            .wq = maps.wq.view(),
                            .bq = maps.bq.view(),
                            .wk = maps.wk.view(),
                            .bk = maps.bk.view(),
                            .mix_logit = mix_logit.view(),
                            .loss = loss.view(),
                            .gradients = {slots[0], slots[1], slots[2], slots[3], slots[4]},
                            .factor = factor,
                            .spec = spec},
                           current_stream(q.device()));
    if (should_record({&maps.wq, &maps.bq, &maps.wk, &maps.bk, &mix_logit})) {
        auto node = std::make_shared<TransferLossNode>();
        node->dwq.save(gradients[0]), node->dbq.save(gradients[1]), node->dwk.save(gradients[2]);
        node->dbk.save(gradients[3]), node->dmix_logit.save(gradients[4]);
        record(node, {&maps.wq, &maps.bq, &maps.wk, &maps.bk, &mix_logit}, {&loss});
    }
    return loss;
}

}  // namespace lc
