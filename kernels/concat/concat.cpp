#include "kernels/concat/concat.h"

#include "kernels/common/dispatch.h"
#include "kernels/concat/concat_naive.h"

namespace lc::kernels {

void concat_forward(const ConcatForward& args, Stream stream) {
    const ProfileZone zone("concat");
    LC_CHECK(args.a.rank() == args.b.rank() && args.axis >= 0 && args.axis < args.a.rank(),
             "concat of {} and {} along axis {}", args.a.shape(), args.b.shape(), args.axis);
    for (int axis = 0; axis < args.a.rank(); ++axis)
        LC_CHECK(axis == args.axis || args.a.size(axis) == args.b.size(axis),
                 "concat along axis {}: {} and {} differ elsewhere", args.axis, args.a.shape(), args.b.shape());
    Shape shape = args.a.shape();
    shape[args.axis] += args.b.size(args.axis);
    LC_CHECK(args.out.shape() == shape, "concat: out must be {}, got {}", shape, args.out.shape());
    require_alike("concat", {args.a, args.b, args.out});
    const bool computes = args.out.dtype == DType::f32 || args.out.dtype == DType::bf16;
    if constexpr (cuda::kBuilt)
        if (args.out.device.is_cuda() && computes) return concat_forward_cuda(args, stream);
    concat_forward_naive(args);  // copies: any dtype and device
}

void concat_backward(const ConcatBackward& args, Stream stream) {
    const ProfileZone zone("concat backward");
    require_wide("concat", args.dout, {args.da.view, args.db.view});
    if constexpr (cuda::kBuilt)
        if (on_cuda("concat", args.dout)) return concat_backward_cuda(args, stream);
    dispatch_compute(args.dout.dtype, "concat",
                     [&](auto type) { concat_backward_naive<typename decltype(type)::type>(args); });
}

}  // namespace lc::kernels
