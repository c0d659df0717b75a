#include "autograd/ops/lora_linear.h"

#include "tests/ops/op_case.h"

namespace lc::testing {
namespace {

struct Adapted {
    int64_t out, rank;
    double s;
    bool bias = false;
};

OpCase make(std::string variant, Shape x, const std::vector<Adapted>& projections) {
    const double rows = static_cast<double>(numel_of(x)) / static_cast<double>(x[-1]);
    const double in_size = static_cast<double>(x[-1]);
    OpCase c{.op = "lora_linear", .variant = std::move(variant), .inputs = {{"x", x}}, .run = {}};
    double outs = 0, low = 0;
    for (size_t i = 0; i < projections.size(); ++i) {
        const auto& [out, rank, s, bias] = projections[i];
        const std::string index = projections.size() == 1 ? "" : std::to_string(i);
        c.inputs.push_back({"w" + index, {out, x[-1]}, Fill::Normal, 0.3});
        c.inputs.push_back({.name = "a" + index, .shape = {rank, x[-1]}, .scale = 0.3, .wide = true});
        c.inputs.push_back({.name = "b" + index, .shape = {out, rank}, .scale = 0.3, .wide = true});
        outs += static_cast<double>(out);
        low += static_cast<double>(rank) * (in_size + static_cast<double>(out));
    }
    for (size_t i = 0; i < projections.size(); ++i)
        if (projections[i].bias) c.inputs.push_back({"bias" + std::to_string(i), {projections[i].out}});
    c.run = [projections](const Tensors& in) -> Tensors {
        std::vector<LoraProjection> adapted;
        size_t next_bias = 1 + 3 * projections.size();
        for (size_t i = 0; i < projections.size(); ++i)
            adapted.push_back({in[1 + 3 * i], in[2 + 3 * i], in[3 + 3 * i], projections[i].s,
                               projections[i].bias ? in[next_bias++] : Tensor()});
        return lora_linear(in[0], adapted);
    };
    c.forward = {.flops = 2 * rows * (in_size * outs + low),
                 .numbers = rows * (in_size + outs) + in_size * outs,
                 .bytes = 4 * low};
    c.backward = c.forward;  // w is frozen: dx, dA and dB from dy and x
    c.backward.flops += 2 * rows * low;
    c.backward.numbers += rows * in_size;
    c.backward.bytes += 4 * low;
    return c;
}

}  // namespace

LC_OP_CASES(lora_linear) {
    add(make("one", {1, 1}, {{1, 1, 2.0}}));
    add(make("odd", {2, 5, 7}, {{9, 3, 2.0}}));
    add(make("rank8", {3, 19, 33}, {{31, 8, 0.5}}));
    add(make("rank8_real_widths", {37, 128}, {{192, 8, 2.0}}));
    add(make("zero_scale", {4, 6}, {{5, 2, 0.0}}));
    add(make("qkv", {2, 3, 8}, {{16, 2, 2.0}, {8, 2, 2.0}, {8, 2, 2.0}}));
    add(make("qkv_unlike", {5, 7}, {{9, 9, 0.5}, {3, 1, 2.0}, {8, 3, -1.0}}));
    add(make("bias", {3, 19, 33}, {{31, 8, 0.5, true}}));
    add(make("qkv_biases", {7, 8}, {{16, 2, 2.0, true}, {8, 3, 2.0}, {8, 2, 0.5, true}}));
    // More rows and columns than tiles hold, and tails of all of them: 256 x 256 x 64, 64 ranks together.
    const auto add_heavy = [](std::string variant, Shape x, const std::vector<Adapted>& projections) {
        OpCase c = make(std::move(variant), x, projections);
        for (size_t i = 0; i < projections.size(); ++i) c.inputs[1 + 3 * i].differentiable = false;
        c.heavy = true;
        add(c);
    };
    add_heavy("fused_tile", {256, 64}, {{256, 8, 2.0}});
    add_heavy("fused_qkv", {2, 497, 200}, {{264, 8, 2.0, true}, {72, 8, 2.0}, {40, 8, 2.0, true}});
    add_heavy("fused_many_rows", {1111, 64}, {{520, 5, 2.0}});
    add_heavy("fused_observed", {1024, 64}, {{200, 8, 2.0}, {72, 3, 0.5}});  // dB by the way
    add_heavy("fused_ranks", {300, 136}, {{160, 24, 2.0}, {64, 64, 0.5}, {8, 16, 1.0}});
    using namespace llama8b;
    const auto add_bench = [](std::string variant, int64_t rows, int64_t in, const std::vector<Adapted>& projections,
                              Bench bench) {
        OpCase c = make(std::move(variant), {rows, in}, projections);
        for (size_t i = 0; i < projections.size(); ++i) c.inputs[1 + 3 * i].differentiable = false;
        c.bench = bench;
        add(c);
    };
    constexpr int64_t kKv = kKvHeads * kHeadDim;
    add_bench("2048x512x512_r8", 2048, 512, {{512, kLoraRank, 2.0}}, Bench::cpu);
    add_bench("q_or_o_8192x4096x4096_r8", kTokens, kHidden, {{kHidden, kLoraRank, 2.0}}, Bench::gpu);
    add_bench("k_or_v_8192x4096x1024_r8", kTokens, kHidden, {{kKv, kLoraRank, 2.0}}, Bench::gpu);
    add_bench("q_or_o_8192x4096x4096_r64", kTokens, kHidden, {{kHidden, 64, 2.0}}, Bench::gpu);
    for (const int64_t rank : {kLoraRank, int64_t{16}, int64_t{32}, int64_t{64}})
        add_bench("qkv_8192x4096x6144_r" + std::to_string(rank), kTokens, kHidden,
                  {{kHidden, rank, 2.0}, {kKv, rank, 2.0}, {kKv, rank, 2.0}}, Bench::gpu);
}

}  // namespace lc::testing
