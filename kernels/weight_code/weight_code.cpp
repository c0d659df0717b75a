#include "kernels/weight_code/weight_code.h"

#include <array>

#include "core/parallel.h"
#include "kernels/common/dispatch.h"
#include "kernels/weight_code/weight_code_naive.h"

namespace lc::kernels {
namespace {

void check(const TensorView& w, const TensorView& codes, const TensorView& scale, WeightCode code) {
    LC_CHECK(code != WeightCode::none, "weight_code: no code is asked for");
    LC_CHECK(w.rank() == 2 && codes.shape() == w.shape() && scale.shape() == Shape{w.size(0)},
             "weight_code: w and codes must be [Out,In] and scale [Out], got {}, {} and {}", w.shape(), codes.shape(),
             scale.shape());
    LC_CHECK(codes.dtype == DType::u8 && scale.dtype == DType::f32 && codes.layout.is_contiguous() &&
                 scale.layout.is_contiguous(),
             "weight_code: codes must be dense u8 and scale dense f32, got {} and {}", name_of(codes.dtype),
             name_of(scale.dtype));
    LC_CHECK(codes.device == w.device && scale.device == w.device, "weight_code: codes and scale must lie beside w");
}

void encode_fast(const EncodeWeights& args) {
    parallel_for(args.w.size(0), 16, [&](int64_t begin, int64_t end) {
        EncodeWeights part = args;
        for (TensorView* view : {&part.w, &part.codes, &part.scale})
            view->layout = view->layout.slice(0, begin, end - begin);
        encode_weights_naive<float>(part);
    });
}

void decode_fast(const DecodeWeights& args) {
    std::array<float, 256> values;
    for (size_t c = 0; c < values.size(); ++c) values[c] = code_value(static_cast<uint8_t>(c), args.code);
    const OutRows<float> w(args.w);
    const auto codes = args.codes.as<const uint8_t, 2>();
    const auto scale = args.scale.as<const float, 1>();
    parallel_for(w.rows, 16, [&](int64_t begin, int64_t end) {
        for (int64_t o = begin; o < end; ++o)
            for (int64_t i = 0; i < w.columns; ++i) w(o, i) = scale(o) * values[codes(o, i)];
    });
    w.finish();
}

}  // namespace

void encode_weights(const EncodeWeights& args, Stream stream) {
    const ProfileZone zone("encode_weights");
    check(args.w, args.codes, args.scale, args.code);
    if constexpr (cuda::kBuilt)
        if (on_cuda("weight_code", args.w)) return encode_weights_cuda(args, stream);
    require_cpu(args.w, "weight_code");
    if (use_fast_cpu(args.w.dtype)) return encode_fast(args);
    dispatch_compute(args.w.dtype, "weight_code",
                     [&](auto type) { encode_weights_naive<typename decltype(type)::type>(args); });
}

void decode_weights(const DecodeWeights& args, Stream stream) {
    const ProfileZone zone("decode_weights");
    check(args.w, args.codes, args.scale, args.code);
    if constexpr (cuda::kBuilt)
        if (on_cuda("weight_code", args.w)) return decode_weights_cuda(args, stream);
    require_cpu(args.w, "weight_code");
    if (use_fast_cpu(args.w.dtype)) return decode_fast(args);
    dispatch_compute(args.w.dtype, "weight_code",
                     [&](auto type) { decode_weights_naive<typename decltype(type)::type>(args); });
}

}  // namespace lc::kernels
