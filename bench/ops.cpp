#include "bench/ops.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "autograd/engine.h"
#include "bench/environment.h"
#include "bench/roofline.h"
#include "core/log.h"
#include "models/placement.h"
#include "tests/ops/op_case.h"

namespace lc::bench {
namespace {

using testing::Bench;
using testing::Cost;
using testing::OpCase;
using testing::Target;
using testing::Tensors;

constexpr uint64_t kSeed = 1;

struct Result {
    const OpCase* op_case = nullptr;
    const char* phase = nullptr;
    Cost cost;
    Timing timing;
    io::Json moment;
};

// Stands for the op that made an input: its gradient is written once, in the activation's dtype, and freed. (A leaf would
// collect it in f32.)
struct Producer final : Node {
    std::string_view name() const override { return "producer"; }
    void backward(std::span<const Tensor>, GradSink&) override {}
};

// Stands for what uses the outputs: hands each its gradient without a copy. Its own result is one number on the CPU.
struct Consumer final : Node {
    Tensors cotangents;
    std::string_view name() const override { return "consumer"; }
    void backward(std::span<const Tensor>, GradSink& din) override {
        for (size_t i = 0; i < cotangents.size(); ++i) din.pass(static_cast<int>(i), cotangents[i]);
    }
};

// Inputs as training has them: activations come from other ops, parameters (which stay f32) are leaves, frozen weights neither.
Tensors make_inputs(const OpCase& c, const Target& target) {
    Tensors inputs = testing::make_inputs(c, target, kSeed);
    const std::vector<bool> wanted = testing::differentiable_inputs(c);
    for (size_t i = 0; i < inputs.size(); ++i) {
        if (!wanted[i]) continue;
        if (c.inputs[i].wide)
            set_requires_grad(inputs[i]);
        else
            record(std::make_shared<Producer>(), {}, {&inputs[i]});
    }
    return inputs;
}

// The one number that depends on all outputs.
Tensor consume(const Tensors& outputs, const Target& target) {
    const auto node = std::make_shared<Consumer>();
    for (size_t i = 0; i < outputs.size(); ++i) {
        const Tensor values = testing::make_input(
            {.name = "dy", .shape = outputs[i].shape()},
            {.device = target.device, .dtype = outputs[i].dtype(), .values = target.dtype}, Random(kSeed + 1, i));
        Tensor dy = Tensor::empty_like(outputs[i].layout(), outputs[i].dtype(), target.device);
        dy.copy_from(values);
        node->cotangents.push_back(dy);
    }
    Tensor root = Tensor::zeros({1}, DType::f32);
    record(node, std::span<const Tensor>(outputs), std::span<Tensor>(&root, 1));
    return root;
}

// The forward as training calls it, recorded if the op can be; then the backward alone, over one tape that is kept.
std::vector<Result> time_case(const OpCase& c, const Target& target, const Plan& plan) {
    Tensors inputs = make_inputs(c, target);
    std::vector<Result> results;
    const auto time_phase = [&](const char* phase, const Cost& cost, const std::function<void()>& call) {
        const Timing timing = measure(call, target.device, plan);
        results.push_back({&c, phase, cost, timing, moment(target.device)});
    };
    time_phase("forward", c.forward, [&] { c.run(inputs); });
    if (!c.backward) return results;
    const Tensor root = consume(c.run(inputs), target);
    time_phase("backward", c.backward, [&] {
        for (Tensor& input : inputs)
            if (grad_of(input).defined()) set_grad(input, {});
        backward(root, {}, {.retain_graph = true});
    });
    return results;
}

std::string shapes_of(const OpCase& c) {
    constexpr size_t kShown = 16;  // an optimizer has hundreds
    std::string text;
    for (size_t i = 0; i < std::min(kShown, c.inputs.size()); ++i)
        text += fmt::format("{}{}{}", i ? " " : "", c.inputs[i].name, c.inputs[i].shape);
    return c.inputs.size() > kShown ? fmt::format("{} and {} more", text, c.inputs.size() - kShown) : text;
}

// What the machine could do before and after the case.
struct Ceilings {
    Roofline before, after;
    Roofline mid() const { return mean(before, after); }
    double drift() const { return bench::drift(before, after); }
};

io::Json as_json(const Result& r, const Target& target, const Ceilings& ceilings, const Environment& e) {
    const Roofline roofline = ceilings.mid();
    const double bytes = r.cost.bytes_in(target.dtype), us = r.timing.median_us;
    const double floor = roofline.floor_us(r.cost.flops, bytes);
    io::Json line = {{"kind", "op"},
                     {"op", r.op_case->op},
                     {"variant", r.op_case->variant},
                     {"phase", r.phase},
                     {"shape", shapes_of(*r.op_case)},
                     {"dtype", name_of(target.dtype)},
                     {"device", target.device.is_cpu() ? "cpu" : "cuda"},
                     {"us_median", us},
                     {"us_p10", r.timing.p10_us},
                     {"us_p90", r.timing.p90_us},
                     {"n", r.timing.samples},
                     {"calls", r.timing.calls},
                     {"flops", r.cost.flops},
                     {"bytes", bytes},
                     {"tflops", r.cost.flops / us * 1e-6},
                     {"gbps", bytes / us * 1e-3},
                     {"roofline_us", floor},
                     {"roofline_frac", floor / us},
                     {"ceil", {{"gemm_tflops", roofline.gemm_gflops * 1e-3}, {"copy_gbps", roofline.copy_gbps}}},
                     {"drift", ceilings.drift()}};
    if (target.device.is_cuda()) {
        line["l2"] = r.timing.cold ? "cold" : "warm";
        line["host_us"] = r.timing.host_us;
        line["starved"] = r.timing.starved;
    }
    line.update(r.moment);
    line.update(e.fields);
    return line;
}

void print(const io::Json& line) {
    std::string notes;
    if (line.value("l2", "") == "warm") notes += " warm";
    if (line.value("starved", false)) notes += " host-bound";
    if (line["drift"].get<double>() > kDriftLimit)
        notes += fmt::format(" drift {:.1f}%", 100 * line["drift"].get<double>());
    const auto number = [&](const char* key) { return line[key].get<double>(); };
    fmt::print("{:<22} {:<30} {:<9} {:>11.2f} {:>11.2f} {:>11.2f} {:>9.3f} {:>8.1f} {:>6.1f}%{}\n",
               line["op"].get<std::string>(), line["variant"].get<std::string>(), line["phase"].get<std::string>(),
               number("us_median"), number("us_p10"), number("us_p90"), number("tflops"), number("gbps"),
               100 * number("roofline_frac"), notes);
    std::fflush(stdout);
}

std::vector<const OpCase*> selected(const OpsOptions& options, bool gpu) {
    const Bench wanted = gpu ? Bench::gpu : Bench::cpu;
    const auto asked = [&](const OpCase& c) {
        const bool op =
            options.ops.empty() || std::find(options.ops.begin(), options.ops.end(), c.op) != options.ops.end();
        return op && (options.variant.empty() || c.variant == options.variant);
    };
    std::vector<const OpCase*> cases;
    for (const OpCase& c : testing::op_cases())
        if (c.bench == wanted && asked(c)) cases.push_back(&c);
    LC_REQUIRE(Usage, !cases.empty(), "no {} benchmark matches; --list shows them all", gpu ? "GPU" : "CPU");
    return cases;
}

void list(const OpsOptions& options) {
    for (const OpCase* c : selected(options, options.device != "cpu")) fmt::print("{} {}\n", c->op, c->variant);
}

}  // namespace

int run_ops(const OpsOptions& options) {
    if (options.list) return list(options), 0;
    const models::Placement place = models::placement_from(options.device, options.dtype);
    const Target target{place.device, place.dtype, place.dtype};
    const std::vector<const OpCase*> cases = selected(options, target.device.is_cuda());
    const Environment e = environment(target.device, options.command);
    const RooflineProbe probe(target.device, target.dtype);
    const Plan plan{.min_seconds = options.min_seconds};
    // The first one brings the machine to its loaded state; the later ones find it there.
    const Plan between{.min_seconds = std::min(0.1, options.min_seconds), .warmup_seconds = 0.02, .min_samples = 20};
    Roofline before = probe.measure(plan);
    fmt::print("{}; {}; revision {}\nroofline: copy {:.1f} GB/s, {} GEMM {:.2f} TFLOP/s\n\n", e.machine,
               name_of(target.dtype), e.fields["revision"].get<std::string>(), before.copy_gbps, name_of(target.dtype),
               before.gemm_gflops * 1e-3);
    fmt::print("{:<22} {:<30} {:<9} {:>11} {:>11} {:>11} {:>9} {:>8} {:>7}\n", "op", "variant", "phase", "us median",
               "p10", "p90", "TFLOP/s", "GB/s", "of roof");
    int failed = 0;
    for (const OpCase* c : cases) {
        try {
            const std::vector<Result> results = time_case(*c, target, plan);
            const Ceilings ceilings{before, probe.measure(between)};
            before = ceilings.after;
            for (const Result& result : results) {
                const io::Json line = as_json(result, target, ceilings, e);
                print(line);
                append_line(options.out, line);
            }
        } catch (const Error& error) {
            ++failed;
            log_line(LogLevel::Error, fmt::format("{} {}: {}", c->op, c->variant, error.what()));
        }
    }
    return failed;
}

}  // namespace lc::bench
