#include "models/generation/stop_strings.h"

#include <algorithm>

#include "core/check.h"
#include "io/text.h"

namespace lc::models {

StopStrings::StopStrings(std::vector<std::string> stops) : stops_(std::move(stops)) {
    for (const std::string& stop : stops_) {
        LC_REQUIRE(Usage, !stop.empty(), "a stop string is empty");
        LC_REQUIRE(Usage, !io::first_invalid_utf8(stop), "stop string '{}' is no valid UTF-8", io::printable(stop));
    }
}

std::string StopStrings::push(std::string_view text) {
    if (found_) return {};
    held_ += text;
    size_t safe = held_.size();  // bytes that can be shown
    size_t first_end = std::string::npos;
    for (const std::string& stop : stops_) {
        const size_t at = held_.find(stop), end = at == std::string::npos ? at : at + stop.size();
        if (end == std::string::npos || end > first_end || (end == first_end && at > safe)) continue;
        found_ = true;
        safe = at, first_end = end;
    }
    if (!found_)
        for (const std::string& stop : stops_)
            for (size_t part = std::min(stop.size() - 1, held_.size()); part > 0; --part)
                if (held_.ends_with(std::string_view(stop).substr(0, part))) {
                    safe = std::min(safe, held_.size() - part);
                    break;
                }
    std::string shown = held_.substr(0, safe);
    held_.erase(0, safe);
    if (found_) held_.clear();
    return shown;
}

std::string StopStrings::finish() {
    return std::exchange(held_, {});
}

}  // namespace lc::models
