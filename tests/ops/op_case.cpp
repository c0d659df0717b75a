#include "tests/ops/op_case.h"

#include <cmath>

#include "autograd/node.h"
#include "core/rng.h"

namespace lc::testing {
namespace {

std::vector<OpCase>& registry() {
    static std::vector<OpCase> cases;
    return cases;
}

Tensor make_floats(const OpInput& input, const Target& target, const Random& random) {
    std::vector<float> values(static_cast<size_t>(numel_of(input.shape)));
    for (size_t i = 0; i < values.size(); ++i) {
        double value = 0;
        if (input.fill == Fill::Normal) value = random.normal(i) * input.scale;
        if (input.fill == Fill::Positive) value = 0.1 + std::abs(random.normal(i)) * input.scale;
        if (input.fill == Fill::Uniform) value = random.uniform(i) * input.scale;
        values[i] = static_cast<float>(value);
    }
    const Tensor numbers = Tensor::from(values, input.shape);
    return input.wide ? numbers.to(statistics_dtype(target.dtype)) : numbers.to(target.values).to(target.dtype);
}

Tensor make_ids(const OpInput& input, const Random& random) {
    LC_CHECK(input.bound > 0, "input {}: ids need a bound", input.name);
    std::vector<int64_t> values(static_cast<size_t>(numel_of(input.shape)));
    for (size_t i = 0; i < values.size(); ++i) {
        values[i] = static_cast<int64_t>(random.below(static_cast<uint64_t>(input.bound), i));
        if (input.fill == Fill::Labels && i % 3 == 2) values[i] = -100;
    }
    return Tensor::from(values, input.shape).to(input.ids_dtype);
}

}  // namespace

void add(OpCase op_case) { registry().push_back(std::move(op_case)); }
const std::vector<OpCase>& op_cases() { return registry(); }
OpCaseRegistrar::OpCaseRegistrar(void (*fill)()) { fill(); }

std::vector<bool> differentiable_inputs(const OpCase& op_case) {
    std::vector<bool> result;
    for (const OpInput& input : op_case.inputs)
        result.push_back(op_case.differentiable && input.differentiable && input.fill != Fill::Ids &&
                         input.fill != Fill::Labels);
    return result;
}

Tensors make_inputs(const OpCase& op_case, const Target& target, uint64_t seed, const std::vector<bool>& wanted) {
    Tensors inputs;
    for (size_t i = 0; i < op_case.inputs.size(); ++i) {
        const OpInput& input = op_case.inputs[i];
        const Random random(seed, i);
        const bool ids = input.fill == Fill::Ids || input.fill == Fill::Labels;
        inputs.push_back((ids ? make_ids(input, random) : make_floats(input, target, random)).to(target.device));
        if (i < wanted.size() && wanted[i]) set_requires_grad(inputs.back());
    }
    return inputs;
}

}  // namespace lc::testing
