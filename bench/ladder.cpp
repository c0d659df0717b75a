#include "bench/ladder.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>

#include "autograd/ops/views.h"
#include "bench/environment.h"
#include "bench/ladder/steps.h"
#include "bench/roofline.h"
#include "core/log.h"
#include "models/placement.h"
#include "tests/ops/op_runner.h"

namespace lc::bench {
namespace {

using testing::OpCase;
using testing::Target;
using testing::Tensors;

// What a step must get right, and where it is timed. Cases "as projected" and those of benchmarks hold q, k, v as [B,T,H,D].
struct Course {
    const char *op, *timed;
    std::vector<std::string> checked;
};
const Course kCourses[] = {
    {"softmax_attention", "llama8b_8x1024", {"as_projected_d64", "as_projected_d128", "tiles_d64_long"}},
    {"hybrid_attention", "llama8b_8x1024_w64", {"fused_as_projected", "fused_d64_kv_maps", "fused_d128"}}};

const OpCase& case_of(const std::string& op, const std::string& variant) {
    for (const OpCase& c : testing::op_cases())
        if (c.op == op && c.variant == variant) return c;
    fail(ErrorKind::Internal, "ladder: no case {} of {}", variant, op);
}

// The case with `step` in the op's place on the GPU; on the CPU, where the oracle runs, it stays what it was.
OpCase with_step(OpCase c, const Step& step) {
    const bool projected = c.variant.starts_with("llama8b") || c.variant.find("as_projected") != std::string::npos;
    for (testing::OpInput& input : c.inputs) input.differentiable = false;
    c.run = [op = c.run, run = step.run, projected](const Tensors& in) -> Tensors {
        if (in[0].device().is_cpu()) return op(in);
        Tensors heads = in;
        for (int i = 0; i < 3 && projected; ++i) heads[i] = permute(in[i], {0, 2, 1, 3});
        return {run(heads)};
    };
    return c;
}

io::Json timed(const Course& course, const Step& step, const Target& target, const Roofline& roofline,
               double min_seconds) {
    const OpCase c = with_step(case_of(course.op, course.timed), step);
    const Tensors inputs = testing::make_inputs(c, target, 1);
    const Timing timing =
        measure([&] { c.run(inputs); }, target.device, {.min_seconds = min_seconds, .min_samples = 5});
    const double floor = roofline.floor_us(c.forward.flops, c.forward.bytes_in(target.dtype));
    return {{"kind", "ladder"},
            {"op", course.op},
            {"variant", course.timed},
            {"step", step.idea},
            {"dtype", name_of(target.dtype)},
            {"us_median", timing.median_us},
            {"us_p10", timing.p10_us},
            {"us_p90", timing.p90_us},
            {"n", timing.samples},
            {"tflops", c.forward.flops / timing.median_us * 1e-6},
            {"roofline_frac", floor / timing.median_us}};
}

}  // namespace

int run_ladder(const LadderOptions& options) {
    const std::vector<Step> steps = ladder_steps();
    LC_REQUIRE(Resource, !steps.empty(),
               "the ladder is made of CUDA kernels; this build has no CUDA device to run them");
    const models::Placement place = models::placement_from(options.device, options.dtype);
    LC_REQUIRE(Usage, place.device.is_cuda() && place.dtype == DType::bf16, "the ladder runs on a GPU, in bf16");
    const Target target{place.device, place.dtype, place.dtype};
    const Environment e = environment(target.device, options.command);
    const Roofline roofline = RooflineProbe(target.device, target.dtype).measure({.min_seconds = options.min_seconds});
    fmt::print("{}; {}\n\n{:<20} {:<42} {:>12} {:>9} {:>8} {:>9}\n", e.machine, name_of(target.dtype), "op", "step",
               "us median", "TFLOP/s", "of roof", "x step 1");
    int failed = 0;
    for (const Course& course : kCourses) {
        double first_us = 0;
        for (const Step& step : steps) {
            if (step.op != course.op) continue;
            try {
                for (const std::string& variant : course.checked)
                    check_correct(with_step(case_of(course.op, variant), step), target);
                io::Json line = timed(course, step, target, roofline, options.min_seconds);
                const double us = line["us_median"].get<double>();
                if (first_us == 0) first_us = us;
                line["gain"] = first_us / us;
                fmt::print("{:<20} {:<42} {:>12.1f} {:>9.1f} {:>7.1f}% {:>9.1f}\n", course.op, step.idea, us,
                           line["tflops"].get<double>(), 100 * line["roofline_frac"].get<double>(), first_us / us);
                std::fflush(stdout);
                line.update(e.fields), line.update(moment(target.device));
                append_line(options.out, line);
            } catch (const Error& error) {
                ++failed;
                log_line(LogLevel::Error, fmt::format("{} {}: {}", course.op, step.idea, error.what()));
            }
        }
    }
    return failed;
}

}  // namespace lc::bench
