#include "autograd/ops/linear.h"

#include "tests/ops/op_case.h"

namespace lc::testing {
namespace {

OpCase make(std::string variant, Shape x, int64_t out, bool bias) {
    const int64_t in_size = x[-1];
    OpCase c{.op = "linear",
             .variant = std::move(variant),
             .inputs = {{"x", x}, {.name = "w", .shape = {out, in_size}, .scale = 0.3}},
             .run = {}};
    if (bias) c.inputs.push_back({"b", {out}});
    c.run = [bias](const Tensors& in) -> Tensors { return {linear(in[0], in[1], bias ? in[2] : Tensor())}; };
    const double rows = static_cast<double>(numel_of(x)) / static_cast<double>(in_size);
    c.forward = {.flops = 2.0 * rows * in_size * out, .numbers = rows * (in_size + out) + in_size * out};
    c.backward = {.flops = 2 * c.forward.flops, .numbers = 2 * c.forward.numbers};
    return c;
}

// In a layer of a frozen model only x wants a gradient.
OpCase frozen(const char* name, int64_t rows, int64_t in, int64_t out) {
    OpCase c = make(fmt::format("{}_{}x{}x{}", name, rows, in, out), {rows, in}, out, false);
    c.inputs[1].differentiable = false;
    c.backward = c.forward;
    c.bench = Bench::gpu;
    return c;
}

}  // namespace

LC_OP_CASES(linear) {
    add(make("one", {1, 1}, 1, true));
    add(make("vector", {7}, 5, false));
    add(make("one_row", {1, 33}, 17, true));
    add(make("odd", {2, 5, 7}, 9, true));
    add(make("no_bias", {3, 19, 33}, 31, false));
    add(make("tall", {130, 16}, 24, true));
    add(make("no_rows", {0, 4}, 3, true));
    for (const auto& [variant, x, out] :
         {std::tuple<const char*, Shape, int64_t>{"residual", {2, 5, 7}, 9}, {"residual_tall", {130, 16}, 24}}) {
        OpCase c = make(variant, x, out, false);
        Shape y = x;
        y[-1] = out;
        c.inputs.push_back({"residual", y});
        c.run = [](const Tensors& in) -> Tensors { return {linear(in[0], in[1], {}, in[2])}; };
        add(c);
        c.variant = std::string("bias_") + variant;
        c.inputs.push_back({"b", {out}});
        c.run = [](const Tensors& in) -> Tensors { return {linear(in[0], in[1], in[3], in[2])}; };
        add(c);
    }
    for (const auto& [variant, rows, in, out] : {std::tuple{"2048x512x512", 2048, 512, 512},
                                                 {"2048x512x1376", 2048, 512, 1376},
                                                 {"1x2048x2048", 1, 2048, 2048}}) {
        OpCase c = make(variant, {rows, in}, out, false);
        c.bench = Bench::cpu;
        add(c);
    }
    using namespace llama8b;
    add(frozen("q_or_o", kTokens, kHidden, kHidden));
    add(frozen("k_or_v", kTokens, kHidden, kKvHeads * kHeadDim));
    add(frozen("qkv", kTokens, kHidden, (kHeads + 2 * kKvHeads) * kHeadDim));
    add(frozen("gate_or_up", kTokens, kHidden, kMlp));
    add(frozen("gate_up", kTokens, kHidden, 2 * kMlp));
    add(frozen("down", kTokens, kMlp, kHidden));
    add(frozen("lm_head", kTokens, kHidden, kVocabulary));
    for (const int64_t batch : {1, 64})
        for (OpCase c : {frozen("decode", batch, kHidden, kHidden), frozen("decode", batch, kHidden, kMlp)}) {
            c.backward = {};
            add(c);
        }
}

}  // namespace lc::testing
