// Sums over many numbers in f64 whose bits depend neither on the number of threads nor on timing: blocks of fixed size
// are summed each on its own, then the block sums are added in order.
#pragma once
#include <algorithm>
#include <numeric>
#include <vector>

#include "core/parallel.h"

namespace lc::kernels {

// The sum of term(i), converted to f64, for i in [0, count). `term` is called from several threads.
template <class F>
double block_sum(int64_t count, F&& term) {
    constexpr int64_t kBlock = 4096, kLanes = 8;  // lanes: independent sums, so that the loop vectorizes
    const int64_t blocks = (count + kBlock - 1) / kBlock;
    std::vector<double> partial(static_cast<size_t>(blocks));
    parallel_for(blocks, 4, [&](int64_t begin, int64_t end) {
        for (int64_t block = begin; block < end; ++block) {
            const int64_t last = std::min(count, (block + 1) * kBlock);
            double lane[kLanes] = {}, rest = 0;
            int64_t i = block * kBlock;
            for (; i + kLanes <= last; i += kLanes)
                for (int64_t l = 0; l < kLanes; ++l) lane[l] += static_cast<double>(term(i + l));
            for (; i < last; ++i) rest += static_cast<double>(term(i));
            partial[block] = std::accumulate(lane, lane + kLanes, rest);
        }
    });
    return std::accumulate(partial.begin(), partial.end(), 0.0);
}

}  // namespace lc::kernels
