#include "kernels/embedding/embedding.h"

#include "kernels/common/dispatch.h"
#include "kernels/embedding/embedding_naive.h"

namespace lc::kernels {
namespace {

// Runs `f` with the ids on the table's device; those on the CPU are checked before they travel.
template <class F>
void with_ids_on(const TensorView& table, const TensorView& ids, F&& f) {
    LC_CHECK(ids.dtype == DType::i32 || ids.dtype == DType::i64, "embedding: ids must be i32 or i64, got {}",
             name_of(ids.dtype));
    LC_CHECK(ids.device.is_cpu() || ids.device == table.device, "embedding: devices differ, {} and {}",
             table.device.str(), ids.device.str());
    LC_CHECK(ids.numel() < int64_t{1} << 31, "embedding: {} ids in one call, at most 2^31 - 1", ids.numel());
    if (ids.device == table.device) return f(ids);
    const Tensor moved = Tensor::from(read_ids("embedding", ids, table.size(0)), ids.shape()).to(table.device);
    f(moved.view());
}

}  // namespace

void embedding_forward(const EmbeddingForward& args, Stream stream) {
    const ProfileZone zone("embedding");
    LC_CHECK(args.weight.rank() == 2 && args.out.rank() == args.ids.rank() + 1 &&
                 args.out.size(-1) == args.weight.size(1) && row_count(args.out.shape()) == args.ids.numel(),
             "embedding: out must be ids {} x D of weight {}, got {}", args.ids.shape(), args.weight.shape(),
             args.out.shape());
    require_wide("embedding", args.out, {args.weight});
    if constexpr (cuda::kBuilt)
        if (on_cuda("embedding", args.weight))
            return with_ids_on(args.weight, args.ids, [&](const TensorView& ids) {
                embedding_forward_cuda({.weight = args.weight, .ids = ids, .out = args.out}, stream);
            });
    dispatch_compute(args.out.dtype, "embedding",
                     [&](auto type) { embedding_forward_naive<typename decltype(type)::type>(args); });
}

void embedding_backward(const EmbeddingBackward& args, Stream stream) {
    const ProfileZone zone("embedding backward");
    LC_CHECK(row_count(args.dout.shape()) == args.ids.numel(), "embedding: dout {} does not belong to ids {}",
             args.dout.shape(), args.ids.shape());
    if (!args.dweight) return;
    LC_CHECK(args.dweight.view.rank() == 2 && args.dweight.view.size(1) == args.dout.size(-1),
             "embedding: dweight must be [V,{}], got {}", args.dout.size(-1), args.dweight.view.shape());
    require_wide("embedding", args.dout, {args.dweight.view});
    if constexpr (cuda::kBuilt)
        if (on_cuda("embedding", args.dout))
            return with_ids_on(args.dweight.view, args.ids, [&](const TensorView& ids) {
                embedding_backward_cuda({.ids = ids, .dout = args.dout, .dweight = args.dweight}, stream);
            });
    dispatch_compute(args.dout.dtype, "embedding",
                     [&](auto type) { embedding_backward_naive<typename decltype(type)::type>(args); });
}

}  // namespace lc::kernels
