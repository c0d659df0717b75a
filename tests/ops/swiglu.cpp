#include "autograd/ops/swiglu.h"

#include "tests/ops/op_case.h"

namespace lc::testing {

LC_OP_CASES(swiglu) {
    const auto run = [](const Tensors& in) -> Tensors { return {swiglu(in[0], in[1])}; };
    for (const auto& [variant, shape] :
         {std::pair{"one", Shape{1}}, {"odd", Shape{3, 5, 7}}, {"matrix", Shape{33, 65}}})
        add({.op = "swiglu", .variant = variant, .inputs = {{"gate", shape}, {"up", shape}}, .run = run});
    add({.op = "swiglu",
         .variant = "saturated",
         .inputs = {{"gate", {4, 33}, Fill::Normal, 40}, {"up", {4, 33}}},
         .run = run});
    for (const auto& [variant, shape, bench] :
         {std::tuple{"2048x1376", Shape{2048, 1376}, Bench::cpu},
          {"8192x14336", Shape{llama8b::kTokens, llama8b::kMlp}, Bench::gpu}}) {
        const auto n = static_cast<double>(numel_of(shape));
        add({.op = "swiglu",
             .variant = variant,
             .inputs = {{"gate", shape}, {"up", shape}},
             .run = run,
             .forward = {.flops = 5 * n, .numbers = 3 * n},
             .backward = {.flops = 12 * n, .numbers = 5 * n},
             .bench = bench});
    }
}

}  // namespace lc::testing
