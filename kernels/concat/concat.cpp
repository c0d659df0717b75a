#include "kernels/concat/concat.h"

#include "kernels/common/dispatch.h"
#include "kernels/concat/concat_naive.h"

namespace lc::kernels {

void concat_forward(const ConcatForward& args, Stream) {
    LC_CHECK(args.a.rank() == args.b.rank() && args.axis >= 0 && args.axis < args.a.rank(),
             "concat of {} and {} along axis {}", args.a.shape(), args.b.shape(), args.axis);
    for (int axis = 0; axis < args.a.rank(); ++axis)
        LC_CHECK(axis == args.axis || args.a.size(axis) == args.b.size(axis),
                 "concat along axis {}: {} and {} differ elsewhere", args.axis, args.a.shape(), args.b.shape());
    Shape shape = args.a.shape();
    shape[args.axis] += args.b.size(args.axis);
    LC_CHECK(args.out.shape() == shape, "concat: out must be {}, got {}", shape, args.out.shape());
    require_alike("concat", {args.a, args.b, args.out});
    concat_forward_naive(args);
}

void concat_backward(const ConcatBackward& args, Stream) {
    on_cpu("concat", {args.dout, args.da.view, args.db.view},
           [&](auto type) { concat_backward_naive<typename decltype(type)::type>(args); });
}

}  // namespace lc::kernels
