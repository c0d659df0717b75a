// What the stages of bench e2e share.
#pragma once
#include <array>
#include <functional>
#include <string_view>
#include <vector>

#include "bench/end_to_end.h"
#include "bench/model_flops.h"
#include "io/json.h"
#include "models/decoder/decoder.h"

namespace lc::bench {

inline constexpr uint64_t kSeed = 1;
inline constexpr std::array<std::string_view, 4> kSampleNames = {"none", "greedy", "drawn", "top-p"};

struct Setup {
    const EndToEndOptions& options;
    models::Placement placement;
    ModelWork work;
    models::AttentionMode mode() const {
        return work.attention.kind == models::AttentionKind::softmax ? models::AttentionMode::Softmax
                                                                     : models::AttentionMode::Linearized;
    }
    // Of decode: what every sequence has seen before the first timed or untimed new token.
    int64_t first_position() const { return options.context > 0 ? options.context : options.prompt; }
};

// Memory of decoding after so many new tokens: the most in use since the mark before, and the states' share.
struct MemoryMark {
    int64_t tokens, peak_bytes, state_bytes;
};

// What was found out, before the roofline is added.
struct Figures {
    std::vector<double> step_ms;
    double tokens_per_second = 0, prefill_ms = 0;
    double flops_per_second = 0;            // useful ones
    double step_flops = 0, step_bytes = 0;  // decode: what one step has to do
    int64_t peak_bytes = 0, system_allocations = 0, trained = 0, state_bytes = 0;
    std::vector<MemoryMark> memory;  // of decode: after 1024 tokens, 2048, ..., and at the end
    io::Json moment;
};

models::Decoder make_model(const Setup& setup);

// Times `step` (ms, the device's work included) `count` times after `warmup` untimed ones.
std::vector<double> time_steps(const std::function<void()>& step, int64_t warmup, int64_t count, Device device,
                               Figures& figures);
double median(std::vector<double> values);

Figures time_decode(const Setup& setup);

}  // namespace lc::bench
