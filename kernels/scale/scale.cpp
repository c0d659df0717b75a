#include "kernels/scale/scale.h"

#include "kernels/common/dispatch.h"
#include "kernels/scale/scale_naive.h"

namespace lc::kernels {

void scale_forward(const ScaleForward& args, Stream) {
    on_cpu("scale", {args.x, args.y}, [&](auto type) { scale_forward_naive<typename decltype(type)::type>(args); });
}

void scale_backward(const ScaleBackward& args, Stream) {
    on_cpu("scale", {args.dy, args.dx.view},
           [&](auto type) { scale_backward_naive<typename decltype(type)::type>(args); });
}

}  // namespace lc::kernels
