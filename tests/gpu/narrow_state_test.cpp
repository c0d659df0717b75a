#include "tests/kernels/narrow_state.h"

#include "tests/gpu/gpu.h"

namespace lc::test {
namespace {

using kernels::WindowKind;

class NarrowStateOnGpu : public OnGpu {};

// The form for models, and the one for everything else.
TEST_F(NarrowStateOnGpu, IsWideArithmeticRoundedWhereBlocksJoin) {
    for (const DType dtype : {DType::bf16, DType::f32}) {
        for (const auto& [d, f] : {std::pair{64, 32}, {128, 64}})
            expect_wide_arithmetic({.w = 16, .d = d, .f = f, .positions = {-1, 5, 32, 47, 48, 63, 64}}, kGpu, dtype);
        expect_wide_arithmetic({.w = 64, .d = 128, .f = 64, .heads = 8, .maps = 8, .positions = {-1, 128, 129, 640}},
                               kGpu, dtype);
        expect_wide_arithmetic({}, kGpu, dtype);
        expect_wide_arithmetic({.window = WindowKind::sliding, .maps = 2}, kGpu, dtype);
    }
}

}  // namespace
}  // namespace lc::test
