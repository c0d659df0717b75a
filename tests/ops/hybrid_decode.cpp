#include "kernels/hybrid_decode/hybrid_decode.h"

#include "tests/ops/op_case.h"

namespace lc::testing {
namespace {

using kernels::FeatureActivation;
using kernels::LinearizedSpec;
using kernels::WindowKind;

struct Options {
    int64_t position = 0;
    std::vector<int64_t> positions = {};  // of each sequence, where they differ
    LinearizedSpec spec;
    int64_t d = 4, f = 3, heads = 4, kv_heads = 2, batch = 2;
    bool maps_per_kv_head = false;
    int64_t bias = 0;           // width of the biases: 0 (none), 1 or F
    bool in_place = false;      // state and ring are those of the inputs, as in a model
    bool narrow_state = false;  // bf16, for benchmarks: tests/kernels/narrow_state.h has its tests
};

OpCase make(std::string variant, const Options& o) {
    const int64_t maps = o.maps_per_kv_head ? o.kv_heads : o.heads,
                  features = kernels::feature_size(o.spec.activation, o.f);
    const int64_t slots = o.spec.window == WindowKind::terraced ? 2 * o.spec.window_size : o.spec.window_size;
    OpCase c{.op = "hybrid_decode",
             .variant = std::move(variant),
             .inputs = {{"q", {o.batch, o.heads, 1, o.d}, Fill::Normal, 0.5},
                        {"k", {o.batch, o.kv_heads, 1, o.d}, Fill::Normal, 0.5},
                        {"v", {o.batch, o.kv_heads, 1, o.d}},
                        {.name = "wq", .shape = {o.heads, o.d, o.f}, .scale = 0.3, .wide = true},
                        {.name = "wk", .shape = {maps, o.d, o.f}, .scale = 0.3, .wide = true},
                        {.name = "s", .shape = {o.batch, maps, features, o.d}, .wide = true},
                        {.name = "z", .shape = {o.batch, maps, features}, .fill = Fill::Positive, .wide = true}},
             .run = {},
             .differentiable = false};
    if (o.spec.window != WindowKind::none) {
        c.inputs.push_back({.name = "mix_logit", .shape = {o.heads}, .wide = true});
        c.inputs.push_back({"ring_k", {o.batch, o.kv_heads, slots, o.d}, Fill::Normal, 0.5});
        c.inputs.push_back({"ring_v", {o.batch, o.kv_heads, slots, o.d}});
    }
    if (o.bias) {
        c.inputs.push_back({.name = "bq", .shape = {o.heads, o.bias}, .wide = true});
        c.inputs.push_back({.name = "bk", .shape = {maps, o.bias}, .wide = true});
    }
    std::vector<int64_t> positions = o.positions;
    positions.resize(static_cast<size_t>(o.batch), o.position);
    c.run = [o, positions, on_device = Tensor(), narrow = Tensors()](const Tensors& in) mutable -> Tensors {
        // Uploaded once: a benchmark's calls must not wait for the host.
        if (!on_device.defined() || on_device.device() != in[0].device())
            on_device = Tensor::from(positions, {o.batch}).to(in[0].device());
        const auto own = [&](const Tensor& x) { return o.in_place ? x : x.clone(); };
        if (o.narrow_state && narrow.empty()) narrow = {in[5].to(DType::bf16), in[6].to(DType::bf16)};
        Tensor s = o.narrow_state ? narrow[0] : own(in[5]), z = o.narrow_state ? narrow[1] : own(in[6]),
               y = Tensor::empty(in[0].shape(), in[0].dtype(), in[0].device()), ring_k, ring_v, mix_logit;
        if (o.spec.window != WindowKind::none) mix_logit = in[7], ring_k = own(in[8]), ring_v = own(in[9]);
        kernels::hybrid_decode({.q = in[0].view(),
                                .k = in[1].view(),
                                .v = in[2].view(),
                                .wq = in[3].view(),
                                .bq = o.bias ? in[in.size() - 2].view() : TensorView{},
                                .wk = in[4].view(),
                                .bk = o.bias ? in[in.size() - 1].view() : TensorView{},
                                .mix_logit = mix_logit.view(),
                                .ring_k = ring_k.view(),
                                .ring_v = ring_v.view(),
                                .s = s.view(),
                                .z = z.view(),
                                .y = y.view(),
                                .positions = on_device.view(),
                                .spec = o.spec},
                               current_stream(in[0].device()));
        if (o.spec.window == WindowKind::none) return {y, s, z};
        return {y, s, z, ring_k, ring_v};
    };
    return c;
}

LinearizedSpec spec_of(WindowKind window, int64_t w) {
    return {.window = window, .window_size = w};
}

// A layer's step for `batch` sequences. In the middle of a block the window holds its mean of about 96 keys; at its start a
// block of keys joins the state, which is written too.
void add_gpu_bench(std::string variant, int64_t batch, int64_t position, bool narrow = false) {
    using namespace llama8b;
    OpCase c = make(std::move(variant), {.position = position,
                                         .spec = spec_of(WindowKind::terraced, kWindow),
                                         .d = kHeadDim,
                                         .f = kMapSize,
                                         .heads = kHeads,
                                         .kv_heads = kKvHeads,
                                         .batch = batch,
                                         .in_place = true,
                                         .narrow_state = narrow});
    const double state_bytes = narrow ? 2 : 4;
    const bool folds = position % kWindow == 0;
    const double rows = static_cast<double>(batch * kHeads), kv_rows = static_cast<double>(batch * kKvHeads),
                 d = kHeadDim;
    const double features = 2 * kMapSize, window = kWindow + static_cast<double>(position % kWindow) + 1;
    c.forward.flops = 2 * rows * (d * kMapSize + features * d + 2 * window * d);
    c.forward.numbers =
        2 * rows * d + 2 * kv_rows * d * (window + 1);  // q, y; the window's keys and values, and the new ones
    c.forward.bytes =
        state_bytes * rows * features * (d + 1) * (folds ? 2 : 1) + 4 * kHeads * d * kMapSize * (folds ? 2 : 1);
    if (folds) {
        c.forward.flops += 2 * rows * kWindow * (d * kMapSize + features * d);
        c.forward.numbers += 2 * kv_rows * kWindow * d;
    }
    c.bench = Bench::gpu;
    add(c);
}

}  // namespace

LC_OP_CASES(hybrid_decode) {
    const auto none = spec_of(WindowKind::none, 4);
    for (const auto& [name, kind] : {std::pair{"terraced", WindowKind::terraced}, {"sliding", WindowKind::sliding}}) {
        for (const int64_t position : {0, 3, 4, 7, 8, 9, 12, 41})
            add(make(fmt::format("{}_w4_at_{}", name, position), {.position = position, .spec = spec_of(kind, 4)}));
        add(make(fmt::format("{}_w16_d64", name), {.position = 80, .spec = spec_of(kind, 16), .d = 64, .f = 64}));
        add(make(
            fmt::format("{}_w64_d128_f64", name),
            {.position = 192, .spec = spec_of(kind, 64), .d = 128, .f = 64, .heads = 2, .kv_heads = 1, .batch = 1}));
        add(make(fmt::format("{}_w64_d64_f32_kv_maps", name), {.position = 320,
                                                               .spec = spec_of(kind, 64),
                                                               .d = 64,
                                                               .f = 32,
                                                               .heads = 4,
                                                               .kv_heads = 2,
                                                               .batch = 3,
                                                               .maps_per_kv_head = true}));
        // A batch in which every sequence is elsewhere: idle, at its start, about to fold, in the middle of a block.
        for (const auto& [d, f, w] : {std::tuple{8, 4, 4}, {64, 64, 16}, {80, 40, 16}, {128, 64, 16}, {256, 128, 16}}) {
            OpCase c = make(fmt::format("{}_positions_d{}", name, d),
                            {.positions = {-1, 0, 2 * w, 2 * w + 3, 5 * w - 1, 3 * w},
                             .spec = spec_of(kind, w),
                             .d = d,
                             .f = f,
                             .batch = 6});
            c.tolerance_factor = 4;
            c.tolerance_reason =
                "u = x W of large inputs passes 100: its rounding, in another order of summation, goes into an "
                "exponent, and from there into the features that join the state.";
            add(c);
        }
        Options o{.position = 20, .spec = spec_of(kind, 4), .d = 5, .f = 5, .maps_per_kv_head = true, .bias = 5};
        o.spec.activation = FeatureActivation::pos_elu, o.spec.affine = true, o.spec.skip = true;
        add(make(fmt::format("{}_kv_maps_bias_skip_affine", name), o));
        o = {.position = 20, .spec = spec_of(kind, 4), .heads = 4, .kv_heads = 1};
        o.spec.window_only = true;
        add(make(fmt::format("{}_window_only", name), o));
        add(make(fmt::format("{}_one_head", name),
                 {.position = 9, .spec = spec_of(kind, 1), .d = 1, .f = 1, .heads = 1, .kv_heads = 1, .batch = 1}));
    }
    // As models run it, sequences at all kinds of positions; tests/gpu/hybrid_decode_test.cpp takes many.
    for (const int64_t d : {64, 128}) {
        OpCase c = make(fmt::format("terraced_w64_d{}_model", d), {.positions = {-1, 0, 63, 128, 1280, 1311},
                                                                   .spec = spec_of(WindowKind::terraced, 64),
                                                                   .d = d,
                                                                   .f = 64,
                                                                   .batch = 6});
        c.tolerance_factor = 4;
        c.tolerance_reason = "as for terraced_positions";
        add(c);
    }
    for (const int64_t position : {0, 7})
        add(make(fmt::format("none_at_{}", position), {.position = position, .spec = none}));
    for (const auto& [d, f] : {std::pair{8, 4}, {64, 64}})
        add(make(fmt::format("none_positions_d{}", d),
                 {.positions = {3, -1, 0}, .spec = none, .d = d, .f = f, .batch = 3}));
    add(make("none_kv_maps", {.position = 3, .spec = none, .maps_per_kv_head = true}));
    add(make("none_d128_f64", {.position = 5, .spec = none, .d = 128, .f = 64}));
    OpCase bench = make("b8_h32_kv8_d64_w64", {.position = 1000,
                                               .spec = spec_of(WindowKind::terraced, 64),
                                               .d = 64,
                                               .f = 64,
                                               .heads = 32,
                                               .kv_heads = 8,
                                               .batch = 8,
                                               .in_place = true});
    bench.bench = Bench::cpu;
    bench.forward = {.flops = 8 * 32 * 2.0 * (64 * 64 + 128 * 64 + 2 * 104 * 64),
                     .numbers = 8 * 8 * 2 * 104 * 64.0,
                     .bytes = 4 * 8 * 32 * 128.0 * 64};
    add(bench);
    for (const int64_t batch : {1, 64}) add_gpu_bench(fmt::format("llama8b_b{}_w64", batch), batch, 64 * 20 + 32);
    add_gpu_bench("llama8b_b64_w64_fold", 64, 64 * 20);
    add_gpu_bench("llama8b_b64_w64_bf16_state", 64, 64 * 20 + 32, true);
    add_gpu_bench("llama8b_b64_w64_bf16_state_fold", 64, 64 * 20, true);
}

}  // namespace lc::testing
