#include "kernels/weight_code/weight_code.h"

#include "tests/ops/op_case.h"

namespace lc::testing {
namespace {

using kernels::WeightCode;

// Codes as numbers, scales, and the weights that they stand for.
Tensors run(const Tensor& w, WeightCode code) {
    const Stream stream = current_stream(w.device());
    const Tensor codes = Tensor::empty(w.shape(), DType::u8, w.device());
    const Tensor scale = Tensor::empty({w.size(0)}, DType::f32, w.device());
    const Tensor decoded = Tensor::empty(w.shape(), w.dtype(), w.device());
    kernels::encode_weights({.w = w.view(), .codes = codes.view(), .scale = scale.view(), .code = code}, stream);
    kernels::decode_weights({.codes = codes.view(), .scale = scale.view(), .w = decoded.view(), .code = code}, stream);
    return {codes.to(w.dtype()), scale, decoded};
}

OpCase make(const std::string& variant, Shape shape, WeightCode code, double scale = 0.02) {
    return {.op = "weight_code",
            .variant = fmt::format("{}_{}", variant, name_of(code)),
            .inputs = {{"w", shape, Fill::Normal, scale}},
            .run = [code](const Tensors& in) -> Tensors { return run(in[0], code); },
            .differentiable = false};
}

}  // namespace

LC_OP_CASES(weight_code) {
    for (const WeightCode code : {WeightCode::int8, WeightCode::fp8}) {
        add(make("one", {1, 1}, code));
        add(make("odd", {5, 37}, code));
        add(make("rows", {19, 512}, code));
        add(make("large", {3, 2056}, code, 1e4));
        OpCase bench = make("512x2048", {512, 2048}, code);
        bench.bench = Bench::cpu;
        bench.forward = {.numbers = 3.0 * 512 * 2048, .bytes = 2.0 * 512 * 2048};
        add(bench);
        bench = make("gate_or_up", {llama8b::kMlp, llama8b::kHidden}, code);
        bench.bench = Bench::gpu;
        bench.forward = {.numbers = 2.0 * llama8b::kMlp * llama8b::kHidden,
                         .bytes = 2.0 * llama8b::kMlp * llama8b::kHidden};
        add(bench);
    }
}

}  // namespace lc::testing
