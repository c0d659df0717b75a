#include "autograd/ops/softmax_attention.h"

#include "autograd/ops/views.h"
#include "tests/ops/op_case.h"

namespace lc::testing {
namespace {

struct Size {
    int64_t batch, heads, kv_heads, t, keys, d;
};

OpCase make(std::string variant, Size s) {
    OpCase c{.op = "softmax_attention",
             .variant = std::move(variant),
             .inputs = {{"q", {s.batch, s.heads, s.t, s.d}},
                        {"k", {s.batch, s.kv_heads, s.keys, s.d}},
                        {"v", {s.batch, s.kv_heads, s.keys, s.d}}},
             .run = [](const Tensors& in) -> Tensors { return {softmax_attention(in[0], in[1], in[2])}; }};
    const double pairs = s.t * static_cast<double>(s.keys - s.t) + s.t * (s.t + 1) / 2.0;
    c.forward = {.flops = 4.0 * s.batch * s.heads * s.d * pairs,
                 .numbers = 2.0 * s.batch * s.d * (s.heads * s.t + s.kv_heads * s.keys)};
    c.backward = {.flops = 2.5 * c.forward.flops, .numbers = 2 * c.forward.numbers};
    return c;
}

OpCase windowed(OpCase c, int64_t window) {
    c.variant += fmt::format("_window{}", window);
    c.run = [window](const Tensors& in) -> Tensors { return {softmax_attention(in[0], in[1], in[2], window)}; };
    return c;
}

// As models call it: q, k, v and their gradients are [B,T,H,D] in memory.
OpCase as_projected(OpCase c, int64_t window = 0) {
    for (OpInput& input : c.inputs) std::swap(input.shape[1], input.shape[2]);
    c.run = [window](const Tensors& in) -> Tensors {
        const auto heads_first = [](const Tensor& x) { return permute(x, {0, 2, 1, 3}); };
        return {softmax_attention(heads_first(in[0]), heads_first(in[1]), heads_first(in[2]), window)};
    };
    return c;
}

// FLOPs by the usual convention, half the square (and less what a window hides); the log-sum-exp of each row is written and read.
OpCase gpu_bench(const char* variant, int64_t batch, int64_t length, int64_t heads = llama8b::kHeads,
                 int64_t kv_heads = llama8b::kKvHeads, int64_t d = llama8b::kHeadDim, int64_t window = 0) {
    OpCase c = as_projected(make(variant, {batch, heads, kv_heads, length, length, d}), window);
    const double rows = static_cast<double>(batch * heads * length), hidden = window > 0 ? length - window : 0;
    c.forward.flops =
        2 * static_cast<double>(batch * heads * d) * (static_cast<double>(length * length) - hidden * hidden);
    c.backward.flops = 2.5 * c.forward.flops;
    c.forward.bytes = c.backward.bytes = 4 * rows;
    c.bench = Bench::gpu;
    return c;
}

void add_gpu_benches() {
    add(gpu_bench("llama8b_8x1024", 8, 1024));
    add(gpu_bench("llama8b_2x4096", 2, 4096));
    add(gpu_bench("llama8b_1x8192", 1, 8192));
    add(gpu_bench("llama8b_1x16384", 1, 16384));
    add(gpu_bench("llama8b_1x32768", 1, 32768));
    OpCase prefill = gpu_bench("llama8b_1x131072", 1, 131072);
    for (OpInput& input : prefill.inputs) input.differentiable = false;
    prefill.backward = {};
    add(prefill);
    add(gpu_bench("llama1b_8x1024_d64", 8, 1024, 32, 8, 64));
    add(gpu_bench("llama1b_2x4096_d64", 2, 4096, 32, 8, 64));
    add(gpu_bench("llama1b_1x16384_d64", 1, 16384, 32, 8, 64));
    add(gpu_bench("h8_kv4_8x4096_d64", 8, 4096, 8, 4, 64));
    add(gpu_bench("mistral_1x32768_window4096", 1, 32768, 32, 8, 128, 4096));
}

}  // namespace

LC_OP_CASES(softmax_attention) {
    for (const int64_t t : {1, 7, 63, 64, 65, 130}) add(make(fmt::format("t{}", t), {2, 2, 2, t, t, 8}));
    for (const int64_t d : {4, 16, 64}) add(make(fmt::format("d{}", d), {1, 2, 1, 19, 19, d}));
    for (const auto& [h, hkv] : {std::pair<int64_t, int64_t>{4, 4}, {4, 2}, {4, 1}, {6, 2}})
        add(make(fmt::format("h{}_kv{}", h, hkv), {2, h, hkv, 37, 37, 8}));
    add(make("cache", {2, 4, 2, 5, 141, 8}));
    add(make("decode", {2, 4, 4, 1, 300, 16}));
    add(make("decode_gqa", {1, 8, 2, 1, 130, 8}));
    add(make("many_heads", {1, 70, 1, 3, 5, 4}));
    add(make("one", {1, 1, 1, 1, 1, 1}));
    // Head dims and tails of the tiled GPU forms: 64 and 128 on tensor cores, others not.
    const auto heavy = [](OpCase c) {
        c.heavy = true;
        c.tolerance_factor = 2;
        c.tolerance_reason =
            "Scores of large inputs pass 100 at these head dims: the rounding of a dot product, in another order of "
            "summation, goes into an exponent.";
        add(c);
    };
    heavy(make("tiles_d64", {1, 4, 2, 130, 130, 64}));
    heavy(make("tiles_d128", {2, 2, 1, 67, 67, 128}));
    heavy(make("tiles_d64_cache", {1, 2, 2, 70, 201, 64}));
    heavy(make("tiles_d128_cache", {1, 3, 1, 5, 140, 128}));
    heavy(make("tiles_d160", {1, 2, 1, 35, 35, 160}));
    // Several tiles of queries and keys, whole, cut and off the diagonal.
    heavy(make("tiles_d64_long", {1, 2, 1, 400, 400, 64}));
    heavy(make("tiles_d128_long", {1, 4, 2, 256, 256, 128}));
    heavy(make("tiles_d128_long_cache", {1, 2, 1, 300, 459, 128}));
    // So many keys that Hopper makes all gradients in one walk, whose parts of dq wait for one another.
    heavy(make("tiles_d128_one_walk", {1, 2, 1, 66, 4100, 128}));
    // More tiles than a GPU has multiprocessors.
    heavy(make("tiles_d64_many", {2, 80, 40, 5, 20, 64}));
    heavy(make("tiles_d128_many", {1, 300, 150, 3, 70, 128}));

    // Shorter and longer than a tile, beyond the first key; in front of a cache.
    for (const int64_t window : {3, 40, 64, 100, 129, 130}) add(windowed(make("t130", {1, 4, 2, 130, 130, 8}), window));
    OpCase own_key = windowed(make("t130", {1, 4, 2, 130, 130, 8}), 1);
    own_key.differentiable = false;  // y = v: scores have no gradient but rounding
    add(own_key);
    for (const int64_t window : {5, 70}) add(windowed(make("cache", {2, 4, 2, 5, 141, 8}), window));
    add(windowed(make("decode", {2, 4, 4, 1, 300, 16}), 17));
    heavy(windowed(make("tiles_d64_long", {1, 2, 1, 400, 400, 64}), 100));
    heavy(windowed(make("tiles_d128_cache", {1, 3, 1, 90, 240, 128}), 33));
    heavy(windowed(make("tiles_d160", {1, 2, 1, 70, 70, 160}), 20));
    // Both borders of a window in Hopper's tiles of 128 and 64: on their edges and inside, in one tile and tiles apart; several tiles a
    // block; keys that no query sees; and so many keys that without a window there would be one walk for all gradients.
    heavy(windowed(make("tiles_d128_long", {1, 2, 1, 390, 390, 128}), 128));
    heavy(windowed(make("tiles_d64_many", {1, 70, 35, 130, 150, 64}), 65));
    heavy(windowed(make("tiles_d128_hidden_keys", {1, 4, 1, 70, 700, 128}), 200));
    heavy(windowed(make("tiles_d128_many_keys", {1, 2, 1, 200, 4100, 128}), 150));
    heavy(make("tiles_d80", {1, 4, 2, 100, 100, 80}));
    heavy(make("tiles_d256", {1, 2, 1, 70, 70, 256}));

    add(as_projected(make("as_projected", {2, 4, 2, 70, 70, 8})));
    heavy(as_projected(make("as_projected_d64", {2, 4, 2, 66, 66, 64})));
    heavy(as_projected(make("as_projected_d128", {2, 4, 2, 140, 140, 128})));

    for (const auto& [name, size] : {std::pair<const char*, Size>{"8x1024_h8_d64", {8, 8, 8, 1024, 1024, 64}},
                                     {"2x1024_h32_kv8_d128", {2, 32, 8, 1024, 1024, 128}},
                                     {"decode_h32_kv8_d128_4096", {1, 32, 8, 1, 4096, 128}}}) {
        OpCase bench = make(name, size);
        bench.bench = Bench::cpu;
        if (size.t == 1) bench.backward = {};
        add(bench);
    }
    add_gpu_benches();
}

}  // namespace lc::testing
