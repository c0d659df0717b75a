#include "kernels/add/add.h"

#include "kernels/add/add_naive.h"
#include "kernels/common/dispatch.h"

namespace lc::kernels {

void add_forward(const AddForward& args, Stream stream) {
    const ProfileZone zone("add");
    require_one_shape("add", {args.a, args.b, args.c});
    require_alike("add", {args.a, args.b, args.c});
    if constexpr (cuda::kBuilt)
        if (on_cuda("add", args.a)) return add_forward_cuda(args, stream);
    dispatch_compute(args.a.dtype, "add", [&](auto type) { add_forward_naive<typename decltype(type)::type>(args); });
}

void add_backward(const AddBackward& args, Stream stream) {
    const ProfileZone zone("add backward");
    require_one_shape("add", {args.dc, args.da.view, args.db.view});
    require_alike("add", {args.dc});
    require_wide("add", args.dc, {args.da.view, args.db.view});
    if constexpr (cuda::kBuilt)
        if (on_cuda("add", args.dc)) return add_backward_cuda(args, stream);
    dispatch_compute(args.dc.dtype, "add", [&](auto type) { add_backward_naive<typename decltype(type)::type>(args); });
}

}  // namespace lc::kernels
