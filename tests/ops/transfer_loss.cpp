#include "autograd/ops/transfer_loss.h"

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
    int64_t bias = 0;  // width of the biases: 0 (none), 1 or F
    double factor = 10;
};

OpCase make(std::string variant, const Options& o) {
    const int64_t k_maps = o.maps_per_kv_head ? o.kv_heads : o.heads;
    const Shape rows{o.batch, o.heads, o.length, o.d}, keys{o.batch, o.kv_heads, o.length, o.d};
    OpCase c{.op = "transfer_loss",
             .variant = std::move(variant),
             .inputs = {{"q", rows, Fill::Normal, 0.5},
                        {"k", keys, Fill::Normal, 0.5},
                        {"v", keys},
                        {"target", rows},
                        {.name = "wq", .shape = {o.heads, o.d, o.f}, .scale = 0.3, .wide = true},
                        {.name = "wk", .shape = {k_maps, o.d, o.f}, .scale = 0.3, .wide = true}},
             .run = {}};
    for (int i = 0; i < 4; ++i) c.inputs[i].differentiable = false;
    const bool windowed = o.spec.window != WindowKind::none;
    if (windowed) c.inputs.push_back({.name = "mix_logit", .shape = {o.heads}, .wide = true});
    if (o.bias) {
        c.inputs.push_back({.name = "bq", .shape = {o.heads, o.bias}, .wide = true});
        c.inputs.push_back({.name = "bk", .shape = {k_maps, o.bias}, .wide = true});
    }
    c.run = [o, windowed](const Tensors& in) -> Tensors {
        FeatureMaps maps{.wq = in[4], .wk = in[5]};
        if (o.bias) maps.bq = in[in.size() - 2], maps.bk = in[in.size() - 1];
        return {transfer_loss(in[0], in[1], in[2], in[3], maps, windowed ? in[6] : Tensor(), o.spec, o.factor)};
    };
    c.tolerance_factor = 8;
    c.tolerance_reason =
        "one number and sums over all rows of terms of both signs: the oracle's own rounding error is a single "
        "draw that may happen to be small (see hybrid_attention)";
    return c;
}

LinearizedSpec spec_of(WindowKind window, int64_t w) {
    return {.window = window, .window_size = w};
}

void add_window(const std::string& name, WindowKind window) {
    for (const int64_t length : {1, 3, 5, 8, 9, 27})
        add(make(fmt::format("{}_w4_T{}", name, length), {.length = length, .spec = spec_of(window, 4)}));
    for (const int64_t w : {4, 16, 64})
        add(make(fmt::format("{}_w{}_T130", name, w), {.length = 130, .spec = spec_of(window, w)}));
    for (const auto& [heads, kv_heads] : {std::pair<int64_t, int64_t>{2, 2}, {4, 2}, {4, 1}})
        for (const bool per_kv : {false, true})
            add(make(fmt::format("{}_h{}_kv{}_{}_maps", name, heads, kv_heads, per_kv ? "kv" : "query"),
                     {.length = 14,
                      .spec = spec_of(window, 4),
                      .heads = heads,
                      .kv_heads = kv_heads,
                      .batch = 2,
                      .maps_per_kv_head = per_kv}));
    for (const int64_t d : {8, 16, 64})
        add(make(fmt::format("{}_d{}", name, d), {.length = 21, .spec = spec_of(window, 4), .d = d, .f = d}));
    for (const int64_t d : {80, 256}) {
        OpCase c = make(fmt::format("{}_d{}_f{}", name, d, d / 2),
                        {.length = 70, .spec = spec_of(window, 16), .d = d, .f = d / 2});
        c.heavy = true;
        add(c);
    }
    Options o{.length = 14, .spec = spec_of(window, 4)};
    for (const auto activation : {FeatureActivation::softmax_half, FeatureActivation::exp_dim,
                                  FeatureActivation::exp_half, FeatureActivation::relu, FeatureActivation::pos_elu}) {
        o.spec.activation = activation;
        add(make(fmt::format("{}_{}", name, kernels::name_of(activation)), o));
    }
    o.bias = 3;
    add(make(name + "_pos_elu_vector_bias", o));
    o.bias = 1;
    add(make(name + "_pos_elu_head_bias", o));
    o = {.length = 14, .spec = spec_of(window, 4), .d = 3};
    o.spec.skip = true;
    add(make(name + "_skip", o));
    if (window == WindowKind::none) return;
    o = {.length = 14, .spec = spec_of(window, 4)};
    o.spec.affine = true;
    add(make(name + "_affine", o));
    o.spec.window_only = true;
    add(make(name + "_window_only", o));
}

// A micro-batch of stage 1: q, k, v and target are [B,T,H,D] in memory. Counted as in hybrid_attention.cpp.
void add_gpu_bench(const char* variant, int64_t batch, int64_t length, int64_t head_dim = llama8b::kHeadDim) {
    using namespace llama8b;
    OpCase c = make(variant, {.length = length,
                              .spec = spec_of(WindowKind::terraced, kWindow),
                              .d = head_dim,
                              .f = kMapSize,
                              .heads = kHeads,
                              .kv_heads = kKvHeads,
                              .batch = batch});
    for (int i = 0; i < 4; ++i) std::swap(c.inputs[i].shape[1], c.inputs[i].shape[2]);
    c.run = [run = std::move(c.run)](Tensors in) -> Tensors {
        for (int i = 0; i < 4; ++i) in[i] = permute(in[i], {0, 2, 1, 3});
        return run(in);
    };
    const double rows = static_cast<double>(batch * length * kHeads), d = static_cast<double>(head_dim);
    const double shared = 1.0 * kKvHeads / kHeads;
    const double fm = 2 * d * kMapSize, mm = 2 * d * 2 * kMapSize;
    // Two sweeps: q, k, v, target -> dN, dWq; then q, k, v, dN -> dWk; four f32 row scalars.
    c.forward = {.flops = rows * (6 * fm + 7 * mm), .numbers = rows * d * (5 + 4 * shared), .bytes = rows * 16};
    c.bench = Bench::gpu;
    add(c);
}

// Sizes of the GPU's fused form.
void add_fused() {
    const auto heavy = [](const char* variant, const Options& o) {
        OpCase c = make(variant, o);
        c.heavy = true;
        add(c);
    };
    const LinearizedSpec spec = spec_of(WindowKind::terraced, 64);
    heavy("fused_d128", {.length = 270, .spec = spec, .d = 128, .f = 64, .heads = 4, .kv_heads = 2});
    heavy("fused_d64_kv_maps", {.length = 257,
                                .spec = spec,
                                .d = 64,
                                .f = 64,
                                .heads = 4,
                                .kv_heads = 1,
                                .batch = 2,
                                .maps_per_kv_head = true});
    heavy("fused_T100", {.length = 100, .spec = spec, .d = 128, .f = 64});
    heavy("fused_segments_d128", {.length = 800, .spec = spec, .d = 128, .f = 64});
    heavy("fused_segments_d64_kv_maps",
          {.length = 580, .spec = spec, .d = 64, .f = 64, .heads = 4, .kv_heads = 2, .maps_per_kv_head = true});
    heavy("fused_T192", {.length = 192, .spec = spec, .d = 64, .f = 64, .kv_heads = 2, .batch = 2});
}

}  // namespace

LC_OP_CASES(transfer_loss) {
    add_window("terraced", WindowKind::terraced);
    add_window("sliding", WindowKind::sliding);
    add_window("none", WindowKind::none);
    add_fused();
    // FLOPs: maps forward and dW, window scores and values, state read and update, dphi_q, T and dphi_k.
    const double rows = 8 * 8 * 1024, d = 64, features = 128, window = 96;
    OpCase bench = make("8x1024_h8_kv4_d64_w64", {.length = 1024,
                                                  .spec = spec_of(WindowKind::terraced, 64),
                                                  .d = 64,
                                                  .f = 64,
                                                  .heads = 8,
                                                  .kv_heads = 4,
                                                  .batch = 8});
    bench.bench = Bench::cpu;
    bench.forward = {.flops = 2 * rows * (2 * d * features + 2 * window * d + 5 * features * d),
                     .numbers = 3 * rows * d};
    add(bench);
    add_gpu_bench("llama8b_8x1024_w64", llama8b::kBatch, llama8b::kLength);
    add_gpu_bench("llama8b_1x1024_w64", 1, 1024);
    add_gpu_bench("llama8b_1x32768_w64", 1, 32768);
    add_gpu_bench("llama1b_8x1024_w64_d64", 8, 1024, 64);
}

}  // namespace lc::testing
