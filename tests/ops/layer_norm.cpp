#include "autograd/ops/layer_norm.h"

#include "tests/ops/op_case.h"

namespace lc::testing {
namespace {

OpCase make(std::string variant, Shape x) {
    const double n = static_cast<double>(numel_of(x));
    return {.op = "layer_norm",
            .variant = std::move(variant),
            .inputs = {{"x", x},
                       {.name = "weight", .shape = {x[-1]}, .wide = true},
                       {.name = "bias", .shape = {x[-1]}, .wide = true}},
            .run = [](const Tensors& in) -> Tensors { return {layer_norm(in[0], in[1], in[2], 1e-5)}; },
            .forward = {.flops = 8 * n, .numbers = 2 * n},
            .backward = {.flops = 13 * n, .numbers = 3 * n}};
}

}  // namespace

LC_OP_CASES(layer_norm) {
    // Two columns are left out: their normalized values are -1 and 1 whatever they are, so dx is rounding alone.
    add(make("vector", {5}));
    add(make("odd", {2, 3, 7}));
    add(make("wide", {9, 133}));
    add(make("warp", {70, 264}));
    add(make("block", {2, 2064}));
    add(make("long", {2, 8200}));
    for (const auto& [variant, rows, columns] :
         {std::tuple{"full_rows", 5, 4096}, {"more_rows_than_blocks", 1200, 1032}}) {
        OpCase c = make(variant, {rows, columns});
        c.heavy = true;
        add(c);
    }
    OpCase bench = make("8192x512", {8192, 512});
    bench.bench = Bench::cpu;
    add(bench);
    bench = make("8192x4096", {llama8b::kTokens, llama8b::kHidden});
    bench.inputs[1].differentiable = bench.inputs[2].differentiable = false;  // frozen
    bench.bench = Bench::gpu;
    add(bench);
}

}  // namespace lc::testing
