// Times the op cases that are marked for it (tests/ops/*.cpp, .bench = true): see bench/README.md.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include "autograd/engine.h"
#include "bench/measure.h"
#include "core/log.h"
#include "core/parallel.h"
#include "core/rng.h"
#include "io/json.h"
#include "tests/ops/op_case.h"

namespace lc::bench {
namespace {

using testing::OpCase;
using testing::Tensors;

struct Options {
    std::string op, out, command;
    double min_seconds = 0.5;
    int threads = 0;
    bool list = false;
};

struct Result {
    const OpCase* op_case = nullptr;
    std::string phase;
    Timing timing;
    double flops = 0, bytes = 0;
};

std::vector<const OpCase*> selected(const Options& options) {
    std::vector<const OpCase*> cases;
    for (const OpCase& c : testing::op_cases())
        if (c.bench && (options.op.empty() || c.op == options.op)) cases.push_back(&c);
    LC_REQUIRE(Usage, !cases.empty(), "no benchmark for op '{}'; --list shows them all", options.op);
    return cases;
}

// The forward runs as in training: recorded, if the op can be.
Result forward_of(const OpCase& c, double min_seconds) {
    const Tensors inputs = testing::make_inputs(c, {}, 1, testing::differentiable_inputs(c));
    return {&c, "forward", measure([&] { c.run(inputs); }, min_seconds), c.flops, c.bytes};
}

// Backward alone, over one tape that is kept; gradients are written, not added up.
Result backward_of(const OpCase& c, double min_seconds) {
    Tensors inputs = testing::make_inputs(c, {}, 1, testing::differentiable_inputs(c));
    Tensors roots, cotangents;
    for (const Tensor& output : c.run(inputs)) {
        if (!requires_grad(output)) continue;
        roots.push_back(output);
        std::vector<float> values(static_cast<size_t>(output.numel()));
        for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(Random(2).normal(i));
        cotangents.push_back(Tensor::from(values, output.shape()));
    }
    const auto step = [&] {
        for (Tensor& input : inputs)
            if (requires_grad(input)) set_grad(input, {});
        backward(roots, cotangents, {.retain_graph = true});
    };
    return {&c, "backward", measure(step, min_seconds), c.backward_flops, c.backward_bytes};
}

io::Json as_json(const Result& r, const Roofline& roofline, const Environment& e, const std::string& command) {
    const double seconds = r.timing.median_ms * 1e-3;
    return {{"op", r.op_case->op},
            {"phase", r.phase},
            {"variant", r.op_case->variant},
            {"dtype", "f32"},
            {"ms", {{"median", r.timing.median_ms}, {"p10", r.timing.p10_ms}, {"p90", r.timing.p90_ms}}},
            {"samples", r.timing.samples},
            {"flops", r.flops},
            {"bytes", r.bytes},
            {"gflops", r.flops / seconds * 1e-9},
            {"gbps", r.bytes / seconds * 1e-9},
            {"roofline_fraction", roofline.floor_ms(r.flops, r.bytes) / r.timing.median_ms},
            {"copy_gbps", roofline.copy_gbps},
            {"gemm_gflops", roofline.gemm_gflops},
            {"threads", e.threads},
            {"cpu", e.cpu},
            {"compiler", e.compiler},
            {"gemm", e.gemm_backend},
            {"revision", e.revision},
            {"command", command},
            {"utc", e.utc}};
}

void report(const Result& r, const Roofline& roofline, const Environment& e, const Options& options) {
    const double seconds = r.timing.median_ms * 1e-3;
    fmt::print("{:<24} {:<22} {:<9} {:>10.4f} {:>10.4f} {:>10.4f} {:>9.1f} {:>8.1f} {:>6.0f}%\n", r.op_case->op,
               r.op_case->variant, r.phase, r.timing.median_ms, r.timing.p10_ms, r.timing.p90_ms,
               r.flops / seconds * 1e-9, r.bytes / seconds * 1e-9,
               100 * roofline.floor_ms(r.flops, r.bytes) / r.timing.median_ms);
    std::fflush(stdout);
    if (options.out.empty()) return;
    std::ofstream file(options.out, std::ios::app);
    file << as_json(r, roofline, e, options.command).dump() << '\n';
    file.close();
    LC_REQUIRE(Resource, !file.fail(), "{}: cannot append a result", options.out);
}

void run(const Options& options) {
    const std::vector<const OpCase*> cases = selected(options);
    if (options.list) {
        for (const OpCase* c : cases) fmt::print("{} {}\n", c->op, c->variant);
        return;
    }
    if (options.threads > 0) set_num_threads(options.threads);
    const Environment e = environment();
    const Roofline roofline = measure_roofline(options.min_seconds);
    fmt::print(
        "{}; {} threads; {}; gemm {}; revision {}\nroofline: copy {:.1f} GB/s, f32 GEMM 1024^3 {:.1f} GFLOP/s\n\n",
        e.cpu, e.threads, e.compiler, e.gemm_backend, e.revision, roofline.copy_gbps, roofline.gemm_gflops);
    fmt::print("{:<24} {:<22} {:<9} {:>10} {:>10} {:>10} {:>9} {:>8} {:>7}\n", "op", "variant", "phase", "ms median",
               "p10", "p90", "GFLOP/s", "GB/s", "of roof");
    for (const OpCase* c : cases) {
        report(forward_of(*c, options.min_seconds), roofline, e, options);
        if (c->backward_flops > 0 || c->backward_bytes > 0)
            report(backward_of(*c, options.min_seconds), roofline, e, options);
    }
}

}  // namespace
}  // namespace lc::bench

int main(int argc, char** argv) {
    lc::bench::Options options;
    CLI::App app("Times the ops of the library on this machine and compares them with its roofline.", "bench");
    app.add_option("--op", options.op, "only this op");
    app.add_option("--out", options.out, "append one JSON line a result to this file");
    app.add_option("--min-seconds", options.min_seconds, "measure each phase at least this long")
        ->check(CLI::Range(0.0, 3600.0))
        ->capture_default_str();
    app.add_option("--threads", options.threads, "threads of the pool; 0: all cores")->check(CLI::Range(0, 256));
    app.add_flag("--list", options.list, "name the cases and stop");
    for (int i = 0; i < argc; ++i) options.command += (i ? " " : "") + std::string(argv[i]);
    try {
        app.parse(argc, argv);
        lc::bench::run(options);
    } catch (const CLI::ParseError& error) {
        return app.exit(error) == 0 ? 0 : static_cast<int>(lc::ErrorKind::Usage);
    } catch (const lc::Error& error) {
        lc::log_line(lc::LogLevel::Error, error.what());
        return static_cast<int>(error.kind());
    }
    return 0;
}
