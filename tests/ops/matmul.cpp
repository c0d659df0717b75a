#include "autograd/ops/matmul.h"

#include "autograd/ops/views.h"
#include "tests/ops/op_case.h"

namespace lc::testing {
namespace {

OpCase make(std::string variant, Shape a, Shape b) {
    const double products = static_cast<double>(numel_of(a)) * static_cast<double>(b[-1]);
    const double c = products / static_cast<double>(std::max<int64_t>(a[-1], 1));
    const double numbers = static_cast<double>(numel_of(a) + numel_of(b)) + c;
    return {.op = "matmul",
            .variant = std::move(variant),
            .inputs = {{"a", a}, {"b", b}},
            .run = [](const Tensors& in) -> Tensors { return {matmul(in[0], in[1])}; },
            .forward = {.flops = 2 * products, .numbers = numbers},
            .backward = {.flops = 4 * products, .numbers = 2 * numbers}};
}

}  // namespace

LC_OP_CASES(matmul) {
    add(make("one", {1, 1}, {1, 1}));
    add(make("odd", {5, 7}, {7, 3}));
    add(make("batch", {3, 9, 17}, {3, 17, 11}));
    add(make("rank4", {2, 3, 5, 4}, {2, 3, 4, 6}));
    OpCase permuted = make("permuted", {2, 5, 3, 4}, {2, 3, 4, 6});
    permuted.run = [](const Tensors& in) -> Tensors { return {matmul(permute(in[0], {0, 2, 1, 3}), in[1])}; };
    add(permuted);
    for (const auto& [variant, a, b, bench] :
         {std::tuple{"512", Shape{512, 512}, Shape{512, 512}, Bench::cpu},
          {"64x64x64x64", Shape{64, 64, 64}, Shape{64, 64, 64}, Bench::cpu},
          {"8192x4096x4096", Shape{8192, 4096}, Shape{4096, 4096}, Bench::gpu},
          {"256x1024x128x1024", Shape{256, 1024, 128}, Shape{256, 128, 1024}, Bench::gpu}}) {
        OpCase c = make(variant, a, b);
        c.bench = bench;
        add(c);
    }
}

}  // namespace lc::testing
