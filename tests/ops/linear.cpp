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
    c.flops = 2.0 * rows * in_size * out;
    c.bytes = 4.0 * (rows * (in_size + out) + in_size * out);
    c.backward_flops = 2 * c.flops;
    c.backward_bytes = 2 * c.bytes;
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
    for (const auto& [variant, rows, in, out] : {std::tuple{"2048x512x512", 2048, 512, 512},
                                                 {"2048x512x1376", 2048, 512, 1376},
                                                 {"1x2048x2048", 1, 2048, 2048}}) {
        OpCase c = make(variant, {rows, in}, out, false);
        c.bench = true;
        add(c);
    }
}

}  // namespace lc::testing
