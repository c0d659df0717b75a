// Weights in eight bits: a code a weight, a scale a row. For matrices that are only read.
//
//   s_o = max_i |w_oi| / most        c_oi = the code nearest to w_oi / s_o        w_oi ~ s_o value(c_oi)
//
//   int8   a signed integer, most 127
//   fp8    e4m3 (arXiv 2209.05433): sign, four bits of exponent, three of fraction; most 448
//
// Ties go to the even code. Computed in f32, with the same codes and scales on every device. A row of zeros has scale 0; one that holds
// a number that is not finite has a scale that is not, so that its results are not either.
#pragma once
#include <string_view>

#include "core/device.h"
#include "core/tensor.h"

namespace lc::kernels {

enum class WeightCode : uint8_t { none, int8, fp8 };  // none: weights as they are

inline std::string_view name_of(WeightCode code) {
    return code == WeightCode::none ? "none" : code == WeightCode::int8 ? "int8" : "fp8";
}

struct EncodeWeights {
    TensorView w;      // [Out,In]  in; on the GPU f32 or bf16
    TensorView codes;  // [Out,In]  out, u8, dense
    TensorView scale;  // [Out]     out, f32, dense
    WeightCode code = WeightCode::int8;
};
void encode_weights(const EncodeWeights& args, Stream stream);
void encode_weights_cuda(const EncodeWeights& args, Stream stream);

struct DecodeWeights {
    TensorView codes, scale;  // in, as above
    TensorView w;             // [Out,In]  out; on the GPU f32 or bf16
    WeightCode code = WeightCode::int8;
};
void decode_weights(const DecodeWeights& args, Stream stream);
void decode_weights_cuda(const DecodeWeights& args, Stream stream);

}  // namespace lc::kernels
