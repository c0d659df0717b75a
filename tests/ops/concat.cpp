#include "autograd/ops/concat.h"

#include "tests/ops/op_case.h"

namespace lc::testing {

LC_OP_CASES(concat) {
    const auto make = [](std::string variant, Shape a, Shape b, int axis) {
        const double n = static_cast<double>(numel_of(a) + numel_of(b));
        return OpCase{.op = "concat",
                      .variant = std::move(variant),
                      .inputs = {{"a", a}, {"b", b}},
                      .run = [axis](const Tensors& in) -> Tensors { return {concat(in[0], in[1], axis)}; },
                      .forward = {.numbers = 2 * n},
                      .backward = {.numbers = 2 * n}};
    };
    add(make("one", {1}, {1}, 0));
    add(make("first_axis", {2, 3}, {5, 3}, 0));
    add(make("middle_axis", {2, 3, 5}, {2, 4, 5}, 1));
    add(make("last_axis", {3, 2, 7}, {3, 2, 1}, -1));
    add(make("empty_part", {2, 0, 3}, {2, 4, 3}, 1));
    add({.op = "concat", .variant = "same_tensor", .inputs = {{"x", {2, 3}}}, .run = [](const Tensors& in) -> Tensors {
             return {concat(in[0], in[0], 1)};
         }});
    add({.op = "concat",
         .variant = "undefined_first",
         .inputs = {{"b", {2, 3}}},
         .run = [](const Tensors& in) -> Tensors { return {concat(Tensor(), in[0], 1)}; },
         .differentiable = false});
    for (const auto& [c, bench] :
         {std::pair{make("8x8x1024x64_time", {8, 8, 1024, 64}, {8, 8, 64, 64}, 2), Bench::cpu},
          {make("8192x4096_rows", {4096, 4096}, {4096, 4096}, 0), Bench::gpu}}) {
        OpCase timed = c;
        timed.bench = bench;
        add(timed);
    }
}

}  // namespace lc::testing
