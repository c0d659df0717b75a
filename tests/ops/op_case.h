// One description of an op from which the correctness tests, the gradient check and the benchmark are made.
//
//   LC_OP_CASES(feature_map) {
//       add({.op = "feature_map", .variant = "hedgehog", .inputs = {{"x", {2,3,5,8}}, {"w", {3,8,4}}},
//            .run = [](const Tensors& in) -> Tensors { return {feature_map(in[0], in[1], {}, ...)}; }});
//   }
//
// A case whose `bench` names a device is timed there by bench/ and not tested (real shapes are too slow for the f64 oracle).
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "core/rng.h"
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
    bool rounded = false;       // wide, but of numbers that the activations' dtype has: where a kernel rounds the parameter itself
};

// Where and in what precision a case runs. `values` is the dtype whose numbers the inputs hold: the f64 oracle of a bf16 run
// sees the bf16 numbers.
struct Target {
    Device device;
    DType dtype = DType::f32;
    DType values = DType::f32;
};

// What one call costs at least: FLOPs, and what it has to read and write, once each.
struct Cost {
    double flops = 0;
    double numbers = 0;  // of the run's dtype
    double bytes = 0;    // of what has a dtype of its own: f32 parameters, statistics and states, ids
    double bytes_in(DType dtype) const { return numbers * static_cast<double>(size_of(dtype)) + bytes; }
    explicit operator bool() const { return flops > 0 || numbers > 0 || bytes > 0; }
};

// Which benchmark a case belongs to: the CPU's are sized for two cores, the GPU's are a training step's of Llama-3-8B.
enum class Bench { none, cpu, gpu };

struct OpCase {
    std::string op, variant;
    std::vector<OpInput> inputs;
    std::function<Tensors(const Tensors&)> run;  // inputs are of a Target's dtype and device; functional, but for benchmarks
    Cost forward, backward;                      // for the benchmark; an empty backward is not timed
    Bench bench = Bench::none;
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

// The shapes of the GPU's benchmarks.
namespace llama8b {
inline constexpr int64_t kBatch = 8, kLength = 1024, kTokens = kBatch * kLength, kLayers = 32, kHidden = 4096, kHeads = 32,
                         kKvHeads = 8, kHeadDim = 128, kMlp = 14336, kVocabulary = 128256, kMapSize = 64, kWindow = 64,
                         kLoraRank = 8;
std::vector<Shape> map_shapes();   // what stage 1 trains: feature maps and window factors
std::vector<Shape> lora_shapes();  // what stage 2 trains: A and B of q, k, v, o
}  // namespace llama8b

// One input, a pure function of its description, target and random sequence.
Tensor make_input(const OpInput& input, const Target& target, const Random& random);

// Fresh inputs: a pure function of case, target and seed. `wanted[i]` makes input i a leaf that collects a gradient.
Tensors make_inputs(const OpCase& op_case, const Target& target, uint64_t seed, const std::vector<bool>& wanted = {});

}  // namespace lc::testing
