#include "core/tensor.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace lc {
namespace {

template <class T>
T from_bits(uint32_t bits) {
    T value;
    value.bits = static_cast<uint16_t>(bits);
    return value;
}

template <class T>
class HalfTypes : public ::testing::Test {};
using Types = ::testing::Types<bf16, f16>;
TYPED_TEST_SUITE(HalfTypes, Types);

TYPED_TEST(HalfTypes, EveryPatternSurvivesTheRoundTrip) {
    for (uint32_t bits = 0; bits < 65536; ++bits) {
        const float wide = static_cast<float>(from_bits<TypeParam>(bits));
        const TypeParam back(wide);
        if (std::isnan(wide))
            EXPECT_TRUE(std::isnan(static_cast<float>(back))) << bits;
        else
            EXPECT_EQ(back.bits, bits);
    }
}

// Between neighbours: just below the middle rounds down, just above it up, the middle itself to the even pattern.
TYPED_TEST(HalfTypes, RoundsToNearestEven) {
    for (uint32_t bits = 0; bits < 65535; ++bits) {
        const float low = static_cast<float>(from_bits<TypeParam>(bits)),
                    high = static_cast<float>(from_bits<TypeParam>(bits + 1));
        if (!std::isfinite(low) || !std::isfinite(high)) continue;
        if (std::signbit(low) != std::signbit(high)) continue;  // from the largest positive pattern to -0
        const float middle = static_cast<float>((static_cast<double>(low) + static_cast<double>(high)) / 2);
        EXPECT_EQ(TypeParam(middle).bits, bits % 2 == 0 ? bits : bits + 1) << bits;
        EXPECT_EQ(TypeParam(std::nextafter(middle, low)).bits, bits) << bits;
        EXPECT_EQ(TypeParam(std::nextafter(middle, high)).bits, bits + 1) << bits;
    }
}

TEST(HalfTypesSpecial, OverflowUnderflowAndNan) {
    const float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
    EXPECT_EQ(static_cast<float>(f16(65519.0f)), 65504.0f);
    EXPECT_EQ(static_cast<float>(f16(65520.0f)), infinity);
    EXPECT_EQ(static_cast<float>(f16(-1e30f)), -infinity);
    EXPECT_EQ(static_cast<float>(f16(infinity)), infinity);
    EXPECT_TRUE(std::isnan(static_cast<float>(f16(nan))));
    EXPECT_EQ(static_cast<float>(f16(0x1p-24f)), 0x1p-24f);
    EXPECT_EQ(f16(0x1p-25f).bits, 0);  // tie between 0 and the smallest subnormal: even
    EXPECT_EQ(f16(-0.0f).bits, 0x8000);
    EXPECT_EQ(static_cast<float>(bf16(std::numeric_limits<float>::max())), infinity);
    EXPECT_EQ(static_cast<float>(bf16(-infinity)), -infinity);
    EXPECT_TRUE(
        std::isnan(static_cast<float>(bf16(std::bit_cast<float>(0x7f800001u)))));  // its payload lies in the lost half
}

std::vector<double> counting(int64_t n) {
    std::vector<double> values(static_cast<size_t>(n));
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<double>(i);
    return values;
}

TEST(Tensor, CopiesBetweenLayouts) {
    const Tensor x = Tensor::from(counting(24), {2, 3, 4}).permuted({2, 0, 1});
    const Tensor y = x.contiguous();
    for (int64_t i = 0; i < 4; ++i)
        for (int64_t j = 0; j < 2; ++j)
            for (int64_t k = 0; k < 3; ++k)
                EXPECT_EQ((y.as<double, 3>()(i, j, k)), static_cast<double>(j * 12 + k * 4 + i));
    EXPECT_TRUE(y.is_contiguous());
    EXPECT_EQ(x.clone().layout(), x.layout()) << "a clone keeps the order of axes";
    EXPECT_EQ(x.clone().to_vector<double>(), y.to_vector<double>());
    EXPECT_EQ(x.reshaped({4, 6}).to_vector<double>(), y.to_vector<double>());
    EXPECT_EQ(y.contiguous().storage(), y.storage());
}

TEST(Tensor, ConvertsBetweenAllDtypes) {
    const std::vector<double> values{0, 1, 2, 100};
    const Tensor x = Tensor::from(values, {2, 2});
    for (const DType a : {DType::f64, DType::f32, DType::bf16, DType::f16, DType::i64, DType::i32, DType::u8})
        for (const DType b : {DType::f64, DType::f32, DType::bf16, DType::f16, DType::i64, DType::i32, DType::u8})
            EXPECT_EQ(x.to(a).to(b).to_vector<double>(), values) << name_of(a) << " to " << name_of(b);
    EXPECT_EQ(x.to(DType::boolean).to(DType::f32).to_vector<double>(), (std::vector<double>{0, 1, 1, 1}));
    EXPECT_EQ(x.to(DType::f64).storage(), x.storage());
}

TEST(Tensor, InPlaceWritesBumpTheVersion) {
    Tensor x = Tensor::zeros({2, 3}, DType::f32);
    const Tensor view = x.sliced(1, 1, 2);
    const uint64_t before = view.version();
    x.fill(4);
    EXPECT_EQ(view.version(), before + 1);
    EXPECT_EQ(view.to_vector<float>(), (std::vector<float>{4, 4, 4, 4}));
    Tensor part = x.sliced(0, 0, 1);
    part.copy_from(Tensor::from(counting(3), {1, 3}));
    EXPECT_EQ(view.version(), before + 2);
    EXPECT_EQ(x.to_vector<double>(), (std::vector<double>{0, 1, 2, 4, 4, 4}));
}

TEST(Tensor, MisuseIsRefused) {
    const Tensor x = Tensor::zeros({2, 3}, DType::f32);
    EXPECT_THROW((void)x.data<double>(), Error);
    EXPECT_THROW((void)(x.as<float, 3>()), Error);
    EXPECT_THROW((void)x.item(), Error);
    EXPECT_THROW(Tensor::from(counting(5), {2, 3}), Error);
    EXPECT_THROW(Tensor::zeros({2, 2}, DType::f32).copy_from(x), Error);
    EXPECT_EQ(Tensor::full({}, 2.5, DType::f32).item(), 2.5);
    EXPECT_FALSE(Tensor().defined());
    EXPECT_FALSE(static_cast<bool>(Tensor().view()));
}

}  // namespace
}  // namespace lc
