// Thread parallelism on the CPU: one pool, static work lists, no work inside work (a nested call runs in place).
// Every index is computed by exactly one thread in the same way whatever the thread count, so results do not depend on it
// as long as the body writes only what belongs to its own indices.
#pragma once
#include <cstdint>
#include <type_traits>
#include <utility>

namespace lc {

int num_threads();
void set_num_threads(int count);  // 1..256; the default is the number of cores this process may use
bool in_parallel();               // true inside the body of parallel_for

namespace detail {
using RangeFn = void (*)(void* body, int64_t begin, int64_t end);
void parallel_run(int64_t count, int64_t grain, void* body, RangeFn call);
}  // namespace detail

// Calls body(begin, end) for ranges that cover [0, count) once; ranges hold at least `grain` indices (but the last).
// The first exception thrown by a body is rethrown here after all ranges are done.
template <class Body>
void parallel_for(int64_t count, int64_t grain, Body&& body) {
    using B = std::remove_reference_t<Body>;
    detail::parallel_run(count, grain, const_cast<std::remove_const_t<B>*>(&body),
                         [](void* b, int64_t begin, int64_t end) { (*static_cast<B*>(b))(begin, end); });
}

}  // namespace lc
