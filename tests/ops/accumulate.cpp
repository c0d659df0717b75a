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
    const auto in_place = [](const Tensors& in) -> Tensors {
        kernels::accumulate({.source = in[0].view(), .target = in[1].view()}, current_stream(in[0].device()));
        return {};
    };
    for (const auto& [variant, shape, bench] :
         {std::tuple{"8192x512", Shape{8192, 512}, Bench::cpu}, {"8192x4096", Shape{8192, 4096}, Bench::gpu}}) {
        const auto n = static_cast<double>(numel_of(shape));
        add({.op = "accumulate",
             .variant = variant,
             .inputs = {{"source", shape}, {"target", shape}},
             .run = in_place,
             .forward = {.flops = n, .numbers = 3 * n},
             .bench = bench,
             .differentiable = false});
    }
}

}  // namespace lc::testing
