// Safetensors files by hand, right or wrong.
#pragma once
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace lc::io::test {

inline std::string safetensors_bytes(std::string_view header, std::string_view data) {
    const uint64_t length = header.size();
    std::string bytes(8, '\0');
    std::memcpy(bytes.data(), &length, 8);
    return bytes.append(header).append(data);
}

}  // namespace lc::io::test
