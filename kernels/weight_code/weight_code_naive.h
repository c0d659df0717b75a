// The rule of weight_code.h for one number, on either device, and loops over it.
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>

#include "kernels/common/rows.h"
#include "kernels/weight_code/weight_code.h"

namespace lc::kernels {

LC_HOST_DEVICE inline float most_of(WeightCode code) {
    return code == WeightCode::int8 ? 127.0f : 448.0f;
}

// What is not a number stays in.
LC_HOST_DEVICE inline float larger_magnitude(float most, float w) {
    const float magnitude = std::fabs(w);
    return magnitude <= most || most != most ? most : magnitude;
}

LC_HOST_DEVICE inline uint32_t bits_of(float value) {
#ifdef __CUDA_ARCH__
    return __float_as_uint(value);
#else
    return std::bit_cast<uint32_t>(value);
#endif
}
LC_HOST_DEVICE inline float float_of(uint32_t bits) {
#ifdef __CUDA_ARCH__
    return __uint_as_float(bits);
#else
    return std::bit_cast<float>(bits);
#endif
}

// x in [-448, 448]. Below 2^-6 codes are steps of 2^-9; above, a float's bits with a fraction of three bits and another bias.
LC_HOST_DEVICE inline uint8_t encode_fp8(float x) {
    const uint32_t bits = bits_of(x), sign = bits >> 24 & 0x80u, magnitude = bits & 0x7fffffffu;
    if (magnitude < bits_of(0x1p-6f))
        return static_cast<uint8_t>(sign | static_cast<uint32_t>(std::rint(float_of(magnitude) * 0x1p9f)));
    const uint32_t rounded = (magnitude + 0x7ffffu + (magnitude >> 20 & 1u)) >> 20;
    return static_cast<uint8_t>(sign | (rounded - ((127u - 7u) << 3)));
}

LC_HOST_DEVICE inline uint8_t encode_weight(float w, float scale, WeightCode code) {
    const float x = w / scale;
    if (!(std::fabs(x) <= 1.001f * most_of(code))) return 0;  // of rows of zeros and of those that are not finite
    if (code == WeightCode::fp8) return encode_fp8(x);
    return static_cast<uint8_t>(static_cast<int8_t>(std::rint(x)));
}

// The same bits four places up, in a float whose exponent is then 120 too small.
LC_HOST_DEVICE inline float code_value(uint8_t c, WeightCode code) {
    if (code == WeightCode::int8) return static_cast<float>(static_cast<int8_t>(c));
    return float_of((c & 0x80u) << 24 | (c & 0x7fu) << 20) * 0x1p120f;
}

template <class T>
void encode_weights_naive(const EncodeWeights& args) {
    const InRows<T> w(args.w);
    const auto codes = args.codes.as<uint8_t, 2>();
    const auto scale = args.scale.as<float, 1>();
    for (int64_t o = 0; o < w.rows; ++o) {
        float most = 0;
        for (int64_t i = 0; i < w.columns; ++i) most = larger_magnitude(most, static_cast<float>(w(o, i)));
        scale(o) = most / most_of(args.code);
        for (int64_t i = 0; i < w.columns; ++i)
            codes(o, i) = encode_weight(static_cast<float>(w(o, i)), scale(o), args.code);
    }
}

template <class T>
void decode_weights_naive(const DecodeWeights& args) {
    const auto codes = args.codes.as<const uint8_t, 2>();
    const auto scale = args.scale.as<const float, 1>();
    const OutRows<T> w(args.w);
    for (int64_t o = 0; o < w.rows; ++o)
        for (int64_t i = 0; i < w.columns; ++i)
            w(o, i) = static_cast<T>(scale(o)) * static_cast<T>(code_value(codes(o, i), args.code));
    w.finish();
}

}  // namespace lc::kernels
