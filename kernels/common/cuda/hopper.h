// Which kernels run: those for Hopper (sm_90a: wgmma, TMA) or the portable ones.
#pragma once
#include <initializer_list>

#include "core/tensor.h"

namespace lc::kernels {

// Does this build have code for sm_90a that the current device runs, and can the copy engine address these tensors
// [B,H,T,D], whose rows are dense and aligned? LC_ATTENTION=portable in the environment says no; sm90 refuses to run without such
// code (Error(Internal)).
bool hopper_applies(std::initializer_list<TensorView> copied);

// LC_DEBUG_INIT=1: what the copy engine stores (results of kernels here, of cuBLASLt in bf16) is cleared first. compute-sanitizer's
// initcheck does not see those stores, and would take results for memory that nobody wrote.
bool clears_results();
void clear_result(const TensorView& rows, Stream stream);  // [B,H,T,D], D dense; does nothing unless clears_results()

}  // namespace lc::kernels
