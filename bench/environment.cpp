#include "bench/environment.h"

#include <ctime>
#include <filesystem>
#include <fstream>

#include "bench/gpu.h"
#include "bench/revision.h"
#include "core/cuda/runtime.h"
#include "core/parallel.h"
#include "kernels/common/gemm.h"

namespace lc::bench {
namespace {

std::string cpu_model() {
    std::ifstream file("/proc/cpuinfo");
    for (std::string line; std::getline(file, line);)
        if (line.starts_with("model name"))
            if (const size_t colon = line.find(": "); colon != std::string::npos) return line.substr(colon + 2);
    return "unknown";
}

}  // namespace

Environment environment(Device device, const std::string& command) {
    Environment e;
    if (device.is_cpu()) {
        e.machine = cpu_model();
        e.fields = {{"cpu", e.machine}, {"threads", num_threads()}, {"gemm", kernels::gemm_backend()}};
    } else {
        e.machine = cuda::device_info(device.index).name;
        const GpuVersions versions = gpu_versions();
        e.fields = {{"gpu", e.machine}, {"driver", versions.driver}, {"cuda", versions.cuda}};
    }
    e.fields["compiler"] = LC_COMPILER;
    e.fields["revision"] = kRevision;
    e.fields["command"] = command;
    return e;
}

std::string portable_command(int argc, const char* const* argv) {
    std::string command;
    for (int i = 0; i < argc; ++i) {
        std::string word = argv[i];
        const size_t path = word.starts_with('/') ? 0 : word.find("=/");
        if (path == 0)
            word = std::filesystem::path(word).filename();
        else if (path != std::string::npos)
            word = word.substr(0, path + 1) + std::filesystem::path(word.substr(path + 1)).filename().string();
        command += (i ? " " : "") + word;
    }
    return command;
}

namespace {
std::string utc_now() {
    const std::time_t now = std::time(nullptr);
    std::tm utc{};
    gmtime_r(&now, &utc);
    char text[32];
    std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &utc);
    return text;
}
}  // namespace

io::Json moment(Device device) {
    io::Json fields = {{"utc", utc_now()}};
    if (device.is_cpu()) return fields;
    if (const std::optional<GpuState> state = gpu_state(device))
        fields.update({{"sm_mhz", state->sm_mhz}, {"watts", state->watts}, {"celsius", state->celsius}});
    return fields;
}

void append_line(const std::string& path, const io::Json& line) {
    if (path.empty()) return;
    std::ofstream file(path, std::ios::app);
    file << line.dump() << '\n';
    file.close();
    LC_REQUIRE(Resource, !file.fail(), "{}: cannot append a result", path);
}

}  // namespace lc::bench
