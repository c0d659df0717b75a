#include "autograd/ops/linear_attention.h"

#include "autograd/ops/views.h"
#include "tests/ops/op_case.h"

namespace lc::testing {
namespace {

using kernels::FeatureActivation;

struct Options {
    int64_t batch = 2, heads = 2, kv_heads = 2, states = 2, t = 7, d = 8, f = 4;
    FeatureActivation activation = FeatureActivation::softmax_dim;
    bool skip = false, state_in = false, state_out = false;
    int64_t bias = 0;  // 0: none, 1: one number a head, F: a vector
};

OpCase make(std::string variant, Options o) {
    const int64_t features = kernels::feature_size(o.activation, o.f);
    const double map_scale = 1.0 / std::sqrt(static_cast<double>(o.d));
    OpCase c{.op = "linear_attention",
             .variant = std::move(variant),
             .inputs = {{"q", {o.batch, o.heads, o.t, o.d}},
                        {"k", {o.batch, o.kv_heads, o.t, o.d}},
                        {"v", {o.batch, o.kv_heads, o.t, o.d}},
                        {.name = "wq", .shape = {o.heads, o.d, o.f}, .scale = map_scale, .wide = true},
                        {.name = "wk", .shape = {o.states, o.d, o.f}, .scale = map_scale, .wide = true}},
             .run = {}};
    if (o.bias) {
        c.inputs.push_back({.name = "bq", .shape = {o.heads, o.bias}, .wide = true});
        c.inputs.push_back({.name = "bk", .shape = {o.states, o.bias}, .wide = true});
    }
    if (o.state_in) {
        c.inputs.push_back({.name = "s", .shape = {o.batch, o.states, features, o.d}, .wide = true});
        c.inputs.push_back({.name = "z", .shape = {o.batch, o.states, features}, .fill = Fill::Positive, .wide = true});
    }
    c.run = [o](const Tensors& in) -> Tensors {
        FeatureMaps maps{.wq = in[3], .bq = {}, .wk = in[4], .bk = {}};
        if (o.bias) maps.bq = in[5], maps.bk = in[6];
        LinearState state;
        if (o.state_in) state = {in[in.size() - 2], in[in.size() - 1]};
        const kernels::LinearizedSpec spec{
            .window = kernels::WindowKind::none, .activation = o.activation, .skip = o.skip};
        const AttentionResult result = linear_attention(in[0], in[1], in[2], maps, spec, state, o.state_out);
        if (!o.state_out) return {result.y};
        return {result.y, result.state.s, result.state.z};
    };
    const double rows = static_cast<double>(o.batch * o.t);
    c.forward.flops = rows * (o.heads * (2.0 * o.d * o.f + 2.0 * features * o.d) +
                              o.states * (2.0 * o.d * o.f + 2.0 * features * o.d));
    c.forward.numbers = 2.0 * rows * o.d * (o.heads + o.kv_heads);
    c.backward = {.flops = 2.5 * c.forward.flops, .numbers = 2 * c.forward.numbers};
    c.tolerance_factor = 4;
    c.tolerance_reason =
        "dq and dk are differences of terms of size |dy||v|/Z that the chunked and the recurrent form round in "
        "different "
        "orders: two draws of one distribution. Over 40 seeds the ratio of their largest errors had median 1.0, "
        "maximum 3.3.";
    if (o.activation == FeatureActivation::relu) {
        c.tolerance_factor = 8;
        c.tolerance_reason +=
            " Nearly all relu features of a row may be 0: Z is then small, and y, rounded to 16 bits on the "
            "GPU, enters dZ = -(dy . y) / Z.";
    }
    return c;
}

// As models call it: q, k, v and their gradients are [B,T,H,D] in memory.
OpCase as_projected(OpCase c) {
    for (int i = 0; i < 3; ++i) std::swap(c.inputs[i].shape[1], c.inputs[i].shape[2]);
    c.run = [run = std::move(c.run)](Tensors in) -> Tensors {
        for (int i = 0; i < 3; ++i) in[i] = permute(in[i], {0, 2, 1, 3});
        return run(in);
    };
    return c;
}

// Sizes of the GPU's fused form: heads of 64 and 128, one block of rows to four, tails, groups of heads; and as models call
// it. Five rows see one key each where inputs are large: Z is then near 1e-12, and no gradient may come of it.
void add_fused() {
    const auto heavy = [](OpCase c) {
        c.heavy = true;
        add(std::move(c));
    };
    heavy(make("fused_d128", {.batch = 1, .heads = 4, .states = 4, .t = 200, .d = 128, .f = 64}));
    heavy(make("fused_d64_kv_maps", {.heads = 4, .kv_heads = 1, .states = 1, .t = 129, .d = 64, .f = 64}));
    for (const int64_t t : {5, 63, 64, 65, 192})
        heavy(make(fmt::format("fused_T{}", t), {.kv_heads = 1, .t = t, .d = 64, .f = 64}));
    OpCase one = make("fused_T1", {.t = 1, .d = 128, .f = 64});
    for (const int i : {0, 1, 3, 4}) one.inputs[i].differentiable = false;  // noise, as in t1
    heavy(one);
    for (const int64_t d : {80, 256})  // heads that it does not cover
        heavy(make(fmt::format("d{}_f{}", d, d / 2), {.batch = 1, .t = 70, .d = d, .f = d / 2}));
    heavy(make("fused_state_out", {.batch = 1, .heads = 4, .t = 90, .d = 128, .f = 64, .state_out = true}));
    heavy(as_projected(make("fused_as_projected", {.batch = 1, .heads = 4, .states = 4, .t = 130, .d = 128, .f = 64})));
}

// A training step of stage 2: the maps are frozen. Counted for a token and query head in chunks of 64 keys, K and V read once a
// group of heads; fm is a map, mm a product with the state, cc one within the chunk.
void add_gpu_bench() {
    using namespace llama8b;
    OpCase c = as_projected(make("llama8b_8x1024", {.batch = kBatch,
                                                    .heads = kHeads,
                                                    .kv_heads = kKvHeads,
                                                    .states = kHeads,
                                                    .t = kLength,
                                                    .d = kHeadDim,
                                                    .f = kMapSize}));
    c.inputs[3].differentiable = c.inputs[4].differentiable = false;
    const double rows = kTokens * kHeads, d = kHeadDim, features = 2 * kMapSize, shared = 1.0 * kKvHeads / kHeads;
    const double fm = 2 * d * kMapSize, mm = 2 * d * features, cc = 2 * 64 * d;
    c.forward = {.flops = rows * (2 * fm + 2 * mm + 2 * cc), .numbers = rows * d * (2 + 2 * shared)};
    // Two sweeps: q, k, v, dy, y -> dq, then q, k, v, dy -> dk, dv; four f32 row scalars.
    c.backward = {
        .flops = rows * (6 * fm + 5 * mm + 5 * cc), .numbers = rows * d * (6 + 6 * shared), .bytes = rows * 16};
    c.bench = Bench::gpu;
    add(c);
}

}  // namespace

LC_OP_CASES(linear_attention) {
    for (const int64_t t : {7, 63, 64, 65, 130}) add(make(fmt::format("t{}", t), {.t = t}));
    // A single row without a past is y = v: the gradients of q and k are rounding noise, which no bound can hold.
    add(make("t1", {.t = 1, .state_in = true}));
    for (const int64_t d : {4, 16}) add(make(fmt::format("d{}", d), {.batch = 1, .t = 67, .d = d, .f = d}));
    add(make("d64", {.batch = 1, .heads = 1, .kv_heads = 1, .states = 1, .t = 66, .d = 64, .f = 32}));
    OpCase heavy = make("d128_f64", {.batch = 1, .heads = 1, .kv_heads = 1, .states = 1, .t = 133, .d = 128, .f = 64});
    heavy.heavy = true;
    add(heavy);
    for (const auto& [heads, kv_heads] : {std::pair<int64_t, int64_t>{1, 1}, {4, 4}, {4, 2}, {4, 1}}) {
        const Options o{.heads = heads, .kv_heads = kv_heads, .states = heads, .t = 70};
        add(make(fmt::format("h{}_kv{}_map_a_query_head", heads, kv_heads), o));
        if (heads == kv_heads) continue;
        Options shared = o;
        shared.states = kv_heads;
        add(make(fmt::format("h{}_kv{}_map_a_kv_head", heads, kv_heads), shared));
    }
    for (const auto activation : {FeatureActivation::softmax_half, FeatureActivation::exp_dim,
                                  FeatureActivation::exp_half, FeatureActivation::relu, FeatureActivation::pos_elu})
        add(make(std::string(kernels::name_of(activation)), {.t = 66, .activation = activation}));
    add(make("relu_head_bias", {.t = 65, .activation = FeatureActivation::relu, .bias = 1}));
    add(make("vector_bias_skip", {.heads = 4,
                                  .states = 4,
                                  .t = 65,
                                  .d = 4,
                                  .activation = FeatureActivation::softmax_dim,
                                  .skip = true,
                                  .bias = 4}));
    add(make("state_in", {.heads = 4, .states = 2, .t = 65, .state_in = true}));
    add(make("state_out", {.heads = 4, .states = 4, .t = 65, .state_out = true}));
    add(make("state_in_out",
             {.heads = 4, .kv_heads = 2, .states = 4, .t = 66, .d = 4, .state_in = true, .state_out = true}));
    add(make("one", {.batch = 1, .heads = 1, .kv_heads = 1, .states = 1, .t = 1, .d = 1, .f = 1}));
    add(as_projected(make("as_projected", {.heads = 4, .kv_heads = 2, .states = 4, .t = 70})));
    OpCase bench =
        make("8x1024_h8_d64", {.batch = 8, .heads = 8, .kv_heads = 8, .states = 8, .t = 1024, .d = 64, .f = 64});
    bench.bench = Bench::cpu;
    add(bench);
    add_fused();
    add_gpu_bench();
}

}  // namespace lc::testing
