#include "autograd/ops/lora_linear.h"

#include "tests/ops/op_case.h"

namespace lc::testing {
namespace {

OpCase make(std::string variant, Shape x, int64_t out, int64_t rank, double s) {
    const double rows = static_cast<double>(numel_of(x)) / static_cast<double>(x[-1]);
    const double in_size = static_cast<double>(x[-1]);
    OpCase c{.op = "lora_linear",
             .variant = std::move(variant),
             .inputs = {{"x", x},
                        {"w", {out, x[-1]}, Fill::Normal, 0.3},
                        {.name = "a", .shape = {rank, x[-1]}, .scale = 0.3, .wide = true},
                        {.name = "b", .shape = {out, rank}, .scale = 0.3, .wide = true}},
             .run = [s](const Tensors& in) -> Tensors { return {lora_linear(in[0], in[1], in[2], in[3], s)}; }};
    const double low = static_cast<double>(rank) * (in_size + static_cast<double>(out));
    c.forward = {.flops = 2 * rows * (in_size * static_cast<double>(out) + low),
                 .numbers = rows * (in_size + static_cast<double>(out)) + in_size * static_cast<double>(out),
                 .bytes = 4 * low};
    c.backward = c.forward;  // w is frozen: dx, dA and dB from dy and x
    c.backward.flops += 2 * rows * low;
    c.backward.numbers += rows * in_size;
    c.backward.bytes += 4 * low;
    return c;
}

}  // namespace

LC_OP_CASES(lora_linear) {
    add(make("one", {1, 1}, 1, 1, 2.0));
    add(make("odd", {2, 5, 7}, 9, 3, 2.0));
    add(make("rank8", {3, 19, 33}, 31, 8, 0.5));
    add(make("rank8_real_widths", {37, 128}, 192, 8, 2.0));
    add(make("zero_scale", {4, 6}, 5, 2, 0.0));
    OpCase biased = make("bias", {3, 19, 33}, 31, 8, 0.5);
    biased.inputs.push_back({"bias", {31}});
    biased.run = [](const Tensors& in) -> Tensors { return {lora_linear(in[0], in[1], in[2], in[3], 0.5, in[4])}; };
    add(biased);
    using namespace llama8b;
    const auto add_bench = [](std::string variant, int64_t rows, int64_t in, int64_t out, Bench bench) {
        OpCase c = make(std::move(variant), {rows, in}, out, kLoraRank, 2.0);
        c.inputs[1].differentiable = false;
        c.bench = bench;
        add(c);
    };
    add_bench("2048x512x512_r8", 2048, 512, 512, Bench::cpu);
    add_bench("q_or_o_8192x4096x4096_r8", kTokens, kHidden, kHidden, Bench::gpu);
    add_bench("k_or_v_8192x4096x1024_r8", kTokens, kHidden, kKvHeads * kHeadDim, Bench::gpu);
}

}  // namespace lc::testing
