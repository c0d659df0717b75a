// Draws tokens where the logits are: what each slot of a running batch samples by, and what it drew, beside the model.
#pragma once
#include <array>
#include <memory>
#include <span>
#include <vector>

#include "core/cuda/runtime.h"
#include "core/cuda/stream.h"
#include "models/generation/sampler.h"

namespace lc::models {

// The token that a step draws is the input of the next one, so the host need not see it in between: it reads the results of a
// step while the next one runs. On a CPU the same happens in order.
class DeviceSampler {
  public:
    DeviceSampler(int64_t slots, int64_t vocab_size, Device device);

    // From now on the slot draws by these options, and what comes next follows `history`. Options must be valid (validate).
    void assign(int64_t slot, const SamplingOptions& options, const TokenHistory& history);
    // The token after logits [1,V] of the slot alone, whose last token was at `position`; waits for it. Throws as sample() does.
    int32_t draw_first(int64_t slot, const Tensor& logits, int64_t position);

    // Queues a draw for all slots: logits [slots,V]; positions [slots] i64, of the tokens that they follow, below 0: none.
    // What it launches depends on version() alone, so that it can be recorded.
    void draw(const Tensor& logits, const Tensor& positions);
    const Tensor& ids() const { return ids_; }    // [slots,1] i32: what each slot drew last
    int64_t version() const { return version_; }  // other tensors take part: what was recorded is to be recorded anew

    // Sends the results of the last draw to the host, behind it and without waiting; at most kInFlight that nobody collected.
    static constexpr int64_t kInFlight = 2;
    void post();
    int64_t posted() const { return posted_ - collected_; }
    // The oldest results, one a slot, waited for. They stand until kInFlight - 1 more were posted.
    std::span<const kernels::SampleResult> collect();

  private:
    kernels::Sample args_of(int64_t first, int64_t count) const;

    int64_t slots_, vocab_size_;
    Device device_;
    Tensor settings_, ids_, results_;  // [slots,N] u8, [slots,1] i32, [slots,2] i32
    Tensor bias_, seen_;               // [slots,V] f32 and i32, made when somebody asks for them
    int64_t version_ = 0, posted_ = 0, collected_ = 0;
    struct Mail {
        std::vector<kernels::SampleResult> results;
        cuda::PinnedBuffer pinned;  // where they arrive from a GPU
        std::unique_ptr<cuda::Event> there;
    };
    std::array<Mail, kInFlight> mail_;
};

}  // namespace lc::models
