// One description of an op from which the correctness tests, the gradient check and the benchmark are made.
//
//   LC_OP_CASES(feature_map) {
//       add({.op = "feature_map", .variant = "hedgehog", .inputs = {{"x", {2,3,5,8}}, {"w", {3,8,4}}},
//            .run = [](const Tensors& in) -> Tensors { return {feature_map(in[0], in[1], {}, ...)}; }});
//   }
//
// A case whose `bench` is set is timed by bench/ and not tested (real shapes are too slow for the f64 oracle).
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace lc::testing {

using Tensors = std::vector<Tensor>;

enum class Fill { Normal, Positive, Uniform, Ids, Labels };

struct OpInput {
    std::string name;
    Shape shape;
    Fill fill = Fill::Normal;   // Normal N(0,1)*scale; Positive 0.1 + |N|*scale; Uniform [0,1)*scale; Ids ints below `bound`;
    double scale = 1;           // Labels: ints below `bound`, every third one -100
    int64_t bound = 0;
    bool differentiable = true; // ignored for Ids and Labels
    DType ids_dtype = DType::i32;
    bool wide = false;          // stays f32 beside bf16 activations: a trainable parameter, a statistic, optimizer state
};

// Where and in what precision a case runs. `values` is the dtype whose numbers the inputs hold: the f64 oracle of a bf16 run
// sees the bf16 numbers.
struct Target {
    Device device;
    DType dtype = DType::f32;
    DType values = DType::f32;
};

struct OpCase {
    std::string op, variant;
    std::vector<OpInput> inputs;
    std::function<Tensors(const Tensors&)> run;  // functional; inputs are of a Target's dtype and device
    double flops = 0, bytes = 0;                 // of one forward in f32, for the benchmark
    double backward_flops = 0, backward_bytes = 0;  // 0: no backward in the benchmark
    bool bench = false;
    bool differentiable = true;                  // false: an op that never stands on a tape
    // The derived bound is 2x the error of the naive form in f32 plus 4 eps max|ref|. A larger factor needs a reason.
    double tolerance_factor = 1;
    std::string tolerance_reason;
    double gradcheck_tolerance = 1e-6;
    bool heavy = false;                          // sizes for the GPU's tiles: the CPU runs the correctness check only
    bool strided_inputs = true;                  // false: an input layout is part of the op's contract (say why there)
};

void add(OpCase op_case);
const std::vector<OpCase>& op_cases();

struct OpCaseRegistrar {
    explicit OpCaseRegistrar(void (*fill)());
};
#define LC_OP_CASES(name)                                                             \
    static void lc_op_cases_##name();                                                 \
    static const ::lc::testing::OpCaseRegistrar lc_registrar_##name(lc_op_cases_##name); \
    static void lc_op_cases_##name()

// Which inputs can collect a gradient.
std::vector<bool> differentiable_inputs(const OpCase& op_case);

// Fresh inputs: a pure function of case, target and seed. `wanted[i]` makes input i a leaf that collects a gradient.
Tensors make_inputs(const OpCase& op_case, const Target& target, uint64_t seed, const std::vector<bool>& wanted = {});

}  // namespace lc::testing
