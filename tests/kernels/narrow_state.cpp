#include "tests/kernels/narrow_state.h"

#include "core/check.h"

namespace lc::test {
namespace {

using kernels::WindowKind;

TEST(NarrowState, IsWideArithmeticRoundedWhereBlocksJoin) {
    expect_wide_arithmetic({}, Device{}, DType::f32);
    expect_wide_arithmetic({.window = WindowKind::sliding, .maps = 2}, Device{}, DType::f32);
    expect_wide_arithmetic({.w = 16, .d = 64, .f = 32, .positions = {-1, 5, 32, 47, 48}}, Device{}, DType::f32);
}

TEST(NarrowState, RefusesAMixture) {
    const auto zeros = [](const Shape& shape, DType dtype = DType::f32) { return Tensor::zeros(shape, dtype); };
    const Tensor q = zeros({1, 1, 1, 2}), w = zeros({1, 2, 1}), s = zeros({1, 1, 2, 2}, DType::bf16),
                 z = zeros({1, 1, 2}), at = zeros({1}, DType::i64);
    const kernels::HybridDecode args{.q = q.view(),
                                     .k = q.view(),
                                     .v = q.view(),
                                     .wq = w.view(),
                                     .wk = w.view(),
                                     .s = s.view(),
                                     .z = z.view(),
                                     .y = q.view(),
                                     .positions = at.view(),
                                     .spec = {.window = WindowKind::none}};
    EXPECT_THROW(kernels::hybrid_decode(args, Stream{}), Error);
}

}  // namespace
}  // namespace lc::test
