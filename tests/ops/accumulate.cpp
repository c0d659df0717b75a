#include "kernels/accumulate/accumulate.h"

#include "tests/ops/op_case.h"

namespace lc::testing {

LC_OP_CASES(accumulate) {
    const auto run = [](const Tensors& in) -> Tensors {
        Tensor target = in[1].clone();
        kernels::accumulate({.source = in[0].view(), .target = target.view()}, current_stream(in[0].device()));
        return {target};
    };
    for (const auto& [variant, shape] : {std::pair{"one", Shape{1}}, {"odd", Shape{3, 5, 7}}, {"large", Shape{129, 257}}})
        add({.op = "accumulate", .variant = variant, .inputs = {{"source", shape}, {"target", shape}}, .run = run,
             .differentiable = false});
    const double n = 8192.0 * 512;
    add({.op = "accumulate", .variant = "8192x512", .inputs = {{"source", {8192, 512}}, {"target", {8192, 512}}}, .run = run,
         .flops = n, .bytes = 12 * n, .bench = true, .differentiable = false});
}

}  // namespace lc::testing
