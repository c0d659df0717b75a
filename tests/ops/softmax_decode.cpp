#include "kernels/softmax_decode/softmax_decode.h"

#include "core/random_tensor.h"
#include "tests/ops/op_case.h"

namespace lc::testing {
namespace {

struct Options {
    std::vector<int64_t> positions = {3};
    int64_t capacity = 16, heads = 4, kv_heads = 2, d = 8, window = 0;
};

Tensors run(const Options& o, const Tensors& in, const Tensor& keys, const Tensor& values, const Tensor& positions) {
    const Tensor y = Tensor::empty({std::ssize(o.positions), o.heads, 1, o.d}, in[0].dtype(), in[0].device());
    kernels::softmax_decode({.q = in[0].view(),
                             .k = in[1].view(),
                             .v = in[2].view(),
                             .keys = keys.view(),
                             .values = values.view(),
                             .y = y.view(),
                             .positions = positions.view(),
                             .window = o.window},
                            current_stream(in[0].device()));
    return {y, keys, values};
}

OpCase make(std::string variant, const Options& o) {
    const int64_t batch = std::ssize(o.positions);
    return {.op = "softmax_decode",
            .variant = std::move(variant),
            .inputs = {{"q", {batch, o.heads, 1, o.d}, Fill::Normal, 0.5},
                       {"k", {batch, o.kv_heads, 1, o.d}, Fill::Normal, 0.5},
                       {"v", {batch, o.kv_heads, 1, o.d}},
                       {"keys", {batch, o.kv_heads, o.capacity, o.d}, Fill::Normal, 0.5},
                       {"values", {batch, o.kv_heads, o.capacity, o.d}}},
            .run = [o, batch](const Tensors& in) -> Tensors {
                const Tensor positions = Tensor::from(o.positions, {batch}).to(in[0].device());
                return run(o, in, in[3].clone(), in[4].clone(), positions);
            },
            .differentiable = false};
}

// A layer's memory for a benchmark. One at a time: the largest fill a good part of the device.
struct Memory {
    Tensor keys, values, positions;
};
const Memory& memory_of(const Options& o, DType dtype, Device device) {
    static Memory memory;
    const int64_t batch = std::ssize(o.positions);
    const Shape shape{batch, o.kv_heads, o.capacity, o.d};
    if (!memory.keys.defined() || memory.keys.shape() != shape) {
        memory = {};
        memory.keys = normal_tensor(shape, 1, Random(1, 0), dtype, device);
        memory.values = normal_tensor(shape, 1, Random(1, 1), dtype, device);
        memory.positions = Tensor::from(o.positions, {batch}).to(device);
    }
    return memory;
}

void add_gpu_bench(int64_t batch, int64_t context) {
    using namespace llama8b;
    const Options o{.positions = std::vector<int64_t>(static_cast<size_t>(batch), context - 1),
                    .capacity = context,
                    .heads = kHeads,
                    .kv_heads = kKvHeads,
                    .d = kHeadDim};
    OpCase c = make(fmt::format("llama8b_b{}_{}k", batch, context / 1024), o);
    c.inputs.resize(3);
    c.run = [o](const Tensors& in) -> Tensors {
        const Memory& memory = memory_of(o, in[0].dtype(), in[0].device());
        return run(o, in, memory.keys, memory.values, memory.positions);
    };
    const double n = static_cast<double>(batch), keys = static_cast<double>(context) * kHeadDim;
    c.forward = {.flops = 4 * n * kHeads * keys, .numbers = n * (2 * kKvHeads * keys + 2 * kHeads * kHeadDim)};
    c.bench = Bench::gpu;
    add(c);
}

}  // namespace

LC_OP_CASES(softmax_decode) {
    add(make("window", {.positions = {0, 3, 4, 15, -1}, .window = 4}));
    add(make("packed_window", {.positions = {700, 99, 100, 356}, .capacity = 768, .d = 64, .window = 100}));
    add(make("first", {.positions = {0, 0}, .capacity = 1}));
    add(make("odd", {.positions = {4, -1, 0, 12}, .capacity = 13, .heads = 3, .kv_heads = 1, .d = 5}));
    add(make("d40", {.positions = {299, 256, -1, 255}, .capacity = 300, .heads = 2, .kv_heads = 2, .d = 40}));
    for (const int64_t d : {64, 128}) {
        add(make(fmt::format("chunks_d{}", d),
                 {.positions = {-1, 0, 254, 255, 256, 600}, .capacity = 601, .heads = 8, .kv_heads = 2, .d = d}));
        for (const int64_t group : d == 64 ? std::vector<int64_t>{2, 8} : std::vector<int64_t>{1, 3, 7, 9})
            add(make(fmt::format("group{}_d{}", group, d),
                     {.positions = {511, 30}, .capacity = 520, .heads = 2 * group, .kv_heads = 2, .d = d}));
    }
    add(make("long_d64", {.positions = {4999, 4096}, .capacity = 5000, .heads = 2, .kv_heads = 1, .d = 64}));
    OpCase bench =
        make("b8_h32_kv8_d64_1k",
             {.positions = std::vector<int64_t>(8, 1023), .capacity = 1024, .heads = 32, .kv_heads = 8, .d = 64});
    bench.bench = Bench::cpu;
    bench.forward = {.flops = 8 * 32 * 4.0 * 1024 * 64, .numbers = 8 * 8 * 2.0 * 1024 * 64};
    add(bench);
    for (const int64_t batch : {1, 64})
        for (const int64_t context : {1024, 4096, 16384, 65536}) add_gpu_bench(batch, context);
}

}  // namespace lc::testing
