// Element types. Storage knows all of them; arithmetic on the CPU is f32 and f64, the 16-bit floats are for storage.
#pragma once
#include <bit>
#include <cstdint>
#include <string_view>
#include <type_traits>

#include "core/check.h"

namespace lc {

enum class DType : uint8_t { f64, f32, bf16, f16, i64, i32, u8, boolean };

// bfloat16: the upper half of an f32. Rounds to nearest even; NaN stays NaN.
struct bf16 {
    uint16_t bits = 0;
    bf16() = default;
    explicit bf16(float value);
    explicit operator float() const { return std::bit_cast<float>(uint32_t{bits} << 16); }
};

// IEEE binary16. Rounds to nearest even, overflows to infinity, keeps subnormals.
struct f16 {
    uint16_t bits = 0;
    f16() = default;
    explicit f16(float value);
    explicit operator float() const;
};

constexpr int64_t size_of(DType dtype) {
    switch (dtype) {
        case DType::f64: case DType::i64: return 8;
        case DType::f32: case DType::i32: return 4;
        case DType::bf16: case DType::f16: return 2;
        case DType::u8: case DType::boolean: return 1;
    }
    return 0;
}
constexpr bool is_floating(DType dtype) { return dtype <= DType::f16; }
std::string_view name_of(DType dtype);  // "f32"

// In which losses, row statistics and recurrent states are kept beside tensors of `dtype`: f64 beside f64, else f32.
constexpr DType statistics_dtype(DType dtype) { return dtype == DType::f64 ? DType::f64 : DType::f32; }

// Distance from 1 to the next larger value; the unit in which tolerances are derived. 0 for integers.
double epsilon_of(DType dtype);

template <class T> inline constexpr bool kHasDType = false;
template <class T> inline constexpr DType kDType = DType::u8;
#define LC_MAP_DTYPE(type, value)                                   \
    template <> inline constexpr bool kHasDType<type> = true;       \
    template <> inline constexpr DType kDType<type> = DType::value;
LC_MAP_DTYPE(double, f64)
LC_MAP_DTYPE(float, f32)
LC_MAP_DTYPE(bf16, bf16)
LC_MAP_DTYPE(f16, f16)
LC_MAP_DTYPE(int64_t, i64)
LC_MAP_DTYPE(int32_t, i32)
LC_MAP_DTYPE(uint8_t, u8)
LC_MAP_DTYPE(bool, boolean)
#undef LC_MAP_DTYPE

// Calls f(std::type_identity<T>{}) with T = float or double: the types the CPU computes in.
template <class F>
decltype(auto) dispatch_compute(DType dtype, std::string_view op, F&& f) {
    if (dtype == DType::f32) return f(std::type_identity<float>{});
    if (dtype == DType::f64) return f(std::type_identity<double>{});
    fail(ErrorKind::Internal, "{}: the CPU computes in f32 and f64, got {}", op, name_of(dtype));
}

// Calls f(std::type_identity<T>{}) with any element type.
template <class F>
decltype(auto) dispatch_any(DType dtype, F&& f) {
    switch (dtype) {
        case DType::f64: return f(std::type_identity<double>{});
        case DType::f32: return f(std::type_identity<float>{});
        case DType::bf16: return f(std::type_identity<bf16>{});
        case DType::f16: return f(std::type_identity<f16>{});
        case DType::i64: return f(std::type_identity<int64_t>{});
        case DType::i32: return f(std::type_identity<int32_t>{});
        case DType::u8: return f(std::type_identity<uint8_t>{});
        case DType::boolean: return f(std::type_identity<bool>{});
    }
    fail(ErrorKind::Internal, "unknown dtype {}", static_cast<int>(dtype));
}

}  // namespace lc
