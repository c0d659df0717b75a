#include "autograd/ops/hybrid_attention.h"

#include "autograd/ops/views.h"
#include "tests/ops/op_case.h"

namespace lc::testing {
namespace {

using kernels::FeatureActivation;
using kernels::LinearizedSpec;
using kernels::WindowKind;

struct Options {
    int64_t length = 9;  // T
    LinearizedSpec spec;
    int64_t d = 4, f = 3, heads = 2, kv_heads = 1, batch = 1;
    bool maps_per_kv_head = false;
    int64_t bias = 0;       // width of the biases: 0 (none), 1 or F
    int64_t seen = 0;       // tokens before the call: kept keys and a state
    bool all_kept = false;  // so few that there is no state yet
    bool want_state = false;
};

LinearizedSpec terraced(int64_t w) {
    return {.window = WindowKind::terraced, .window_size = w};
}
LinearizedSpec sliding(int64_t w) {
    return {.window = WindowKind::sliding, .window_size = w};
}

OpCase make(std::string variant, const Options& o) {
    const int64_t k_maps = o.maps_per_kv_head ? o.kv_heads : o.heads, first_key = kernels::state_end(o.spec, o.seen);
    const int64_t keys = o.seen - first_key + o.length, features = kernels::feature_size(o.spec.activation, o.f);
    // Scores have standard deviation 0.25; 16 in the "large" run, where most rows have one dominant key.
    OpCase c{.op = "hybrid_attention",
             .variant = std::move(variant),
             .inputs = {{"q", {o.batch, o.heads, o.length, o.d}, Fill::Normal, 0.5},
                        {"k", {o.batch, o.kv_heads, keys, o.d}, Fill::Normal, 0.5},
                        {"v", {o.batch, o.kv_heads, keys, o.d}},
                        {.name = "wq", .shape = {o.heads, o.d, o.f}, .scale = 0.3, .wide = true},
                        {.name = "wk", .shape = {k_maps, o.d, o.f}, .scale = 0.3, .wide = true},
                        {.name = "mix_logit", .shape = {o.heads}, .wide = true}},
             .run = {}};
    c.tolerance_factor = 8;
    c.tolerance_reason =
        "a score of 50 is rounded by 50 eps, which changes its exponential and all gradients of rows with few live "
        "keys by "
        "as much; gradients of the logit are sums of terms of both signs. The oracle's own error is one draw of the "
        "same";
    if (o.bias) {
        c.inputs.push_back({.name = "bq", .shape = {o.heads, o.bias}, .wide = true});
        c.inputs.push_back({.name = "bk", .shape = {k_maps, o.bias}, .wide = true});
    }
    if (o.seen && !o.all_kept) {
        c.inputs.push_back({.name = "s", .shape = {o.batch, k_maps, features, o.d}, .wide = true});
        c.inputs.push_back({.name = "z", .shape = {o.batch, k_maps, features}, .fill = Fill::Positive, .wide = true});
    }
    c.run = [o, first_key](const Tensors& in) -> Tensors {
        size_t next = 6;
        FeatureMaps maps{.wq = in[3], .wk = in[4]};
        HybridPast past{.first_key = first_key};
        if (o.bias) maps.bq = in[next], maps.bk = in[next + 1], next += 2;
        if (o.seen && !o.all_kept) past.state = {in[next], in[next + 1]};
        const AttentionResult result = hybrid_attention(in[0], in[1], in[2], maps, in[5], o.spec, past, o.want_state);
        if (!o.want_state) return {result.y};
        return {result.y, result.state.s, result.state.z};
    };
    return c;
}

void add_lengths() {
    for (const auto& [name, window] : {std::pair{"terraced", &terraced}, {"sliding", &sliding}}) {
        for (const int64_t length : {1, 3, 4, 5, 8, 9, 27})
            add(make(fmt::format("{}_w4_T{}", name, length), {.length = length, .spec = window(4)}));
        add(make(fmt::format("{}_w4_T130", name), {.length = 130, .spec = window(4), .heads = 1}));
        add(make(fmt::format("{}_w16_T130", name), {.length = 130, .spec = window(16), .heads = 1}));
        add(make(fmt::format("{}_w64_T130", name), {.length = 130, .spec = window(64), .heads = 1}));
        add(make(fmt::format("{}_w5_T27", name), {.length = 27, .spec = window(5)}));
        add(make(fmt::format("{}_w1_T9", name), {.length = 9, .spec = window(1)}));
    }
}

void add_heads_and_sizes() {
    for (const auto& [name, window] : {std::pair{"terraced", &terraced}, {"sliding", &sliding}}) {
        for (const auto& [heads, kv_heads] : {std::pair<int64_t, int64_t>{2, 2}, {4, 2}, {4, 1}})
            for (const bool per_kv : {false, true})
                add(make(fmt::format("{}_h{}_kv{}_{}_maps", name, heads, kv_heads, per_kv ? "kv" : "query"),
                         {.length = 11,
                          .spec = window(4),
                          .heads = heads,
                          .kv_heads = kv_heads,
                          .batch = 2,
                          .maps_per_kv_head = per_kv}));
        add(make(fmt::format("{}_d8", name), {.length = 27, .spec = window(4), .d = 8, .f = 8}));
        add(make(fmt::format("{}_d16", name), {.length = 27, .spec = window(4), .d = 16, .f = 16, .heads = 1}));
        add(make(fmt::format("{}_d64", name), {.length = 11, .spec = window(4), .d = 64, .f = 64, .heads = 1}));
        for (OpCase heavy : {make(fmt::format("{}_d128_f64_w64", name),
                                  {.length = 133, .spec = window(64), .d = 128, .f = 64, .heads = 1}),
                             make(fmt::format("{}_w4_T300", name), {.length = 300, .spec = window(4), .heads = 1}),
                             make(fmt::format("{}_d80_f40_w16", name),
                                  {.length = 70, .spec = window(16), .d = 80, .f = 40, .heads = 2, .kv_heads = 2}),
                             make(fmt::format("{}_d256_f128_w16", name),
                                  {.length = 70, .spec = window(16), .d = 256, .f = 128, .heads = 2})}) {
            heavy.heavy = true;
            add(heavy);
        }
        add(make(fmt::format("{}_d1_f1", name), {.length = 11, .spec = window(4), .d = 1, .f = 1}));
    }
}

void add_kinds() {
    for (const auto& [name, window] : {std::pair{"terraced", &terraced}, {"sliding", &sliding}}) {
        Options o{.length = 14, .spec = window(4)};
        for (const auto activation :
             {FeatureActivation::softmax_half, FeatureActivation::exp_dim, FeatureActivation::exp_half,
              FeatureActivation::relu, FeatureActivation::pos_elu}) {
            o.spec.activation = activation;
            add(make(fmt::format("{}_{}", name, kernels::name_of(activation)), o));
        }
        o.bias = 3;
        add(make(fmt::format("{}_pos_elu_vector_bias", name), o));
        o.bias = 1;
        add(make(fmt::format("{}_pos_elu_head_bias_kv_maps", name), o));
        o = {.length = 14, .spec = window(4), .d = 3};
        o.spec.skip = true;
        add(make(fmt::format("{}_skip", name), o));
        o = {.length = 14, .spec = window(4)};
        o.spec.affine = true;
        add(make(fmt::format("{}_affine", name), o));
        o.spec.window_only = true;
        add(make(fmt::format("{}_window_only", name), o));
    }
}

void add_carried() {
    for (const auto& [name, window] : {std::pair{"terraced", &terraced}, {"sliding", &sliding}}) {
        for (const int64_t seen : {1, 8, 14, 17})
            for (const int64_t length : {1, 13})
                add(make(fmt::format("{}_after_{}_T{}", name, seen, length),
                         {.length = length, .spec = window(4), .seen = seen, .want_state = true}));
        Options o{.length = 13,
                  .spec = window(4),
                  .heads = 4,
                  .kv_heads = 2,
                  .maps_per_kv_head = true,
                  .seen = 14,
                  .want_state = true};
        add(make(fmt::format("{}_after_14_kv_maps", name), o));
        o.spec.affine = true, o.maps_per_kv_head = false, o.want_state = false;
        add(make(fmt::format("{}_after_14_affine", name), o));
        o.spec.window_only = true, o.want_state = true;
        add(make(fmt::format("{}_after_14_window_only", name), o));
        add(make(fmt::format("{}_state_out", name), {.length = 27, .spec = window(4), .want_state = true}));
    }
}

// Sizes of the GPU's fused form: heads of 64 and 128, one block of rows to five, tails, groups of heads, segments; and as models call it,
// where q, k, v and their gradients are [B,T,H,D] in memory.
void add_fused() {
    const auto heavy = [](OpCase c) {
        c.heavy = true;
        add(c);
    };
    const LinearizedSpec spec = terraced(64);
    heavy(make("fused_d128", {.length = 270, .spec = spec, .d = 128, .f = 64, .heads = 4, .kv_heads = 2}));
    heavy(make("fused_d64_kv_maps", {.length = 257,
                                     .spec = spec,
                                     .d = 64,
                                     .f = 64,
                                     .heads = 4,
                                     .kv_heads = 1,
                                     .batch = 2,
                                     .maps_per_kv_head = true}));
    for (const int64_t length : {1, 64, 129, 192})
        heavy(make(fmt::format("fused_T{}", length),
                   {.length = length, .spec = spec, .d = 64, .f = 64, .kv_heads = 2, .batch = 2}));
    heavy(make("fused_state_out", {.length = 210, .spec = spec, .d = 128, .f = 64, .want_state = true}));
    // Few heads of a longer sequence: three and two segments, each with a tail.
    heavy(make("fused_segments_d128", {.length = 800, .spec = spec, .d = 128, .f = 64, .kv_heads = 1}));
    heavy(make("fused_segments_d64_kv_maps",
               {.length = 580, .spec = spec, .d = 64, .f = 64, .heads = 4, .kv_heads = 2, .maps_per_kv_head = true}));
    heavy(make(
        "fused_segments_state_out",
        {.length = 800, .spec = spec, .d = 128, .f = 64, .kv_heads = 1, .maps_per_kv_head = true, .want_state = true}));
    // The rest of a sequence: after two kept blocks, one, and part of a second; a row, and in segments.
    for (const auto& [seen, length, d] : {std::tuple{128, 1, 64}, {200, 40, 64}, {255, 70, 128}, {320, 450, 64}})
        heavy(make(fmt::format("fused_after_{}_T{}", seen, length), {.length = length,
                                                                     .spec = spec,
                                                                     .d = d,
                                                                     .f = 64,
                                                                     .batch = seen == 200 ? 2 : 1,
                                                                     .maps_per_kv_head = d == 64,
                                                                     .seen = seen,
                                                                     .want_state = true}));
    for (const int64_t seen : {40, 64, 100})
        heavy(make(fmt::format("fused_all_kept_{}", seen),
                   {.length = 90, .spec = spec, .d = 64, .f = 64, .seen = seen, .all_kept = true, .want_state = true}));
    OpCase projected =
        make("fused_as_projected", {.length = 200, .spec = spec, .d = 128, .f = 64, .heads = 4, .kv_heads = 2});
    for (int i = 0; i < 3; ++i) std::swap(projected.inputs[i].shape[1], projected.inputs[i].shape[2]);
    projected.run = [run = std::move(projected.run)](Tensors in) -> Tensors {
        for (int i = 0; i < 3; ++i) in[i] = permute(in[i], {0, 2, 1, 3});
        return run(in);
    };
    heavy(projected);
}

// The shape of a stage-1 micro-batch: FLOPs of the maps, the state (read and update) and the window's two products.
void add_bench() {
    const double rows = 8 * 8 * 1024, d = 64, features = 128, window = 96;
    OpCase c = make("8x1024_h8_kv4_d64_w64",
                    {.length = 1024, .spec = terraced(64), .d = 64, .f = 64, .heads = 8, .kv_heads = 4, .batch = 8});
    c.bench = Bench::cpu;
    c.forward = {.flops = 2 * rows * (2 * d * features / 2 + 2 * features * d + 2 * window * d),
                 .numbers = 3 * rows * d};
    c.backward = {.flops = 2.5 * c.forward.flops, .numbers = 2.5 * c.forward.numbers};
    add(c);
}

// A training step of stage 2: q, k, v are [B,T,H,D] in memory and the maps are frozen. Counted for a token and query head in
// blocks of w = 64 keys, K and V read once a group of heads: fm is a map, mm a product with the state or with the window's two
// blocks.
OpCase gpu_bench(const char* variant, int64_t batch, int64_t length, int64_t head_dim = llama8b::kHeadDim) {
    using namespace llama8b;
    OpCase c = make(variant, {.length = length,
                              .spec = terraced(kWindow),
                              .d = head_dim,
                              .f = kMapSize,
                              .heads = kHeads,
                              .kv_heads = kKvHeads,
                              .batch = batch});
    for (int i = 0; i < 3; ++i) std::swap(c.inputs[i].shape[1], c.inputs[i].shape[2]);
    for (int i = 3; i < 6; ++i) c.inputs[i].differentiable = false;
    c.run = [run = std::move(c.run)](Tensors in) -> Tensors {
        for (int i = 0; i < 3; ++i) in[i] = permute(in[i], {0, 2, 1, 3});
        return run(in);
    };
    const double rows = static_cast<double>(batch * length * kHeads), d = static_cast<double>(head_dim);
    const double shared = 1.0 * kKvHeads / kHeads;
    const double fm = 2 * d * kMapSize, mm = 2 * d * 2 * kMapSize;
    c.forward = {.flops = rows * (2 * fm + 4 * mm), .numbers = rows * d * (2 + 2 * shared)};
    // Two sweeps: q, k, v, dy, y -> dq, then q, k, v, dy -> dk, dv; five f32 row scalars.
    c.backward = {.flops = rows * (6 * fm + 10 * mm), .numbers = rows * d * (6 + 6 * shared), .bytes = rows * 20};
    c.bench = Bench::gpu;
    return c;
}

void add_gpu_benches() {
    add(gpu_bench("llama8b_8x1024_w64", 8, 1024));
    add(gpu_bench("llama8b_2x4096_w64", 2, 4096));
    add(gpu_bench("llama8b_1x1024_w64", 1, 1024));
    add(gpu_bench("llama8b_1x16384_w64", 1, 16384));
    add(gpu_bench("llama8b_1x32768_w64", 1, 32768));
    add(gpu_bench("llama1b_8x1024_w64_d64", 8, 1024, 64));
    OpCase prefill = gpu_bench("llama8b_1x131072_w64", 1, 131072);
    for (OpInput& input : prefill.inputs) input.differentiable = false;
    prefill.backward = {};
    add(prefill);
}

}  // namespace

LC_OP_CASES(hybrid_attention) {
    add_bench();
    add_gpu_benches();
    add_lengths();
    add_heads_and_sizes();
    add_kinds();
    add_carried();
    add_fused();
}

}  // namespace lc::testing
