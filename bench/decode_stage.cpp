// bench e2e --stage decode: new tokens for a batch, all at one position, after a prompt or in a context that nobody read.
#include <algorithm>
#include <chrono>
#include <numeric>

#include "bench/end_to_end_stage.h"
#include "bench/environment.h"
#include "core/allocator.h"
#include "core/random_tensor.h"
#include "models/generation/device_sampler.h"
#include "models/generation/generator.h"

namespace lc::bench {
namespace {

using models::DecodeState;
using models::DeviceSampler;
using models::Generator;
using Clock = std::chrono::steady_clock;

Tensor random_ids(int64_t rows, int64_t length, int64_t vocabulary, Device device) {
    std::vector<int32_t> ids(static_cast<size_t>(rows * length));
    const Random random(kSeed, 7);
    for (size_t i = 0; i < ids.size(); ++i)
        ids[i] = static_cast<int32_t>(random.below(static_cast<uint64_t>(vocabulary), i));
    return Tensor::from(ids, {rows, length}).to(device);
}

DecodeState fresh_state(const Setup& setup, const models::Decoder& decoder) {
    const auto storage = setup.work.narrow_state ? models::StateStorage::Bf16 : models::StateStorage::Wide;
    DecodeState state(decoder, setup.mode(), setup.options.batch, models::Terms::Both, storage);
    state.reserve(setup.first_position() + setup.options.new_tokens);
    return state;
}

// As if `context` tokens had been read: what a step takes does not depend on what the memory holds, as long as it is numbers.
void skip_context(DecodeState& state, int64_t context, Device device) {
    uint64_t stream = 0;
    state.restore(context, [&](const std::string& name, const Shape& shape, DType dtype) {
        if (name.ends_with(".z")) return Tensor::full(shape, 50, dtype, device);  // sums of positive features
        return normal_tensor(shape, 1, Random(kSeed, stream++), device.is_cpu() ? DType::f32 : dtype, device).to(dtype);
    });
}

models::SamplingOptions sampling(const std::string& name, int64_t slot) {
    models::SamplingOptions o{.logit_bias = {}, .seed = kSeed, .request = static_cast<uint64_t>(slot)};
    o.temperature = name == "greedy" ? 0 : 0.8;
    if (name == "top-p") o.top_p = 0.95;
    return o;
}

// Does memory grow with what was generated? Marks it as the tokens double.
class MemoryMarks {
  public:
    MemoryMarks(const Setup& setup, const DecodeState& state, Figures& figures)
        : allocator_(allocator(setup.placement.device)),
          state_(state),
          figures_(figures),
          last_(setup.options.new_tokens) {
        take_peak();
    }
    void after(int64_t tokens) {
        if (tokens == next_ || tokens == last_) figures_.memory.push_back({tokens, take_peak(), state_.bytes()});
        if (tokens == next_) next_ *= 2;
    }

  private:
    int64_t take_peak() {
        const int64_t peak = allocator_.stats().peak_bytes;
        figures_.peak_bytes = std::max(figures_.peak_bytes, peak);
        allocator_.reset_peak();
        return peak;
    }

    Allocator& allocator_;
    const DecodeState& state_;
    Figures& figures_;
    int64_t next_ = 1024, last_;
};

// As the engine does it: the host reads the tokens of a step while the next one runs. A step lasts from one such arrival to the
// next.
std::vector<double> time_drawing(const Setup& setup, const Generator& generator, DecodeState& state, Figures& figures) {
    const EndToEndOptions& o = setup.options;
    const Device device = setup.placement.device;
    DeviceSampler sampler(o.batch, setup.work.config.vocab_size, device);
    for (int64_t slot = 0; slot < o.batch; ++slot) sampler.assign(slot, sampling(o.sample, slot), {});
    std::vector<double> ms;
    std::vector<int64_t> positions(static_cast<size_t>(o.batch), state.position());
    int64_t allocations = 0, read = 0;
    MemoryMarks memory(setup, state, figures);
    Clock::time_point last = Clock::now();
    const auto collect = [&] {
        for (const kernels::SampleResult& result : sampler.collect()) models::id_of(result, positions[0]);
        const Clock::time_point now = Clock::now();
        if (read++ >= o.warmup) ms.push_back(std::chrono::duration<double, std::milli>(now - last).count());
        last = now;
    };
    for (int64_t token = 0; token < o.new_tokens; ++token) {
        if (token == o.warmup) allocations = allocator(device).stats().system_allocations;
        generator.draw_rows(state, sampler, positions);
        sampler.post();
        for (int64_t& position : positions) ++position;
        if (sampler.posted() == DeviceSampler::kInFlight) collect();
        memory.after(token + 1);
    }
    collect();
    figures.system_allocations = allocator(device).stats().system_allocations - allocations;
    figures.moment = moment(device);
    return ms;
}

// The ids are given: sampling is not timed.
std::vector<double> time_given(const Setup& setup, const Generator& generator, DecodeState& state, Figures& figures) {
    const EndToEndOptions& o = setup.options;
    const Device device = setup.placement.device;
    const Tensor ids = random_ids(o.batch, o.new_tokens, setup.work.config.vocab_size, device);
    MemoryMarks memory(setup, state, figures);
    const auto step = [&] {
        generator.advance(state, ids.sliced(1, state.position() - setup.first_position(), 1));
        memory.after(state.position() - setup.first_position());
    };
    return time_steps(step, o.warmup, o.new_tokens - o.warmup, device, figures);
}

}  // namespace

Figures time_decode(const Setup& setup) {
    const EndToEndOptions& o = setup.options;
    const Device device = setup.placement.device;
    const models::Decoder decoder = make_model(setup);
    allocator(device).reset_peak();  // random weights are made whole before they become codes; those of files are not
    const Generator generator(decoder, o.prefill_chunk);
    Figures figures;
    if (o.context == 0) {
        const Tensor prompt = random_ids(o.batch, o.prompt, setup.work.config.vocab_size, device);
        const auto prefill = [&] {
            DecodeState state = fresh_state(setup, decoder);
            generator.advance(state, prompt);
        };
        Figures ignored;
        figures.prefill_ms = median(time_steps(prefill, 1, 3, device, ignored));
    }
    DecodeState state = fresh_state(setup, decoder);
    if (o.context > 0)
        skip_context(state, o.context, device);
    else
        generator.feed(state, random_ids(o.batch, o.prompt, setup.work.config.vocab_size, device));
    const bool drawn = o.sample != "none";
    figures.step_ms =
        drawn ? time_drawing(setup, generator, state, figures) : time_given(setup, generator, state, figures);
    // Steps differ (a block of keys joins the state once a window), so the mean counts.
    const double total_ms = std::accumulate(figures.step_ms.begin(), figures.step_ms.end(), 0.0);
    const auto batch = static_cast<double>(o.batch);
    const int64_t context = setup.first_position() + (o.warmup + o.new_tokens) / 2;  // of the middle step
    figures.tokens_per_second = 1e3 * batch * static_cast<double>(figures.step_ms.size()) / total_ms;
    figures.flops_per_second = figures.tokens_per_second * setup.work.decode_flops(context);
    figures.step_flops = batch * setup.work.decode_flops(context);
    figures.step_bytes = setup.work.decode_weight_bytes(setup.placement.dtype) +
                         batch * setup.work.decode_state_bytes(context, setup.placement.dtype);
    figures.state_bytes = state.bytes();
    return figures;
}

}  // namespace lc::bench
