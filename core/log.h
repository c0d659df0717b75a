// Messages to people: one line each on stderr, so that stdout stays the program's result.
#pragma once
#include <fmt/format.h>

#include <string_view>

namespace lc {

enum class LogLevel : int { Debug, Info, Warning, Error };

void set_log_level(LogLevel least);  // default Info; `-v` shows Debug
void log_line(LogLevel level, std::string_view text);

template <class... Args>
void log_debug(fmt::format_string<Args...> format, Args&&... args) {
    log_line(LogLevel::Debug, fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void log_info(fmt::format_string<Args...> format, Args&&... args) {
    log_line(LogLevel::Info, fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void log_warning(fmt::format_string<Args...> format, Args&&... args) {
    log_line(LogLevel::Warning, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace lc
