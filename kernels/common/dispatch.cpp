#include "kernels/common/dispatch.h"

#include <atomic>

namespace lc::kernels {
namespace {
std::atomic<int> naive_depth{0};
}
ScopedNaive::ScopedNaive() { naive_depth++; }
ScopedNaive::~ScopedNaive() { naive_depth--; }
bool naive_forced() { return naive_depth.load(std::memory_order_relaxed) > 0; }
}  // namespace lc::kernels
