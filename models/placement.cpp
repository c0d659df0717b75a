#include "models/placement.h"

#include <charconv>

#include "core/check.h"
#include "core/cuda/runtime.h"

namespace lc::models {
namespace {

constexpr int kOldestMajor = 8;  // compute capability 8.0: bf16 tensor cores, cp.async

Device cuda_device(int index) {
    const int count = cuda::device_count();
    LC_REQUIRE(Resource, cuda::kBuilt,
               "--device cuda: this build has no CUDA — use --device cpu, or build preset cuda");
    LC_REQUIRE(Resource, count > 0,
               "--device cuda: no CUDA device or no driver for it on this machine — use --device cpu");
    LC_REQUIRE(Resource, index < count, "--device cuda:{}: this machine has {} CUDA device{}, numbered from 0", index,
               count, count == 1 ? "" : "s");
    const cuda::DeviceInfo info = cuda::device_info(index);
    LC_REQUIRE(Resource, info.major >= kOldestMajor,
               "--device cuda:{}: {} has compute capability {}.{}, the kernels need {}.0 or newer — use --device cpu",
               index, info.name, info.major, info.minor, kOldestMajor);
    return {DeviceType::cuda, index};
}

// `present`: a GPU named must be there and be new enough.
Device device_from(std::string_view name, bool present) {
    const auto cuda = [&](int index) { return present ? cuda_device(index) : Device{DeviceType::cuda, index}; };
    if (name == "cpu") return {};
    if (name == "cuda") return cuda(0);
    if (name == "auto") {
        for (int i = 0; i < cuda::device_count(); ++i)
            if (cuda::device_info(i).major >= kOldestMajor) return {DeviceType::cuda, i};
        return {};
    }
    int index = -1;
    constexpr std::string_view kPrefix = "cuda:";
    const char* end = name.data() + name.size();
    const bool prefixed = name.starts_with(kPrefix);
    const auto [rest, error] = std::from_chars(prefixed ? name.data() + kPrefix.size() : end, end, index);
    LC_REQUIRE(Usage, prefixed && error == std::errc() && rest == end && index >= 0,
               "--device must be auto, cpu, cuda or cuda:N, got '{}'", name);
    return cuda(index);
}

Placement resolve(std::string_view device, std::string_view dtype, bool present) {
    LC_REQUIRE(Usage, dtype == "auto" || dtype == "f32" || dtype == "bf16",
               "--dtype must be auto, f32 or bf16, got '{}'", dtype);
    Placement placement{.device = device_from(device, present)};
    if (dtype == "bf16" || (dtype == "auto" && placement.device.is_cuda())) placement.dtype = DType::bf16;
    validate(placement);
    return placement;
}

}  // namespace

void validate(const Placement& placement) {
    const DType dtype = placement.dtype;
    const bool known = dtype == DType::f32 || dtype == (placement.device.is_cpu() ? DType::f64 : DType::bf16);
    LC_REQUIRE(Usage, known, "a model on {} computes in f32{}, not in {}", placement.device.str(),
               placement.device.is_cpu() ? "" : " or bf16", name_of(dtype));
}

Placement placement_from(std::string_view device, std::string_view dtype) {
    return resolve(device, dtype, true);
}

Placement planned_placement(std::string_view device, std::string_view dtype) {
    return resolve(device, dtype, false);
}

std::string describe(const Placement& placement) {
    if (placement.device.is_cpu()) return fmt::format("cpu, {}", name_of(placement.dtype));
    const cuda::DeviceInfo info = cuda::device_info(placement.device.index);
    return fmt::format("{} ({}, {:.1f} GiB), {}", placement.device.str(), info.name,
                       static_cast<double>(info.memory_bytes) / (1 << 30), name_of(placement.dtype));
}

}  // namespace lc::models
