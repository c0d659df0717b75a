#include "core/log.h"

#include <atomic>
#include <cstdio>
#include <string>

namespace lc {
namespace {
std::atomic<int> least_level{static_cast<int>(LogLevel::Info)};
}

void set_log_level(LogLevel least) { least_level = static_cast<int>(least); }

void log_line(LogLevel level, std::string_view text) {
    if (static_cast<int>(level) < least_level) return;
    const char* prefix = level == LogLevel::Warning ? "warning: " : level == LogLevel::Error ? "error: " : "";
    const std::string line = fmt::format("{}{}\n", prefix, text);
    std::fwrite(line.data(), 1, line.size(), stderr);  // one call: lines of several threads do not mix
}

}  // namespace lc
