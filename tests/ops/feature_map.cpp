#include "autograd/ops/feature_map.h"

#include "tests/ops/op_case.h"

namespace lc::testing {
namespace {

using kernels::FeatureActivation;

struct Options {
    FeatureActivation activation = FeatureActivation::softmax_dim;
    bool skip = false, bias = false;
};

OpCase make(std::string variant, Shape x, Shape w, Options o, Shape b = {}) {
    OpCase c{.op = "feature_map", .variant = std::move(variant), .inputs = {{"x", x}, {.name = "w", .shape = w, .scale = 0.3, .wide = true}}, .run = {}};
    if (o.bias) c.inputs.push_back({.name = "b", .shape = b, .wide = true});
    c.run = [o](const Tensors& in) -> Tensors {
        return {feature_map(in[0], in[1], o.bias ? in[2] : Tensor(), o.activation, o.skip)};
    };
    c.forward.flops = 2.0 * numel_of(x) / x[1] * w[0] * w[2];
    c.forward.numbers = numel_of(x) + numel_of(x) / x[1] / x[3] * w[0] * kernels::feature_size(o.activation, w[2]);
    c.backward = {.flops = 3 * c.forward.flops, .numbers = 2 * c.forward.numbers};  // u again, dW, dx
    return c;
}

// Of a shape that the GPU's tiles take beside bf16 rows: they round w.
OpCase tiled(std::string variant, Shape x, Shape w, Options o = {}) {
    OpCase c = make(std::move(variant), std::move(x), std::move(w), o);
    c.inputs[1].rounded = true;
    c.heavy = true;
    return c;
}

}  // namespace

LC_OP_CASES(feature_map) {
    for (const auto activation : {FeatureActivation::softmax_dim, FeatureActivation::softmax_half, FeatureActivation::exp_dim,
                                  FeatureActivation::exp_half, FeatureActivation::relu, FeatureActivation::pos_elu}) {
        const std::string name(kernels::name_of(activation));
        add(make(name, {2, 3, 5, 8}, {3, 8, 4}, {activation}));
        add(make(name + "_gqa_skip", {1, 2, 67, 6}, {4, 6, 6}, {activation, true}));
        add(tiled(name + "_tiles_d64", {1, 1, 37, 64}, {2, 64, 64}, {activation}));
    }
    add(make("relu_head_bias", {2, 2, 7, 8}, {2, 8, 8}, {FeatureActivation::relu, false, true}, {2, 1}));
    add(make("relu_vector_bias", {1, 2, 9, 8}, {4, 8, 5}, {FeatureActivation::relu, false, true}, {4, 5}));
    add(tiled("tiles", {2, 2, 35, 128}, {4, 128, 64}));
    add(tiled("more_rows_than_a_block", {1, 1, 600, 128}, {1, 128, 64}));
    add(make("relu_tiles_bias_skip", {1, 2, 33, 72}, {2, 72, 72}, {FeatureActivation::relu, true, true}, {2, 72}));
    add(make("one", {1, 1, 1, 1}, {1, 1, 1}, {}));
    OpCase bench = make("8x1024_h8_d64", {8, 8, 1024, 64}, {8, 64, 64}, {});
    bench.bench = Bench::cpu;
    add(bench);
    using namespace llama8b;
    bench = make("llama8b_8x1024", {kBatch, kHeads, kLength, kHeadDim}, {kHeads, kHeadDim, kMapSize}, {});
    bench.bench = Bench::gpu;
    add(bench);
}

}  // namespace lc::testing
