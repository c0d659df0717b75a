#include "bench/gpu.h"

#include <dlfcn.h>

#include <type_traits>

#include "core/cuda/check.h"
#include "kernels/common/cuda/gemm.h"

namespace lc::bench {
namespace {

// The driver's management library, by the names and types of its stable interface. It comes with the driver, not with the
// toolkit, so it is looked for when it is wanted.
class Nvml {
  public:
    static const Nvml* instance() {
        static const Nvml nvml;
        return nvml.usable_ ? &nvml : nullptr;
    }

    std::string driver() const {
        char text[96] = {};
        return driver_version_(text, sizeof text) == 0 ? text : "unknown";
    }

    std::optional<GpuState> state(int device_index) const {
        char bus[32] = {};
        LC_CUDA(cudaDeviceGetPCIBusId(bus, sizeof bus, device_index));
        void* device = nullptr;
        GpuState state;
        unsigned milliwatts = 0;
        if (device_by_bus_(bus, &device) != 0 || clock_(device, kSmClock, &state.sm_mhz) != 0 ||
            power_(device, &milliwatts) != 0 || temperature_(device, kGpuSensor, &state.celsius) != 0)
            return std::nullopt;
        state.watts = milliwatts / 1000;
        return state;
    }

  private:
    static constexpr int kSmClock = 1, kGpuSensor = 0;  // NVML_CLOCK_SM, NVML_TEMPERATURE_GPU

    Nvml() {
        void* library = dlopen("libnvidia-ml.so.1", RTLD_NOW);  // never closed
        if (!library) return;
        const auto load = [&](auto& function, const char* name) {
            function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
            return function != nullptr;
        };
        int (*init)() = nullptr;
        usable_ = load(init, "nvmlInit_v2") && load(driver_version_, "nvmlSystemGetDriverVersion") &&
                  load(device_by_bus_, "nvmlDeviceGetHandleByPciBusId_v2") && load(clock_, "nvmlDeviceGetClockInfo") &&
                  load(power_, "nvmlDeviceGetPowerUsage") && load(temperature_, "nvmlDeviceGetTemperature") &&
                  init() == 0;
    }

    bool usable_ = false;
    int (*driver_version_)(char*, unsigned) = nullptr;
    int (*device_by_bus_)(const char*, void**) = nullptr;
    int (*clock_)(void*, int, unsigned*) = nullptr;
    int (*power_)(void*, unsigned*) = nullptr;
    int (*temperature_)(void*, int, unsigned*) = nullptr;
};

}  // namespace

void gpu_gemm(const Tensor& a, const Tensor& b, const Tensor& c) {
    const int64_t n = a.size(0);
    for (const Tensor* x : {&a, &b, &c})
        LC_CHECK(x->shape() == Shape({n, n}) && x->dtype() == a.dtype() && x->device() == a.device(),
                 "gpu_gemm: wants three alike square matrices, got {} and {}", a.shape(), x->shape());
    kernels::gemm(kernels::CudaGemm{.m = n,
                                    .n = n,
                                    .k = n,
                                    .a = a.view().base,
                                    .lda = n,
                                    .b = b.view().base,
                                    .ldb = n,
                                    .c = c.view().base,
                                    .ldc = n,
                                    .dtype = a.dtype(),
                                    .c_dtype = a.dtype()},
                  current_stream(a.device()));
}

GpuVersions gpu_versions() {
    int runtime = 0;
    LC_CUDA(cudaRuntimeGetVersion(&runtime));
    const Nvml* nvml = Nvml::instance();
    return {nvml ? nvml->driver() : "unknown", fmt::format("{}.{}", runtime / 1000, runtime % 1000 / 10)};
}

std::optional<GpuState> gpu_state(Device device) {
    const Nvml* nvml = Nvml::instance();
    return nvml ? nvml->state(device.index) : std::nullopt;
}

}  // namespace lc::bench
