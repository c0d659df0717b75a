#include "tests/ops/op_runner.h"

#include <algorithm>
#include <cmath>

#include "autograd/engine.h"
#include "autograd/gradcheck.h"
#include "core/allocator.h"
#include "core/rng.h"
#include "kernels/common/dispatch.h"

namespace lc::testing {
namespace {

constexpr uint64_t kSeed = 20241022;
using Values = std::vector<double>;

struct Result {
    std::vector<Values> outputs;
    std::vector<Values> grads;  // one an input; empty where none was wanted
};

std::vector<bool> all_wanted(const OpCase& c) {
    std::vector<bool> wanted;
    for (const OpInput& input : c.inputs)
        wanted.push_back(c.differentiable && input.differentiable && input.fill != Fill::Ids &&
                         input.fill != Fill::Labels);
    return wanted;
}

// Forward, then backward with a random cotangent that depends on the output's index only.
Result run(const OpCase& c, Tensors inputs, bool naive) {
    std::unique_ptr<kernels::ScopedNaive> force;
    if (naive) force = std::make_unique<kernels::ScopedNaive>();
    const Tensors outputs = c.run(inputs);
    Result result;
    Tensors roots, cotangents;
    for (size_t k = 0; k < outputs.size(); ++k) {
        result.outputs.push_back(outputs[k].to_vector<double>());
        if (!requires_grad(outputs[k])) continue;
        std::vector<float> values(static_cast<size_t>(outputs[k].numel()));
        const Random random(kSeed + 77, k);
        for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(random.normal(i));
        roots.push_back(outputs[k]);
        cotangents.push_back(Tensor::from(values, outputs[k].shape()).to(outputs[k].dtype()));
    }
    if (!roots.empty()) backward(roots, cotangents);
    for (const Tensor& input : inputs) {
        const Tensor grad = grad_of(input);
        result.grads.push_back(grad.defined() ? grad.to_vector<double>() : Values());
    }
    return result;
}

double largest(const Values& values) {
    double m = 0;
    for (double v : values) m = std::max(m, std::abs(v));
    return m;
}

double largest_difference(const Values& a, const Values& b) {
    double m = 0;
    for (size_t i = 0; i < a.size(); ++i) {
        const double d = std::abs(a[i] - b[i]);
        if (!(d <= m)) m = d;  // a NaN wins, and stays
        if (std::isnan(m)) return INFINITY;
    }
    return m;
}

void expect_close(const OpCase& c, const std::string& what, const Values& got, const Values& naive32,
                  const Values& exact) {
    LC_CHECK(got.size() == exact.size(), "{}: {} values, expected {}", what, got.size(), exact.size());
    const double bound =
        c.tolerance_factor * (2 * largest_difference(naive32, exact) + 4 * epsilon_of(DType::f32) * largest(exact));
    const double error = largest_difference(got, exact);
    LC_CHECK(error <= bound || (error == 0 && bound == 0),
             "{}: max error {:.3g} exceeds the derived bound {:.3g} (max|ref| {:.3g})", what, error, bound,
             largest(exact));
}

void expect_all_close(const OpCase& c, const std::string& what, const Result& got, const Result& naive32,
                      const Result& exact) {
    for (size_t k = 0; k < exact.outputs.size(); ++k)
        expect_close(c, fmt::format("{} output {}", what, k), got.outputs[k], naive32.outputs[k], exact.outputs[k]);
    for (size_t i = 0; i < exact.grads.size(); ++i)
        if (!exact.grads[i].empty() && !got.grads[i].empty())
            expect_close(c, fmt::format("{} gradient of {}", what, c.inputs[i].name), got.grads[i], naive32.grads[i],
                         exact.grads[i]);
}

OpCase scaled(OpCase c, double factor) {
    for (OpInput& input : c.inputs) input.scale *= factor;
    return c;
}

}  // namespace

void check_correct(const OpCase& c) {
    const std::vector<bool> wanted = all_wanted(c);
    for (const auto& [label, scale] : {std::pair{"normal", 1.0}, {"large", 8.0}, {"constant", 0.0}}) {
        const OpCase variant = scaled(c, scale);
        const bool with_grads = scale != 0;  // equal inputs tie every maximum; which one wins is then rounding's choice
        const std::vector<bool> want = with_grads ? wanted : std::vector<bool>();
        const Result exact = run(variant, make_inputs(variant, DType::f64, kSeed, want), true);
        const Result naive32 = run(variant, make_inputs(variant, DType::f32, kSeed, want), true);
        expect_all_close(c, label, run(variant, make_inputs(variant, DType::f32, kSeed, want), false), naive32, exact);
    }
}

void check_gradients(const OpCase& c) {
    const Tensors inputs = make_inputs(c, DType::f64, kSeed, all_wanted(c));
    GradcheckOptions options;
    options.tolerance = c.gradcheck_tolerance;
    options.max_elements = 256;
    const GradcheckReport report = gradcheck(c.run, inputs, options);
    LC_CHECK(report.elements > 0, "gradient check compared nothing");
    LC_CHECK(report.ok, "gradient check failed: {}", report.detail);
}

void check_needs_grad_subsets(const OpCase& c) {
    const std::vector<bool> wanted = all_wanted(c);
    std::vector<size_t> indices;
    for (size_t i = 0; i < wanted.size(); ++i)
        if (wanted[i]) indices.push_back(i);
    const Result exact = run(c, make_inputs(c, DType::f64, kSeed, wanted), true);
    const Result naive32 = run(c, make_inputs(c, DType::f32, kSeed, wanted), true);
    const unsigned subsets = 1u << indices.size();
    const unsigned step = indices.size() <= 6 ? 1 : 7;  // 7 is odd: every input is on in some subset and off in others
    for (unsigned mask = 0; mask < subsets; mask += step) {
        std::vector<bool> subset(wanted.size(), false);
        for (size_t bit = 0; bit < indices.size(); ++bit) subset[indices[bit]] = mask >> bit & 1;
        const Result got = run(c, make_inputs(c, DType::f32, kSeed, subset), false);
        for (size_t i = 0; i < subset.size(); ++i)
            LC_CHECK(subset[i] == !got.grads[i].empty() || numel_of(c.inputs[i].shape) == 0,
                     "input {}: gradient {} though it was {}", c.inputs[i].name, subset[i] ? "missing" : "given",
                     subset[i] ? "wanted" : "not wanted");
        expect_all_close(c, fmt::format("subset {:b}", mask), got, naive32, exact);
    }
}

void check_accumulates(const OpCase& c) {
    const std::vector<bool> wanted = all_wanted(c);
    const Result plain = run(c, make_inputs(c, DType::f32, kSeed, wanted), false);
    Tensors inputs = make_inputs(c, DType::f32, kSeed, wanted);
    for (size_t i = 0; i < inputs.size(); ++i)
        if (wanted[i]) set_grad(inputs[i], Tensor::full(inputs[i].shape(), 3.0, DType::f32));
    const Result added = run(c, inputs, false);
    for (size_t i = 0; i < inputs.size(); ++i) {
        if (!wanted[i]) continue;
        Values expected = plain.grads[i];
        for (double& v : expected) v += 3;
        // Rounding of the sum, and of partial sums that start at 3 instead of 0.
        const double bound = 64 * epsilon_of(DType::f32) * (3 + largest(plain.grads[i]));
        const double error = largest_difference(added.grads[i], expected);
        LC_CHECK(error <= bound, "gradient of {} does not add up: error {:.3g}, bound {:.3g}", c.inputs[i].name, error,
                 bound);
    }
}

void check_memory(const OpCase& c) {
    const int64_t violations = ScopedMemoryDebug::guard_violations();
    for (const bool naive : {false, true}) {
        const ScopedMemoryDebug debug;
        const Result result = run(c, make_inputs(c, DType::f32, kSeed, all_wanted(c)), naive);
        for (const auto& group : {result.outputs, result.grads})
            for (const Values& values : group)
                for (double v : values)
                    LC_CHECK(!std::isnan(v), "NaN in a result: memory was read before it was written, or not written");
    }
    LC_CHECK(ScopedMemoryDebug::guard_violations() == violations, "{} guard bands were overwritten",
             ScopedMemoryDebug::guard_violations() - violations);
}

namespace {

// The same values in a layout that is strided in every axis, shifted by `shift` elements.
Tensor restride(const Tensor& tensor, int64_t step, int64_t shift) {
    if (tensor.rank() == 0 || tensor.numel() == 0) return tensor.detach();
    Shape padded = tensor.shape();
    padded[-1] = padded[-1] * step + shift;
    const Tensor room = Tensor::full(padded, 123.0, tensor.dtype());
    Layout layout = room.layout();
    layout.shape = tensor.shape();
    layout.strides[-1] = step;
    layout.offset = shift;
    Tensor result = room.with_layout(layout);
    result.copy_from(tensor);
    return result;
}

}  // namespace

void check_layouts(const OpCase& c) {
    if (!c.strided_inputs) return;
    const std::vector<bool> wanted = all_wanted(c);
    const Result exact = run(c, make_inputs(c, DType::f64, kSeed, wanted), true);
    const Result naive32 = run(c, make_inputs(c, DType::f32, kSeed, wanted), true);
    for (const auto& [label, step, shift] :
         {std::tuple{"misaligned", 1, 1}, {"strided", 2, 0}, {"strided and misaligned", 3, 1}}) {
        Tensors inputs = make_inputs(c, DType::f32, kSeed);
        for (size_t i = 0; i < inputs.size(); ++i) {
            inputs[i] = restride(inputs[i], step, shift);
            if (wanted[i]) set_requires_grad(inputs[i]);
        }
        Result got;
        try {
            got = run(c, inputs, false);
        } catch (const Error&) {
            continue;  // refused in words: allowed
        }
        expect_all_close(c, label, got, naive32, exact);
    }
}

void check_repeatable(const OpCase& c) {
    const Result a = run(c, make_inputs(c, DType::f32, kSeed, all_wanted(c)), false);
    const Result b = run(c, make_inputs(c, DType::f32, kSeed, all_wanted(c)), false);
    LC_CHECK(a.outputs == b.outputs && a.grads == b.grads, "two runs on the same inputs differ");
}

}  // namespace lc::testing
