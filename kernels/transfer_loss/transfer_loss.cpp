#include "kernels/transfer_loss/transfer_loss.h"

#include "kernels/common/dispatch.h"
#include "kernels/hybrid_attention/hybrid_attention_blocks.h"
#include "kernels/transfer_loss/transfer_loss_naive.h"

namespace lc::kernels {

void transfer_loss(const TransferLoss& args, Stream stream) {
    const HybridAttentionForward attention{.q = args.q,
                                           .k = args.k,
                                           .v = args.v,
                                           .wq = args.wq,
                                           .bq = args.bq,
                                           .wk = args.wk,
                                           .bk = args.bk,
                                           .mix_logit = args.mix_logit,
                                           .s_in = {},
                                           .z_in = {},
                                           .y = {},
                                           .s_out = {},
                                           .z_out = {},
                                           .spec = args.spec};
    check_hybrid_attention(attention, "transfer_loss");
    LC_CHECK(args.k.size(2) == args.q.size(2), "transfer_loss: k must have the {} rows of q, got {}", args.q.size(2),
             args.k.shape());
    LC_CHECK(args.target.shape() == args.q.shape(), "transfer_loss: target must be {}, got {}", args.q.shape(),
             args.target.shape());
    LC_CHECK(args.loss.numel() == 1, "transfer_loss: loss must hold one number, got {}", args.loss.shape());
    require_alike("transfer_loss", {args.q, args.target});
    const HybridMapSlots& out = args.gradients;
    require_wide("transfer_loss", args.q,
                 {args.loss, out.dwq.view, out.dbq.view, out.dwk.view, out.dbk.view, out.dmix_logit.view});
    const ProfileZone zone("transfer_loss");
    if constexpr (cuda::kBuilt)
        if (on_cuda("transfer_loss", args.q)) return transfer_loss_cuda(args, attention, stream);
    require_cpu(args.q, "transfer_loss");
    if (use_fast_cpu(args.q.dtype)) {
        if (hybrid_blocks_cover(attention)) return transfer_loss_blocks(args);
        profile_count("fallback transfer_loss");
    }
    dispatch_compute(args.q.dtype, "transfer_loss",
                     [&](auto type) { transfer_loss_naive<typename decltype(type)::type>(args); });
}

void transfer_loss_backward(const TransferLossBackward& args, Stream stream) {
    if (!args.out) return;
    LC_CHECK(args.gradient.shape() == args.out.view.shape() && args.dloss.numel() == 1,
             "transfer_loss: gradient must be {} and dloss one number, got {} and {}", args.out.view.shape(),
             args.gradient.shape(), args.dloss.shape());
    if constexpr (cuda::kBuilt)
        if (on_cuda("transfer_loss", args.out.view)) return transfer_loss_backward_cuda(args, stream);
    require_alike("transfer_loss", {args.gradient, args.out.view, args.dloss});
    require_cpu(args.out.view, "transfer_loss");
    dispatch_compute(args.gradient.dtype, "transfer_loss",
                     [&](auto type) { transfer_loss_backward_naive<typename decltype(type)::type>(args); });
}

}  // namespace lc::kernels
