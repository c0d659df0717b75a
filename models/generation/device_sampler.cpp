#include "models/generation/device_sampler.h"

#include <cstring>

#include "core/check.h"

namespace lc::models {
namespace {

constexpr int64_t kSettingsBytes = sizeof(kernels::SampleSettings);

std::span<const uint8_t> bytes_of(const kernels::SampleSettings& settings) {
    return {reinterpret_cast<const uint8_t*>(&settings), static_cast<size_t>(kSettingsBytes)};
}

}  // namespace

DeviceSampler::DeviceSampler(int64_t slots, int64_t vocab_size, Device device)
    : slots_(slots),
      vocab_size_(vocab_size),
      device_(device),
      settings_(Tensor::zeros({slots, kSettingsBytes}, DType::u8, device)),
      ids_(Tensor::zeros({slots, 1}, DType::i32, device)),
      results_(Tensor::zeros({slots, 2}, DType::i32, device)) {
    for (int64_t slot = 0; slot < slots; ++slot) assign(slot, {.temperature = 0, .logit_bias = {}}, {});
    for (Mail& mail : mail_) {
        mail.results.resize(static_cast<size_t>(slots));
        if (device.is_cpu()) continue;
        cuda::make_current(device);
        mail.pinned = cuda::PinnedBuffer(cuda::allocate_pinned(results_.nbytes()));
        mail.there = std::make_unique<cuda::Event>(true);  // one that the host waits for awake
    }
}

void DeviceSampler::assign(int64_t slot, const SamplingOptions& options, const TokenHistory& history) {
    LC_CHECK(slot >= 0 && slot < slots_, "sampler: slot {} of {}", slot, slots_);
    const kernels::SampleSettings settings = settings_of(options);
    settings_.sliced(0, slot, 1).copy_from(Tensor::from(bytes_of(settings), {1, kSettingsBytes}));
    const auto fill_row = [&](Tensor& table, DType dtype, const auto& values) {
        if (!table.defined()) table = Tensor::zeros({slots_, vocab_size_}, dtype, device_), ++version_;
        table.sliced(0, slot, 1).copy_from(Tensor::from(values, {1, vocab_size_}));
    };
    if (settings.uses_bias) fill_row(bias_, DType::f32, bias_of(options, vocab_size_));
    if (settings.uses_seen) fill_row(seen_, DType::i32, seen_in(history, vocab_size_));
}

kernels::Sample DeviceSampler::args_of(int64_t first, int64_t count) const {
    const auto rows = [&](const Tensor& x) { return x.defined() ? x.sliced(0, first, count).view() : TensorView{}; };
    return {.logits = {},
            .bias = rows(bias_),
            .seen = rows(seen_),
            .settings = rows(settings_),
            .positions = {},
            .ids = ids_.reshaped({slots_}).sliced(0, first, count).view(),
            .results = rows(results_)};
}

int32_t DeviceSampler::draw_first(int64_t slot, const Tensor& logits, int64_t position) {
    LC_CHECK(slot >= 0 && slot < slots_, "sampler: slot {} of {}", slot, slots_);
    const Tensor at = Tensor::full({1}, static_cast<double>(position), DType::i64, device_);
    const Tensor result = Tensor::empty({1, 2}, DType::i32, device_);  // the slot's own may still be on its way
    kernels::Sample args = args_of(slot, 1);
    args.logits = logits.view(), args.positions = at.view(), args.results = result.view();
    kernels::sample(args, current_stream(device_));
    const std::vector<int32_t> values = result.to_vector<int32_t>();
    return id_of({values[0], static_cast<kernels::SampleStatus>(values[1])}, position + 1);
}

void DeviceSampler::draw(const Tensor& logits, const Tensor& positions) {
    kernels::Sample args = args_of(0, slots_);
    args.logits = logits.view(), args.positions = positions.view();
    kernels::sample(args, current_stream(device_));
}

void DeviceSampler::post() {
    LC_CHECK(posted() < kInFlight, "sampler: results of {} draws that nobody collected", posted());
    Mail& mail = mail_[static_cast<size_t>(posted_++ % kInFlight)];
    const std::byte* results = results_.storage()->data.get();
    if (device_.is_cpu()) {
        std::memcpy(mail.results.data(), results, static_cast<size_t>(results_.nbytes()));
    } else {
        const Stream stream = current_stream(device_);
        cuda::copy_bytes(mail.pinned.get(), results, results_.nbytes(), stream);
        mail.there->record(stream);
    }
}

std::span<const kernels::SampleResult> DeviceSampler::collect() {
    LC_CHECK(posted() > 0, "sampler: no results were posted");
    Mail& mail = mail_[static_cast<size_t>(collected_++ % kInFlight)];
    if (device_.is_cuda()) {
        mail.there->wait();
        std::memcpy(mail.results.data(), mail.pinned.get(), static_cast<size_t>(results_.nbytes()));
    }
    return mail.results;
}

}  // namespace lc::models
