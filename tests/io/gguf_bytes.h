// GGUF files, byte by byte.
#pragma once
#include <cstring>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "core/tensor.h"
#include "io/gguf.h"

namespace lc::io::test {

template <class T>
std::string raw(T value) {
    std::string bytes(sizeof value, '\0');
    std::memcpy(bytes.data(), &value, sizeof value);
    return bytes;
}
inline std::string gguf_string(const std::string& text) {
    return raw(uint64_t{text.size()}) + text;
}
// A key with a value that is bytes already.
inline std::string gguf_pair(const std::string& key, uint32_t type, const std::string& value) {
    return gguf_string(key) + raw(type) + value;
}
inline std::string gguf_text(const std::string& key, const std::string& text) {
    return gguf_pair(key, 8, gguf_string(text));
}
inline std::string gguf_u32(const std::string& key, uint32_t value) {
    return gguf_pair(key, 4, raw(value));
}
inline std::string gguf_f32(const std::string& key, float value) {
    return gguf_pair(key, 6, raw(value));
}
inline std::string gguf_bool(const std::string& key, bool value) {
    return gguf_pair(key, 7, raw(static_cast<uint8_t>(value)));
}
inline std::string gguf_texts(const std::string& key, const std::vector<std::string>& texts) {
    std::string value = raw(uint32_t{8}) + raw(uint64_t{texts.size()});
    for (const std::string& text : texts) value += gguf_string(text);
    return gguf_pair(key, 9, value);
}
template <class T>
std::string gguf_numbers(const std::string& key, uint32_t type, const std::vector<T>& numbers) {
    std::string value = raw(type) + raw(uint64_t{numbers.size()});
    for (const T number : numbers) value += raw(number);
    return gguf_pair(key, 9, value);
}

struct GgufPart {
    std::string name;
    std::vector<int64_t> shape;  // row-major
    uint32_t type = kGgufF32;
    std::string bytes;
    int64_t offset = -1;  // -1: where it is
};
inline GgufPart f32_part(const std::string& name, const Tensor& tensor) {
    const std::vector<float> values = tensor.to_vector<float>();
    return {.name = name,
            .shape = {tensor.shape().begin(), tensor.shape().end()},
            .bytes = {reinterpret_cast<const char*>(values.data()), 4 * values.size()}};
}

struct GgufHead {
    std::string magic = "GGUF";
    uint32_t version = 3;
    int64_t tensors = -1, pairs = -1;  // -1: as many as there are
    size_t alignment = 32;
};

inline std::string gguf_bytes(const std::vector<std::string>& pairs, const std::vector<GgufPart>& parts,
                              const GgufHead& head = {}) {
    const auto count = [](int64_t said, size_t truth) {
        return raw(said < 0 ? uint64_t{truth} : static_cast<uint64_t>(said));
    };
    std::string file =
        head.magic + raw(head.version) + count(head.tensors, parts.size()) + count(head.pairs, pairs.size());
    for (const std::string& pair : pairs) file += pair;
    std::string data;
    for (const GgufPart& part : parts) {
        file += gguf_string(part.name) + raw(static_cast<uint32_t>(part.shape.size()));
        for (size_t i = part.shape.size(); i-- > 0;) file += raw(static_cast<uint64_t>(part.shape[i]));
        file += raw(part.type) + count(part.offset, data.size());
        data += part.bytes;
        data.resize((data.size() + head.alignment - 1) / head.alignment * head.alignment);
    }
    file.resize((file.size() + head.alignment - 1) / head.alignment * head.alignment);
    return file + data;
}

}  // namespace lc::io::test
