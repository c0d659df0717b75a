// What is demanded of every OpCase. Each function throws lc::Error with what was wrong.
#pragma once
#include "tests/ops/op_case.h"

namespace lc::testing {

// The target's path against the naive form in f64 on the CPU: outputs and every gradient, within the derived bound; for
// normal, large and constant inputs.
void check_correct(const OpCase& op_case, const Target& target);
// Analytic f64 gradients of the naive form on the CPU against central differences, per element.
void check_gradients(const OpCase& op_case, const Target& target);
// Every subset of inputs that want a gradient gives the same gradients, and none to the others.
void check_needs_grad_subsets(const OpCase& op_case, const Target& target);
// A gradient that is already there is added to, not overwritten.
void check_accumulates(const OpCase& op_case, const Target& target);
// With fresh memory full of NaN and guard bands around it: nothing unwritten is read, nothing beside is written.
// Only that it runs, forward and backward, and gives numbers: for a tool that watches every access. Nothing is compared, so the
// f64 oracle does not run beside it.
void check_runs(const OpCase& op_case, const Target& target);
void check_memory(const OpCase& op_case, const Target& target);
// Strided and misaligned inputs give the same result, or are refused by an lc::Error.
void check_layouts(const OpCase& op_case, const Target& target);
// Two runs agree bitwise.
void check_repeatable(const OpCase& op_case, const Target& target);

}  // namespace lc::testing
