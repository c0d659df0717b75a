#include "core/parallel.h"

#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <vector>

#include "core/check.h"

namespace lc {
namespace {

class Threads {  // sets the number of threads for a test
  public:
    explicit Threads(int count) : before_(num_threads()) { set_num_threads(count); }
    ~Threads() { set_num_threads(before_); }
    Threads(const Threads&) = delete;
    Threads& operator=(const Threads&) = delete;

  private:
    int before_;
};

TEST(Parallel, CoversEveryIndexOnce) {
    for (const int threads : {1, 2, 5}) {
        const Threads scope(threads);
        EXPECT_EQ(num_threads(), threads);
        for (const int64_t count : {0, 1, 2, 7, 1000})
            for (const int64_t grain : {0, 1, 3, 2000}) {
                std::vector<std::atomic<int>> hits(static_cast<size_t>(count));
                parallel_for(count, grain, [&](int64_t begin, int64_t end) {
                    EXPECT_LT(begin, end);
                    for (int64_t i = begin; i < end; ++i) hits.at(static_cast<size_t>(i))++;
                });
                for (const auto& hit : hits) EXPECT_EQ(hit.load(), 1);
            }
    }
}

TEST(Parallel, RangesHoldAtLeastTheGrain) {
    const Threads scope(4);
    std::atomic<int> small{0};
    parallel_for(103, 10, [&](int64_t begin, int64_t end) {
        if (end - begin < 10 && end != 103) small++;
    });
    EXPECT_EQ(small.load(), 0);
}

TEST(Parallel, NestedCallsRunInPlace) {
    const Threads scope(3);
    EXPECT_FALSE(in_parallel());
    std::vector<std::atomic<int>> hits(64 * 8);
    parallel_for(64, 1, [&](int64_t begin, int64_t end) {
        EXPECT_TRUE(in_parallel());
        for (int64_t i = begin; i < end; ++i) {
            int calls = 0;
            parallel_for(8, 1, [&](int64_t first, int64_t last) {
                calls++;
                for (int64_t j = first; j < last; ++j) hits[static_cast<size_t>(i * 8 + j)]++;
            });
            EXPECT_EQ(calls, 1);
        }
    });
    for (const auto& hit : hits) EXPECT_EQ(hit.load(), 1);
    EXPECT_FALSE(in_parallel());
}

TEST(Parallel, ExceptionsReachTheCallerAfterAllRanges) {
    const Threads scope(3);
    for (int round = 0; round < 20; ++round) {
        std::atomic<int64_t> done{0};
        EXPECT_THROW(parallel_for(100, 1,
                                  [&](int64_t begin, int64_t end) {
                                      done += end - begin;
                                      if (begin <= 50 && 50 < end) throw std::runtime_error("fifty");
                                  }),
                     std::runtime_error);
        EXPECT_EQ(done.load(), 100);
        EXPECT_FALSE(in_parallel());
    }
    std::atomic<int64_t> after{0};  // the pool is usable again
    parallel_for(100, 1, [&](int64_t begin, int64_t end) { after += end - begin; });
    EXPECT_EQ(after.load(), 100);
}

TEST(Parallel, RefusesBadThreadCounts) {
    EXPECT_THROW(set_num_threads(0), Error);
    EXPECT_THROW(set_num_threads(257), Error);
}

}  // namespace
}  // namespace lc
