#include "autograd/ops/rope.h"

#include "autograd/ops/views.h"
#include "tests/ops/op_case.h"

namespace lc::testing {
namespace {

// The tables are inputs like any other: the formula holds for numbers that are no cosines, too.
OpCase make(std::string variant, Shape x, int64_t positions, int64_t first, int64_t turned = 0) {
    const double n = static_cast<double>(numel_of(x));
    const int64_t half = (turned > 0 ? turned : x[3]) / 2;
    return {.op = "rope",
            .variant = std::move(variant),
            .inputs = {{"x", x},
                       {.name = "cos", .shape = {positions, half}, .differentiable = false, .wide = true},
                       {.name = "sin", .shape = {positions, half}, .differentiable = false, .wide = true}},
            .run = [first](const Tensors& in) -> Tensors { return {rope(in[0], in[1], in[2], first)}; },
            .forward = {.flops = 3 * n, .numbers = 2 * n},
            .backward = {.flops = 3 * n, .numbers = 2 * n}};
}

// As models call it: x is a permuted view of [B,T,H,D].
OpCase heads_inside(OpCase c, int64_t first) {
    c.run = [first](const Tensors& in) -> Tensors { return {rope(permute(in[0], {0, 2, 1, 3}), in[1], in[2], first)}; };
    return c;
}

// Every sequence at a position of its own, an idle one included.
OpCase by_sequence(OpCase c, std::vector<int64_t> positions) {
    c.run = [positions](const Tensors& in) -> Tensors {
        const Tensor rows = Tensor::from(positions, {static_cast<int64_t>(positions.size())}).to(in[0].device());
        return {rope(in[0], in[1], in[2], rows)};
    };
    return c;
}

}  // namespace

LC_OP_CASES(rope) {
    add(make("one", {1, 1, 1, 2}, 1, 0));
    add(make("odd", {2, 3, 5, 6}, 5, 0));
    add(make("offset", {1, 2, 7, 34}, 19, 11));
    add(make("d64", {1, 2, 3, 64}, 4, 1));
    add(make("d128", {2, 1, 3, 128}, 3, 0));
    for (const auto& [variant, d] : {std::pair{"heads_inside", 8}, {"heads_inside_d128", 128}})
        add(heads_inside(make(variant, {2, 5, 3, d}, 9, 2), 2));
    add(by_sequence(make("positions", {3, 2, 2, 6}, 9, 0), {4, -1, 7}));
    add(by_sequence(make("positions_d128", {4, 5, 1, 128}, 9, 0), {8, 0, -1, 3}));
    add(make("partial", {2, 3, 5, 6}, 5, 0, 4));
    add(make("partial_d80", {2, 3, 4, 80}, 6, 2, 32));
    add(heads_inside(make("partial_heads_inside", {2, 5, 3, 80}, 9, 2, 32), 2));
    add(by_sequence(make("partial_positions", {3, 2, 1, 80}, 9, 0, 32), {4, -1, 7}));
    OpCase bench = make("8x1024_h8_d64", {8, 8, 1024, 64}, 1024, 0);
    bench.bench = Bench::cpu;
    add(bench);
    using namespace llama8b;
    for (const auto& [variant, heads] : {std::pair{"q_8x1024_h32_d128", kHeads}, {"k_8x1024_h8_d128", kKvHeads}}) {
        bench = heads_inside(make(variant, {kBatch, kLength, heads, kHeadDim}, kLength, 0), 0);
        bench.bench = Bench::gpu;
        add(bench);
    }
}

}  // namespace lc::testing
