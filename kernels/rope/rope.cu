// Rotary embedding on the GPU.
//
// MATHS    rope.h.
// TILING   elementwise.cuh over [B,H,T,D/2]: a thread takes eight pairs, i.e. eight elements of the lower half of a row, eight of the
//          upper half and eight of each table. The tables are broadcast over B and H; the walk goes as the result lies in
//          memory, so [B,T,H,D] storage is written in order.
// COST     8 bytes an element in f32, 4 in bf16; the tables stay in L2.
// NUMERICS f32, rounded once. The tables are f32 beside bf16 activations: a bf16 angle is off by up to 2^-9 of a turn's cosine.
// LADDER   1 this.
// SOURCE   arXiv 2104.09864.
#include "kernels/common/cuda/elementwise.cuh"
#include "kernels/rope/rope.h"

namespace lc::kernels {
namespace {

struct Rotation {
    float direction;
    __device__ void operator()(const float (&in)[4], float (&out)[2]) const {
        const auto [low, high, cos, sine] = in;
        const float sin = direction * sine;
        out[0] = low * cos - high * sin;
        out[1] = high * cos + low * sin;
    }
};

TensorView half_of(TensorView view, int which) {
    if (!view) return view;
    const int64_t half = view.size(3) / 2;
    view.layout = view.layout.slice(3, which * half, half);
    return view;
}

void rotate(const TensorView& x, TensorView cos, TensorView sin, int64_t first, float direction, const GradSlot& out,
            Stream stream) {
    const TensorView low = half_of(x, 0), high = half_of(x, 1);
    for (TensorView* table : {&cos, &sin}) table->layout = table->layout.slice(0, first, x.size(2)).expand(low.shape());
    elementwise<4, 2>("rope", Rotation{direction}, {low, high, cos, sin},
                      {{{half_of(out.view, 0), out.mode}, {half_of(out.view, 1), out.mode}}}, stream);
}

}  // namespace

void rope_forward_cuda(const RopeForward& args, Stream stream) {
    rotate(args.x, args.cos, args.sin, args.first, 1.0f, {args.y}, stream);
}

void rope_backward_cuda(const RopeBackward& args, Stream stream) {
    rotate(args.dy, args.cos, args.sin, args.first, -1.0f, args.dx, stream);
}

}  // namespace lc::kernels
