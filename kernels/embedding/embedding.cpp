#include "kernels/embedding/embedding.h"

#include "kernels/common/dispatch.h"
#include "kernels/embedding/embedding_naive.h"

namespace lc::kernels {

void embedding_forward(const EmbeddingForward& args, Stream) {
    LC_CHECK(args.weight.rank() == 2 && args.out.rank() == args.ids.rank() + 1 &&
                 args.out.size(-1) == args.weight.size(1) && row_count(args.out.shape()) == args.ids.numel(),
             "embedding: out must be ids {} x D of weight {}, got {}", args.ids.shape(), args.weight.shape(),
             args.out.shape());
    on_cpu("embedding", {args.weight, args.out},
           [&](auto type) { embedding_forward_naive<typename decltype(type)::type>(args); });
}

void embedding_backward(const EmbeddingBackward& args, Stream) {
    LC_CHECK(row_count(args.dout.shape()) == args.ids.numel(), "embedding: dout {} does not belong to ids {}",
             args.dout.shape(), args.ids.shape());
    on_cpu("embedding", {args.dout, args.dweight.view},
           [&](auto type) { embedding_backward_naive<typename decltype(type)::type>(args); });
}

}  // namespace lc::kernels
