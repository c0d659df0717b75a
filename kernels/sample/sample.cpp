#include "kernels/sample/sample.h"

#include "kernels/common/dispatch.h"
#include "kernels/sample/sample_naive.h"

namespace lc::kernels {
namespace {

static_assert(std::is_trivially_copyable_v<SampleSettings> && std::is_trivially_copyable_v<SampleResult>);
static_assert(sizeof(SampleResult) == 2 * sizeof(int32_t));

bool has_dense_last_axis(const TensorView& x) {
    return x.stride(-1) == 1 || x.size(-1) == 1;
}

void check(const Sample& a) {
    LC_CHECK(a.logits.rank() == 2 && a.logits.size(1) >= 1 && a.logits.size(1) <= kMostSampleIds &&
                 has_dense_last_axis(a.logits),
             "sample: logits must be [B,V], V at most {}, rows dense, got {}", kMostSampleIds, a.logits.shape());
    const int64_t batch = a.logits.size(0), size = sizeof(SampleSettings);
    const auto expect = [&](const TensorView& x, std::string_view name, const Shape& shape, DType dtype) {
        LC_CHECK(x.shape() == shape && x.dtype == dtype && x.device == a.logits.device && has_dense_last_axis(x),
                 "sample: {} must be {} of {} beside logits, rows dense, got {} of {}", name, shape, name_of(dtype),
                 x.shape(), name_of(x.dtype));
    };
    if (a.bias) expect(a.bias, "bias", a.logits.shape(), DType::f32);
    if (a.seen) expect(a.seen, "seen", a.logits.shape(), DType::i32);
    expect(a.settings, "settings", {batch, size}, DType::u8);
    expect(a.positions, "positions", {batch}, DType::i64);
    expect(a.ids, "ids", {batch}, DType::i32);
    expect(a.results, "results", {batch, 2}, DType::i32);
    LC_CHECK(a.settings.layout.is_contiguous() && a.settings.layout.offset % 8 == 0 && a.results.layout.is_contiguous(),
             "sample: settings and results must be contiguous");
}

}  // namespace

void sample(const Sample& args, Stream stream) {
    check(args);
    const ProfileZone zone("sample", 0,
                           static_cast<double>(size_of(args.logits.dtype)) * static_cast<double>(args.logits.numel()));
    if constexpr (cuda::kBuilt)
        if (on_cuda("sample", args.logits)) return sample_cuda(args, stream);
    require_cpu(args.logits, "sample");
    dispatch_compute(args.logits.dtype, "sample",
                     [&](auto type) { sample_naive<typename decltype(type)::type>(args); });
}

SampleResult sample_row(std::span<const float> logits, std::span<const float> bias, std::span<const int32_t> seen,
                        const SampleSettings& settings, int64_t position) {
    LC_CHECK(!logits.empty() && std::ssize(logits) <= kMostSampleIds, "sample: {} logits, must be 1 to {}",
             logits.size(), kMostSampleIds);
    LC_CHECK((bias.empty() || bias.size() == logits.size()) && (seen.empty() || seen.size() == logits.size()),
             "sample: {} logits, {} numbers of bias, {} of what was seen", logits.size(), bias.size(), seen.size());
    return sample_row_naive(logits, bias.empty() ? nullptr : bias.data(), seen.empty() ? nullptr : seen.data(),
                            settings, position);
}

}  // namespace lc::kernels
