#include "tests/ops/op_case.h"

#include <cmath>

#include "autograd/node.h"
#include "core/parallel.h"

namespace lc::testing {
namespace {

std::vector<OpCase>& registry() {
    static std::vector<OpCase> cases;
    return cases;
}

// Element by element, on all cores: a benchmark's inputs have up to a thousand million.
template <class T, class F>
Tensor generate(const Shape& shape, F&& value_at) {
    const Tensor result = Tensor::empty(shape, kDType<T>);
    T* out = result.data<T>();
    parallel_for(result.numel(), 4096, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) out[i] = value_at(static_cast<uint64_t>(i));
    });
    return result;
}

Tensor make_floats(const OpInput& input, const Target& target, const Random& random) {
    const Tensor numbers = generate<float>(input.shape, [&](uint64_t i) {
        double value = 0;
        if (input.fill == Fill::Normal) value = random.normal(i) * input.scale;
        if (input.fill == Fill::Positive) value = 0.1 + std::abs(random.normal(i)) * input.scale;
        if (input.fill == Fill::Uniform) value = random.uniform(i) * input.scale;
        return static_cast<float>(value);
    });
    const Tensor held = input.wide && !input.rounded ? numbers : numbers.to(target.values);
    return held.to(input.wide ? statistics_dtype(target.dtype) : target.dtype);
}

Tensor make_ids(const OpInput& input, const Random& random) {
    LC_CHECK(input.bound > 0, "input {}: ids need a bound", input.name);
    const Tensor ids = generate<int64_t>(input.shape, [&](uint64_t i) {
        if (input.fill == Fill::Labels && i % 3 == 2) return int64_t{-100};
        return static_cast<int64_t>(random.below(static_cast<uint64_t>(input.bound), i));
    });
    return ids.to(input.ids_dtype);
}

}  // namespace

std::vector<Shape> llama8b::map_shapes() {
    std::vector<Shape> shapes;
    for (int64_t layer = 0; layer < kLayers; ++layer) {
        shapes.insert(shapes.end(), 2, Shape{kHeads, kHeadDim, kMapSize});
        shapes.push_back({kHeads});
    }
    return shapes;
}

std::vector<Shape> llama8b::lora_shapes() {
    std::vector<Shape> shapes;
    for (int64_t layer = 0; layer < kLayers; ++layer)
        for (const int64_t out : {kHeads * kHeadDim, kKvHeads * kHeadDim, kKvHeads * kHeadDim, kHidden}) {
            shapes.push_back({kLoraRank, kHidden});
            shapes.push_back({out, kLoraRank});
        }
    return shapes;
}

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

Tensor make_input(const OpInput& input, const Target& target, const Random& random) {
    const bool ids = input.fill == Fill::Ids || input.fill == Fill::Labels;
    return (ids ? make_ids(input, random) : make_floats(input, target, random)).to(target.device);
}

Tensors make_inputs(const OpCase& op_case, const Target& target, uint64_t seed, const std::vector<bool>& wanted) {
    Tensors inputs;
    for (size_t i = 0; i < op_case.inputs.size(); ++i) {
        inputs.push_back(make_input(op_case.inputs[i], target, Random(seed, i)));
        if (i < wanted.size() && wanted[i]) set_requires_grad(inputs.back());
    }
    return inputs;
}

}  // namespace lc::testing
