#include "core/parallel.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "core/check.h"

namespace lc {
namespace {

thread_local bool inside = false;

int default_threads() {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return std::clamp(CPU_COUNT(&set), 1, 256);
    return std::clamp<int>(static_cast<int>(std::thread::hardware_concurrency()), 1, 256);
}

// Ranges are handed out by an atomic counter: which thread takes which range varies, what a range computes does not.
class Pool {
  public:
    explicit Pool(int threads) {
        for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
    }
    ~Pool() {
        {
            std::lock_guard lock(mutex_);
            stop_ = true;
        }
        wake_.notify_all();
        for (std::thread& worker : workers_) worker.join();
    }
    int threads() const { return static_cast<int>(workers_.size()) + 1; }

    void run(int64_t count, int64_t step, void* body, detail::RangeFn call) {
        std::lock_guard one_at_a_time(run_mutex_);
        {
            std::lock_guard lock(mutex_);
            body_ = body, call_ = call, count_ = count, step_ = step;
            next_.store(0);
            error_ = nullptr;
            busy_ = static_cast<int>(workers_.size());
            ++generation_;
        }
        wake_.notify_all();
        take_ranges();
        std::unique_lock lock(mutex_);
        done_.wait(lock, [this] { return busy_ == 0; });
        if (error_) std::rethrow_exception(error_);
    }

  private:
    void work() {
        uint64_t seen = 0;
        std::unique_lock lock(mutex_);
        while (true) {
            wake_.wait(lock, [&] { return stop_ || generation_ != seen; });
            if (stop_) return;
            seen = generation_;
            lock.unlock();
            take_ranges();
            lock.lock();
            if (--busy_ == 0) done_.notify_one();
        }
    }
    void take_ranges() {
        inside = true;
        for (int64_t begin; (begin = next_.fetch_add(step_)) < count_;) {
            try {
                call_(body_, begin, std::min(begin + step_, count_));
            } catch (...) {
                std::lock_guard lock(mutex_);
                if (!error_) error_ = std::current_exception();
            }
        }
        inside = false;
    }

    std::vector<std::thread> workers_;
    std::mutex run_mutex_, mutex_;
    std::condition_variable wake_, done_;
    std::atomic<int64_t> next_{0};
    int64_t count_ = 0, step_ = 1;
    void* body_ = nullptr;
    detail::RangeFn call_ = nullptr;
    std::exception_ptr error_;
    uint64_t generation_ = 0;
    int busy_ = 0;
    bool stop_ = false;
};

std::mutex pool_mutex;
std::unique_ptr<Pool> pool_instance;

Pool& pool() {
    std::lock_guard lock(pool_mutex);
    if (!pool_instance) pool_instance = std::make_unique<Pool>(default_threads());
    return *pool_instance;
}

}  // namespace

int num_threads() { return pool().threads(); }

void set_num_threads(int count) {
    LC_CHECK(count >= 1 && count <= 256, "number of threads must be 1..256, got {}", count);
    LC_CHECK(!inside, "the number of threads cannot change inside parallel work");
    std::lock_guard lock(pool_mutex);
    if (!pool_instance || pool_instance->threads() != count) pool_instance = std::make_unique<Pool>(count);
}

bool in_parallel() { return inside; }

void detail::parallel_run(int64_t count, int64_t grain, void* body, RangeFn call) {
    if (count <= 0) return;
    grain = std::max<int64_t>(grain, 1);
    if (inside || count <= grain || num_threads() == 1) return call(body, 0, count);
    // About four ranges a thread: balances uneven work without many hand-outs.
    const int64_t pieces = std::min<int64_t>((count + grain - 1) / grain, 4 * num_threads());
    pool().run(count, (count + pieces - 1) / pieces, body, call);
}

}  // namespace lc
