#include "kernels/add/add.h"

#include "kernels/add/add_naive.h"
#include "kernels/common/dispatch.h"

namespace lc::kernels {

void add_forward(const AddForward& args, Stream) {
    on_cpu("add", {args.a, args.b, args.c}, [&](auto type) { add_forward_naive<typename decltype(type)::type>(args); });
}

void add_backward(const AddBackward& args, Stream) {
    on_cpu("add", {args.dc, args.da.view, args.db.view},
           [&](auto type) { add_backward_naive<typename decltype(type)::type>(args); });
}

}  // namespace lc::kernels
