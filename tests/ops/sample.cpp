#include "kernels/sample/sample_rules.h"
#include "tests/ops/op_case.h"

namespace lc::testing {
namespace {

using kernels::SampleSettings;

struct Options {
    int64_t batch = 3, v = 40;
    SampleSettings settings;
    bool tables = false;  // bias and what was seen
};

Tensor settings_tensor(const Options& o) {
    std::vector<uint8_t> bytes;
    for (int64_t b = 0; b < o.batch; ++b) {
        SampleSettings own = o.settings;
        own.random = Random(3, static_cast<uint64_t>(b));
        const auto* first = reinterpret_cast<const uint8_t*>(&own);
        bytes.insert(bytes.end(), first, first + sizeof own);
    }
    return Tensor::from(bytes, {o.batch, static_cast<int64_t>(sizeof(SampleSettings))});
}

// The ids as bits, so that a bound relative to the largest output still tells neighbours apart.
Tensor bits_of(const Tensor& ids) {
    std::vector<float> bits;
    for (const int32_t id : ids.to_vector<int32_t>())
        for (int bit = 0; bit < 20; ++bit) bits.push_back(static_cast<float>(id >> bit & 1));
    return Tensor::from(bits, {std::ssize(bits)});
}

OpCase make(std::string variant, const Options& o, bool bench = false) {
    OpCase c{.op = "sample",
             .variant = std::move(variant),
             .inputs = {{"logits", {o.batch, o.v}, Fill::Normal, 3}},
             .run = {},
             .forward = {.numbers = static_cast<double>(o.batch * o.v)},
             .differentiable = false};
    if (o.tables) {
        c.inputs.push_back({.name = "bias", .shape = {o.batch, o.v}});
        c.inputs.push_back({.name = "seen", .shape = {o.batch, o.v}, .fill = Fill::Ids, .bound = 3});
        c.forward.bytes = static_cast<double>(o.batch * o.v) * 8;
    }
    struct Rest {
        Tensor settings, positions, ids, results;
    };
    // Made once a device: a benchmark's calls must not wait for the host.
    c.run = [o, bench, rest = Rest()](const Tensors& in) mutable -> Tensors {
        const Device device = in[0].device();
        if (!rest.settings.defined() || rest.settings.device() != device)
            rest = {settings_tensor(o).to(device), Tensor::full({o.batch}, 17, DType::i64, device),
                    Tensor::zeros({o.batch}, DType::i32, device), Tensor::zeros({o.batch, 2}, DType::i32, device)};
        const Tensor bias = o.tables ? in[1].to(DType::f32) : Tensor(), seen = o.tables ? in[2].clone() : Tensor();
        kernels::sample({.logits = in[0].view(),
                         .bias = bias.view(),
                         .seen = seen.view(),
                         .settings = rest.settings.view(),
                         .positions = rest.positions.view(),
                         .ids = rest.ids.view(),
                         .results = rest.results.view()},
                        current_stream(device));
        if (bench) return {rest.ids};
        return o.tables ? Tensors{bits_of(rest.ids), seen} : Tensors{bits_of(rest.ids)};
    };
    if (bench) c.bench = Bench::gpu;
    return c;
}

SampleSettings drawn(double top_p = 1, int32_t top_k = 0, double min_p = 0) {
    return {.top_p = top_p,
            .min_weight = kernels::sample_min_weight(min_p),
            .top_k = top_k,
            .sharpness = kernels::sample_sharpness(0.8),
            .greedy = 0};
}

}  // namespace

LC_OP_CASES(sample) {
    add(make("greedy", {}));
    add(make("drawn", {.settings = drawn()}));
    add(make("one_id", {.v = 1, .settings = drawn()}));
    add(make("top_k", {.batch = 5, .v = 1000, .settings = drawn(1, 20)}));
    add(make("top_p", {.batch = 5, .v = 1000, .settings = drawn(0.9)}));
    add(make("all_filters", {.batch = 4, .v = 9001, .settings = drawn(0.95, 300, 0.01)}));
    OpCase many = make("many_tiles", {.batch = 2, .v = 70001, .settings = drawn(0.9, 5000, 0.0001)});
    many.heavy = true;
    add(many);
    SampleSettings penalties = drawn(0.95);
    penalties.repetition = 1.3, penalties.presence = 0.2, penalties.frequency = 0.1;
    penalties.uses_bias = penalties.uses_seen = 1;
    add(make("tables", {.batch = 4, .v = 333, .settings = penalties, .tables = true}));
    for (const int64_t batch : {1, 64, 256}) {
        const auto add_bench = [&](const char* name, const SampleSettings& settings) {
            add(make(fmt::format("llama8b_{}_b{}", name, batch),
                     {.batch = batch, .v = llama8b::kVocabulary, .settings = settings}, true));
        };
        add_bench("greedy", {});
        add_bench("drawn", drawn());
        add_bench("top_p", drawn(0.9));
        add_bench("top_k_top_p", drawn(0.95, 50));
    }
}

}  // namespace lc::testing
