#include "bench/ladder/steps.h"

#include "kernels/common/cuda/hopper.h"
#include "kernels/hybrid_attention/hybrid_fused.h"

namespace lc::bench {
namespace {

using Inputs = std::vector<Tensor>;
using kernels::HybridAttentionForward;
using kernels::SoftmaxAttentionForward;

auto softmax(void (*forward)(const SoftmaxAttentionForward&, Stream)) {
    return [forward](const Inputs& in) {
        const Tensor y = Tensor::empty_like(in[0].layout(), in[0].dtype(), in[0].device());
        forward({.q = in[0].view(), .k = in[1].view(), .v = in[2].view(), .y = y.view(), .lse = {}},
                current_stream(y.device()));
        return y;
    };
}

auto hybrid(void (*forward)(const HybridAttentionForward&, Stream)) {
    return [forward](const Inputs& in) {
        const Tensor y = Tensor::empty_like(in[0].layout(), in[0].dtype(), in[0].device());
        HybridAttentionForward args;
        args.q = in[0].view(), args.k = in[1].view(), args.v = in[2].view(), args.y = y.view();
        args.wq = in[3].view(), args.wk = in[4].view(), args.mix_logit = in[5].view();
        forward(args, current_stream(y.device()));
        return y;
    };
}

}  // namespace

std::vector<Step> ladder_steps() {
    const std::string s = "softmax_attention", h = "hybrid_attention";
    std::vector<Step> steps{{s, "1 a thread a row", softmax(softmax_naive)},
                            {s, "2 tiles in shared memory", softmax(softmax_shared)},
                            {s, "3 tensor cores", softmax(softmax_mma)},
                            {s, "4 cp.async, 32 rows a warp (ours)", softmax(kernels::softmax_attention_forward_mma)}};
    if (kernels::hopper_applies({}))
        steps.push_back({s, "5 wgmma, TMA, roles (ours)", softmax(kernels::softmax_attention_forward_sm90)});
    steps.push_back({h, "1 a thread a row", hybrid(hybrid_naive)});
    steps.push_back({h, "2 a state instead of pairs", hybrid(hybrid_state)});
    steps.push_back({h, "3 tensor cores, state in registers (ours)", hybrid(kernels::hybrid_fused_forward)});
    if (kernels::hopper_applies({}))
        steps.push_back({h, "4 wgmma, TMA, roles (ours)", hybrid(kernels::hybrid_fused_forward_sm90)});
    return steps;
}

}  // namespace lc::bench
