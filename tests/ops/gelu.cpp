#include "autograd/ops/gelu.h"

#include "tests/ops/op_case.h"

namespace lc::testing {

LC_OP_CASES(gelu) {
    const auto alone = [](const Tensors& in) -> Tensors { return {gelu(in[0])}; };
    const auto gated = [](const Tensors& in) -> Tensors { return {geglu(in[0], in[1])}; };
    for (const auto& [variant, shape] :
         {std::pair{"one", Shape{1}}, {"odd", Shape{3, 5, 7}}, {"matrix", Shape{33, 65}}}) {
        add({.op = "gelu", .variant = variant, .inputs = {{"x", shape}}, .run = alone});
        add({.op = "geglu", .variant = variant, .inputs = {{"gate", shape}, {"up", shape}}, .run = gated});
    }
    add({.op = "gelu", .variant = "saturated", .inputs = {{"x", {4, 33}, Fill::Normal, 40}}, .run = alone});
    add({.op = "geglu",
         .variant = "saturated",
         .inputs = {{"gate", {4, 33}, Fill::Normal, 40}, {"up", {4, 33}}},
         .run = gated});
    for (const auto& [variant, shape, bench] : {std::tuple{"2048x1376", Shape{2048, 1376}, Bench::cpu},
                                                {"8192x14336", Shape{llama8b::kTokens, llama8b::kMlp}, Bench::gpu}}) {
        const auto n = static_cast<double>(numel_of(shape));
        add({.op = "gelu",
             .variant = variant,
             .inputs = {{"x", shape}},
             .run = alone,
             .forward = {.flops = 9 * n, .numbers = 2 * n},
             .backward = {.flops = 18 * n, .numbers = 3 * n},
             .bench = bench});
        add({.op = "geglu",
             .variant = variant,
             .inputs = {{"gate", shape}, {"up", shape}},
             .run = gated,
             .forward = {.flops = 10 * n, .numbers = 3 * n},
             .backward = {.flops = 21 * n, .numbers = 5 * n},
             .bench = bench});
    }
}

}  // namespace lc::testing
