// Concatenation on the GPU.
//
// MATHS    concat.h.
// TILING   elementwise.cuh, one copy a part.
// COST     each element is read and written once.
// NUMERICS copies; an f32 gradient beside bf16 activations is added in f32.
// LADDER   1 this.
// SOURCE   derived here.
#include "kernels/common/cuda/elementwise.cuh"
#include "kernels/concat/concat.h"

namespace lc::kernels {
namespace {

TensorView part(TensorView view, int axis, int64_t start, int64_t length) {
    view.layout = view.layout.slice(axis, start, length);
    return view;
}

}  // namespace

void concat_forward_cuda(const ConcatForward& args, Stream stream) {
    const int64_t a_size = args.a.size(args.axis), b_size = args.b.size(args.axis);
    elementwise<1, 1>("concat", Identity{}, {args.a}, {{{part(args.out, args.axis, 0, a_size)}}}, stream);
    elementwise<1, 1>("concat", Identity{}, {args.b}, {{{part(args.out, args.axis, a_size, b_size)}}}, stream);
}

void concat_backward_cuda(const ConcatBackward& args, Stream stream) {
    const int64_t b_size = args.dout.size(args.axis) - args.a_size;
    elementwise<1, 1>("concat", Identity{}, {part(args.dout, args.axis, 0, args.a_size)}, {args.da}, stream);
    elementwise<1, 1>("concat", Identity{}, {part(args.dout, args.axis, args.a_size, b_size)}, {args.db}, stream);
}

}  // namespace lc::kernels
