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

// The oracle of a target: the same numbers in f64 on the CPU.
Target oracle(const Target& target) { return {.dtype = DType::f64, .values = target.values}; }

// Forward, then backward with a random cotangent that depends on the output's index only.
Result run(const OpCase& c, Tensors inputs, const Target& target, bool naive) {
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
        cotangents.push_back(Tensor::from(values, outputs[k].shape())
                                 .to(target.values)
                                 .to(outputs[k].dtype())
                                 .to(outputs[k].device()));
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

// What a run is held against: the exact values, and how far the naive form lands from them in the target's precision.
struct Reference {
    Result exact, rounded;
};

Values rounded_to(DType dtype, const Values& values) {
    return Tensor::from(values, {static_cast<int64_t>(values.size())}).to(dtype).to_vector<double>();
}

Reference reference_of(const OpCase& c, const Target& target, const std::vector<bool>& wanted) {
    Reference reference;
    reference.exact = run(c, make_inputs(c, oracle(target), kSeed, wanted), oracle(target), true);
    if (target.dtype == DType::f32) {
        const Target naive{.dtype = DType::f32, .values = target.values};
        reference.rounded = run(c, make_inputs(c, naive, kSeed, wanted), naive, true);
    } else {  // no CPU arithmetic in 16 bits: the exact values, rounded
        for (const Values& values : reference.exact.outputs)
            reference.rounded.outputs.push_back(rounded_to(target.dtype, values));
        for (const Values& values : reference.exact.grads)
            reference.rounded.grads.push_back(rounded_to(target.dtype, values));
    }
    return reference;
}

// The derived bound: 2x the error of the naive form plus 4 eps max|ref|. On the GPU two things are added. `floor`: gradients such
// as dS = P (dP - delta) are differences of equal sums; the naive form rounds both alike and gets an exact 0 where another order
// of summation, or a y stored in 16 bits, leaves eps times what was subtracted. And twice the bound for `large` inputs: scores
// near 64 put the rounding of a whole dot product, again in another order, into an exponent.
void expect_close(const OpCase& c, const Target& target, const std::string& what, const Values& got, const Values& rounded,
                  const Values& exact, double floor) {
    LC_CHECK(got.size() == exact.size(), "{}: {} values, expected {}", what, got.size(), exact.size());
    const double factor = c.tolerance_factor * (target.device.is_cuda() && what.starts_with("large") ? 2 : 1);
    // On the CPU the floor holds where all exact values are 0: the difference of a sum with itself, which only one order of
    // its terms gets exactly (the query's gradient when there is one key).
    const double rest = target.device.is_cuda() || largest(exact) == 0 ? floor : 0;
    const double bound =
        factor * (2 * largest_difference(rounded, exact) + 4 * epsilon_of(target.dtype) * largest(exact) + rest);
    const double error = largest_difference(got, exact);
    LC_CHECK(error <= bound || (error == 0 && bound == 0),
             "{}: max error {:.3g} exceeds the derived bound {:.3g} (max|ref| {:.3g})", what, error, bound,
             largest(exact));
}

void expect_all_close(const OpCase& c, const Target& target, const std::string& what, const Result& got,
                      const Reference& reference) {
    const auto& [exact, rounded] = reference;
    double floor = 0;
    for (const auto& group : {exact.outputs, exact.grads})
        for (const Values& values : group) floor = std::max(floor, epsilon_of(target.dtype) * largest(values));
    for (size_t k = 0; k < exact.outputs.size(); ++k)
        expect_close(c, target, fmt::format("{} output {}", what, k), got.outputs[k], rounded.outputs[k],
                     exact.outputs[k], floor);
    for (size_t i = 0; i < exact.grads.size(); ++i)
        if (!exact.grads[i].empty() && !got.grads[i].empty())
            expect_close(c, target, fmt::format("{} gradient of {}", what, c.inputs[i].name), got.grads[i],
                         rounded.grads[i], exact.grads[i], floor);
}

OpCase scaled(OpCase c, double factor) {
    for (OpInput& input : c.inputs) input.scale *= factor;
    return c;
}

}  // namespace

void check_correct(const OpCase& c, const Target& target) {
    const std::vector<bool> wanted = differentiable_inputs(c);
    for (const auto& [label, scale] : {std::pair{"normal", 1.0}, {"large", 8.0}, {"constant", 0.0}}) {
        const OpCase variant = scaled(c, scale);
        const bool with_grads = scale != 0;  // equal inputs tie every maximum; which one wins is then rounding's choice
        const std::vector<bool> want = with_grads ? wanted : std::vector<bool>();
        const Result got = run(variant, make_inputs(variant, target, kSeed, want), target, false);
        expect_all_close(variant, target, label, got, reference_of(variant, target, want));
    }
}

void check_gradients(const OpCase& c, const Target& target) {
    const Tensors inputs = make_inputs(c, oracle(target), kSeed, differentiable_inputs(c));
    GradcheckOptions options;
    options.tolerance = c.gradcheck_tolerance;
    options.max_elements = 256;
    const GradcheckReport report = gradcheck(c.run, inputs, options);
    LC_CHECK(report.elements > 0, "gradient check compared nothing");
    LC_CHECK(report.ok, "gradient check failed: {}", report.detail);
}

void check_needs_grad_subsets(const OpCase& c, const Target& target) {
    const std::vector<bool> wanted = differentiable_inputs(c);
    std::vector<size_t> indices;
    for (size_t i = 0; i < wanted.size(); ++i)
        if (wanted[i]) indices.push_back(i);
    const Reference reference = reference_of(c, target, wanted);
    const unsigned subsets = 1u << indices.size();
    const unsigned step = indices.size() <= 6 ? 1 : 7;  // 7 is odd: every input is on in some subset and off in others
    for (unsigned mask = 0; mask < subsets; mask += step) {
        std::vector<bool> subset(wanted.size(), false);
        for (size_t bit = 0; bit < indices.size(); ++bit) subset[indices[bit]] = mask >> bit & 1;
        const Result got = run(c, make_inputs(c, target, kSeed, subset), target, false);
        for (size_t i = 0; i < subset.size(); ++i)
            LC_CHECK(subset[i] == !got.grads[i].empty() || numel_of(c.inputs[i].shape) == 0,
                     "input {}: gradient {} though it was {}", c.inputs[i].name, subset[i] ? "missing" : "given",
                     subset[i] ? "wanted" : "not wanted");
        expect_all_close(c, target, fmt::format("subset {:b}", mask), got, reference);
    }
}

void check_accumulates(const OpCase& c, const Target& target) {
    const std::vector<bool> wanted = differentiable_inputs(c);
    const Result plain = run(c, make_inputs(c, target, kSeed, wanted), target, false);
    Tensors inputs = make_inputs(c, target, kSeed, wanted);
    for (size_t i = 0; i < inputs.size(); ++i)
        if (wanted[i]) set_grad(inputs[i], Tensor::full(inputs[i].shape(), 3.0, DType::f32, target.device));
    const Result added = run(c, inputs, target, false);
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

namespace {

void expect_numbers(const Result& result) {
    for (const auto& group : {result.outputs, result.grads})
        for (const Values& values : group)
            for (double v : values)
                LC_CHECK(!std::isnan(v), "NaN in a result: memory was read before it was written, or not written");
}

}  // namespace

void check_runs(const OpCase& c, const Target& target) {
    expect_numbers(run(c, make_inputs(c, target, kSeed, differentiable_inputs(c)), target, false));
}

void check_memory(const OpCase& c, const Target& target) {
    const int64_t violations = ScopedMemoryDebug::guard_violations();
    for (const bool naive : {false, true}) {
        if (naive && target.device.is_cuda()) continue;  // the oracle is the CPU's
        const ScopedMemoryDebug debug;
        expect_numbers(run(c, make_inputs(c, target, kSeed, differentiable_inputs(c)), target, naive));
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
    const Tensor room = Tensor::full(padded, 123.0, tensor.dtype(), tensor.device());
    Layout layout = room.layout();
    layout.shape = tensor.shape();
    layout.strides[-1] = step;
    layout.offset = shift;
    Tensor result = room.with_layout(layout);
    result.copy_from(tensor);
    return result;
}

}  // namespace

void check_layouts(const OpCase& c, const Target& target) {
    if (!c.strided_inputs) return;
    const std::vector<bool> wanted = differentiable_inputs(c);
    const Reference reference = reference_of(c, target, wanted);
    for (const auto& [label, step, shift] :
         {std::tuple{"misaligned", 1, 1}, {"strided", 2, 0}, {"strided and misaligned", 3, 1}}) {
        Tensors inputs = make_inputs(c, target, kSeed);
        for (size_t i = 0; i < inputs.size(); ++i) {
            inputs[i] = restride(inputs[i], step, shift);
            if (wanted[i]) set_requires_grad(inputs[i]);
        }
        Result got;
        try {
            got = run(c, inputs, target, false);
        } catch (const Error&) {
            continue;  // refused in words: allowed
        }
        expect_all_close(c, target, label, got, reference);
    }
}

void check_repeatable(const OpCase& c, const Target& target) {
    const std::vector<bool> wanted = differentiable_inputs(c);
    const Result a = run(c, make_inputs(c, target, kSeed, wanted), target, false);
    const Result b = run(c, make_inputs(c, target, kSeed, wanted), target, false);
    LC_CHECK(a.outputs == b.outputs && a.grads == b.grads, "two runs on the same inputs differ");
}

}  // namespace lc::testing
