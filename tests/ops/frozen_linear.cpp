#include "kernels/frozen_linear/frozen_linear.h"

#include <numeric>

#include "tests/ops/op_case.h"

namespace lc::testing {
namespace {

using kernels::FrozenMatrix;
using kernels::WeightCode;

struct Options {
    int64_t rows = 3, in = 64;
    std::vector<int64_t> out = {48};
    WeightCode code = WeightCode::none;
    bool code_rows = false, norm = false, gated = false, bias = false, residual = false;
    bool joined = false;  // matrices lie behind one another, and so do the columns of results
    double offset = 0;
};

// A matrix as the op takes it, with what it points into.
struct Held {
    Tensor w, scale, b;
    Held(const Tensor& dense, const Tensor& bias, WeightCode code) : w(dense), b(bias) {
        if (code == WeightCode::none) return;
        w = Tensor::empty(dense.shape(), DType::u8, dense.device());
        scale = Tensor::empty({dense.size(0)}, DType::f32, dense.device());
        kernels::encode_weights({.w = dense.view(), .codes = w.view(), .scale = scale.view(), .code = code},
                                current_stream(dense.device()));
    }
    FrozenMatrix matrix() const { return {w.view(), scale.view(), b.view()}; }
};

Tensors multiply(const Options& o, const Tensor& x, const Tensor& norm, const Tensor& residual,
                 const std::vector<Held>& held) {
    std::vector<FrozenMatrix> matrices;
    for (const Held& h : held) matrices.push_back(h.matrix());
    Tensors y;
    std::vector<TensorView> views;
    const int64_t columns = std::accumulate(o.out.begin(), o.out.end(), int64_t{0});
    const auto of_size = [&](const Shape& shape) { return Tensor::empty(shape, x.dtype(), x.device()); };
    const Tensor all_w = o.joined ? of_size({columns, o.in}) : Tensor();
    const Tensor all_y = o.joined ? of_size({o.rows, columns}) : Tensor();
    int64_t first = 0;
    for (size_t j = 0; j < (o.gated ? 1 : held.size()); first += o.out[j++]) {
        y.push_back(o.joined ? all_y.sliced(1, first, o.out[j]) : of_size({o.rows, o.out[j]}));
        views.push_back(y.back().view());
        if (!o.joined) continue;
        Tensor w = all_w.sliced(0, first, o.out[j]);
        w.copy_from(held[j].w);
        matrices[j].w = w.view();
    }
    kernels::frozen_linear({.x = x.view(),
                            .norm_weight = norm.view(),
                            .matrices = matrices,
                            .residual = residual.view(),
                            .y = views,
                            .code = o.code,
                            .code_rows = o.code_rows,
                            .gated = o.gated,
                            .norm_offset = o.offset},
                           current_stream(x.device()));
    return y;
}

OpCase make(std::string variant, const Options& o) {
    OpCase c{.op = "frozen_linear",
             .variant = std::move(variant),
             .inputs = {{"x", {o.rows, o.in}}},
             .run = {},
             .differentiable = false};
    if (o.code != WeightCode::none) c.variant += fmt::format("_{}", name_of(o.code));
    if (o.norm) c.inputs.push_back({"norm_weight", {o.in}});
    if (o.residual) c.inputs.push_back({"residual", {o.rows, o.out[0]}});
    for (size_t j = 0; j < o.out.size(); ++j) {
        c.inputs.push_back({.name = fmt::format("w{}", j), .shape = {o.out[j], o.in}, .scale = 0.1});
        if (o.bias) c.inputs.push_back({fmt::format("b{}", j), {o.out[j]}});
    }
    c.run = [o](const Tensors& in) -> Tensors {
        size_t next = 1;
        const Tensor norm = o.norm ? in[next++] : Tensor(), residual = o.residual ? in[next++] : Tensor();
        std::vector<Held> held;
        for (size_t j = 0; j < o.out.size(); ++j) {
            const Tensor& w = in[next++];
            held.emplace_back(w, o.bias ? in[next++] : Tensor(), o.code);
        }
        return multiply(o, in[0], norm, residual, held);
    };
    return c;
}

// A layer's products of a decode step. Weights are made once, and coded outside of what is timed.
void add_bench(const char* name, WeightCode code, Options o, Bench bench) {
    o.code = code;
    OpCase c = make(fmt::format("{}_{}x{}", name, o.rows, o.in), o);
    double weights = 0, results = 0;
    for (const int64_t out : o.out) weights += static_cast<double>(out * o.in), results += static_cast<double>(out);
    const double rows = static_cast<double>(o.rows), bytes = code == WeightCode::none ? 0 : weights;
    c.forward = {.flops = 2 * rows * weights,
                 .numbers = weights - bytes + rows * (static_cast<double>(o.in) + results),
                 .bytes = bytes};
    if (code != WeightCode::none) {
        c.run = [o, held = std::vector<Held>()](const Tensors& in) mutable -> Tensors {
            const size_t first = 1 + o.norm + o.residual;
            if (held.empty())
                for (size_t j = first; j < in.size(); ++j) held.emplace_back(in[j], Tensor(), o.code);
            return multiply(o, in[0], o.norm ? in[1] : Tensor(), o.residual ? in[1 + o.norm] : Tensor(), held);
        };
    }
    c.bench = bench;
    add(c);
}

}  // namespace

LC_OP_CASES(frozen_linear) {
    // Widths that the streaming kernel takes are multiples of 64 (of 128 for codes); its stages have 256 (512).
    for (const WeightCode code : {WeightCode::none, WeightCode::int8, WeightCode::fp8}) {
        add(make("one", {.rows = 1, .in = 1, .out = {1}, .code = code}));
        add(make("odd", {.rows = 5, .in = 37, .out = {19}, .code = code, .norm = true, .bias = true}));
        add(make("row", {.rows = 1, .in = 640, .out = {100}, .code = code, .residual = true}));
        add(make("three", {.rows = 8, .in = 1152, .out = {70, 33, 1}, .code = code, .norm = true, .bias = true}));
        add(make("gated", {.rows = 9, .in = 384, .out = {75, 75}, .code = code, .norm = true, .gated = true}));
        add(make("gated_residual",
                 {.rows = 2, .in = 128, .out = {40, 40}, .code = code, .gated = true, .bias = true, .residual = true}));
        for (const int64_t rows : {16, 17, 32, 33})
            add(make(fmt::format("rows{}", rows),
                     {.rows = rows, .in = 640, .out = {48}, .code = code, .norm = rows % 2 == 0, .offset = 1}));
    }
    add(make("wide_three", {.rows = 40, .in = 1152, .out = {144, 32, 16}, .norm = true, .bias = true}));
    add(make("wide_gated", {.rows = 64, .in = 384, .out = {80, 80}, .norm = true, .gated = true, .residual = true}));
    add(make("many_gated", {.rows = 300, .in = 72, .out = {200, 200}, .gated = true}));
    for (const int64_t rows : {1, 24, 70})
        add(make(fmt::format("joined_rows{}", rows),
                 {.rows = rows, .in = 128, .out = {64, 32, 32}, .norm = true, .joined = true}));
    // Rows become codes as well. No norm: what an ulp makes of a code is not rounding.
    const Options coded{.code = WeightCode::fp8, .code_rows = true};
    const auto add_coded = [&](const char* name, int64_t rows, int64_t in, std::vector<int64_t> out, auto change) {
        Options o = coded;
        o.rows = rows, o.in = in, o.out = std::move(out);
        change(o);
        add(make(name, o));
    };
    add_coded("coded_rows", 32, 80, {48}, [](Options& o) { o.bias = o.residual = true; });
    add_coded("coded_rows_three", 16, 256, {64, 16, 32}, [](Options&) {});
    add_coded("coded_rows_gated", 48, 64, {96, 96}, [](Options& o) { o.gated = true; });
    add_coded("coded_rows_odd", 5, 37, {19}, [](Options& o) { o.bias = true; });
    add_bench("mlp", WeightCode::none, {.rows = 1, .in = 512, .out = {1376, 1376}, .norm = true, .gated = true},
              Bench::cpu);
    add_bench("mlp", WeightCode::int8, {.rows = 1, .in = 512, .out = {1376, 1376}, .norm = true, .gated = true},
              Bench::cpu);
    using namespace llama8b;
    constexpr int64_t kKv = kKvHeads * kHeadDim;
    for (const WeightCode code : {WeightCode::none, WeightCode::int8, WeightCode::fp8})
        for (const int64_t rows : {1, 8, 16, 64}) {
            add_bench("qkv", code, {.rows = rows, .in = kHidden, .out = {kHidden, kKv, kKv}, .norm = true}, Bench::gpu);
            add_bench("o", code, {.rows = rows, .in = kHidden, .out = {kHidden}, .residual = true}, Bench::gpu);
            add_bench("gate_up", code, {.rows = rows, .in = kHidden, .out = {kMlp, kMlp}, .norm = true, .gated = true},
                      Bench::gpu);
            add_bench("down", code, {.rows = rows, .in = kMlp, .out = {kHidden}, .residual = true}, Bench::gpu);
        }
    add_bench("qkv_coded_rows", WeightCode::fp8,
              {.rows = kTokens, .in = kHidden, .out = {kHidden, kKv, kKv}, .code_rows = true, .norm = true},
              Bench::gpu);
    add_bench("gate_up_coded_rows", WeightCode::fp8,
              {.rows = kTokens, .in = kHidden, .out = {kMlp, kMlp}, .code_rows = true, .norm = true, .gated = true},
              Bench::gpu);
    add_bench("gate_up", WeightCode::none, {.rows = kTokens, .in = kHidden, .out = {kMlp, kMlp}, .gated = true},
              Bench::gpu);
    for (const int64_t rows : {1, 16})
        add_bench("lm_head", WeightCode::none, {.rows = rows, .in = kHidden, .out = {kVocabulary}, .norm = true},
                  Bench::gpu);
}

}  // namespace lc::testing
