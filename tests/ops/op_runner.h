// What is demanded of every OpCase. Each function throws lc::Error with what was wrong.
#pragma once
#include "tests/ops/op_case.h"

namespace lc::testing {

// The default path in f32 against the naive form in f64: outputs and every gradient, within the derived bound; for
// normal, large and constant inputs.
void check_correct(const OpCase& op_case);
// Analytic f64 gradients against central differences, per element.
void check_gradients(const OpCase& op_case);
// Every subset of inputs that want a gradient gives the same gradients, and none to the others.
void check_needs_grad_subsets(const OpCase& op_case);
// A gradient that is already there is added to, not overwritten.
void check_accumulates(const OpCase& op_case);
// With fresh memory full of NaN and guard bands around it: nothing unwritten is read, nothing beside is written.
void check_memory(const OpCase& op_case);
// Strided and misaligned inputs give the same result, or are refused by an lc::Error.
void check_layouts(const OpCase& op_case);
// Two runs agree bitwise.
void check_repeatable(const OpCase& op_case);

}  // namespace lc::testing
