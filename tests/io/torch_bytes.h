// Checkpoints of torch.save, byte by byte, so that tests can make every part of them wrong.
#pragma once
#include <bit>
#include <string>
#include <utility>
#include <vector>

#include "core/tensor.h"
#include "io/zip_archive.h"

namespace lc::io::test {

inline std::string little(uint64_t value, size_t count) {
    std::string bytes;
    for (size_t i = 0; i < count; ++i, value >>= 8) bytes.push_back(static_cast<char>(value & 0xFF));
    return bytes;
}

// One member and what its records say; the defaults are the truth.
struct ZipPart {
    std::string name, content;
    uint32_t flags = 0x0808, method = 0, local_method = 0;
    std::string local_name{};                     // empty: name
    int64_t size = -1, packed = -1, header = -1;  // -1: as it is
    uint32_t crc_change = 0;                      // xored
    uint32_t disk = 0;
    std::string extra{}, comment{};
};

struct ZipEnd {
    int64_t count = -1, count_here = -1, size = -1, offset = -1;
    uint32_t signature = 0x06054b50, disk = 0, comment = 0;
    std::string before{}, after{};  // bytes between directory and end record, and after it
    bool wide = false;              // with a ZIP64 end record and its locator, the fields of which are changed by:
    int64_t wide_count = 0, wide_size = 0, wide_offset = 0, wide_place = 0, wide_length = 0, wide_signature = 0;
};

inline std::string zip_bytes(const std::vector<ZipPart>& parts, const ZipEnd& end = {}) {
    std::string file, directory;
    for (const ZipPart& part : parts) {
        const auto bytes = std::as_bytes(std::span(part.content));
        const uint32_t crc = crc32(bytes) ^ part.crc_change;
        const std::string& local = part.local_name.empty() ? part.name : part.local_name;
        const auto size = static_cast<uint64_t>(part.size < 0 ? std::ssize(part.content) : part.size);
        const auto packed = part.packed < 0 ? size : static_cast<uint64_t>(part.packed);
        const auto header = part.header < 0 ? file.size() : static_cast<uint64_t>(part.header);
        directory += little(0x02014b50, 4) + little(0, 4) + little(part.flags, 2) + little(part.method, 2) +
                     little(0, 4) + little(crc, 4) + little(packed, 4) + little(size, 4) + little(part.name.size(), 2) +
                     little(part.extra.size(), 2) + little(part.comment.size(), 2) + little(part.disk, 2) +
                     little(0, 6) + little(header, 4) + part.name + part.extra + part.comment;
        file += little(0x04034b50, 4) + little(0, 2) + little(part.flags, 2) + little(part.local_method, 2) +
                little(0, 16) + little(local.size(), 2) + little(3, 2) + local + "pad" + part.content;
    }
    const auto pick = [](int64_t said, size_t truth) { return said < 0 ? truth : static_cast<uint64_t>(said); };
    std::string wide;
    if (end.wide) {
        const auto plus = [](int64_t change, size_t value) { return little(value + static_cast<uint64_t>(change), 8); };
        wide = little(0x06064b50 + static_cast<uint64_t>(end.wide_signature), 4) + plus(end.wide_length, 44) +
               little(0, 12) + plus(end.wide_count, parts.size()) + plus(end.wide_count, parts.size()) +
               plus(end.wide_size, directory.size()) + plus(end.wide_offset, file.size()) + little(0x07064b50, 4) +
               little(0, 4) + plus(end.wide_place, file.size() + directory.size()) + little(1, 4);
    }
    return file + directory + end.before + wide + little(end.signature, 4) + little(end.disk, 4) +
           little(pick(end.count_here, parts.size()), 2) + little(pick(end.count, parts.size()), 2) +
           little(pick(end.size, directory.size()), 4) + little(pick(end.offset, file.size()), 4) +
           little(end.comment, 2) + end.after;
}

// --- pieces of pickles, protocol 2 ---
inline std::string text_of(const std::string& text) {
    return "X" + little(text.size(), 4) + text;
}
inline std::string integer_of(int64_t value) {
    if (value >= 0 && value < 256) return "K" + little(static_cast<uint64_t>(value), 1);
    return "\x8a\x08" + little(static_cast<uint64_t>(value), 8);
}
inline std::string global_of(const std::string& module, const std::string& name) {
    return "c" + module + "\n" + name + "\n";
}
template <class Values>
std::string tuple_of(const Values& values) {
    std::string bytes = "(";
    for (const int64_t value : values) bytes += integer_of(value);
    return bytes + "t";
}
inline std::string storage_of(const std::string& type, const std::string& key, int64_t elements) {
    return "(" + text_of("storage") + global_of("torch", type) + text_of(key) + text_of("cpu") + integer_of(elements) +
           "tQ";
}
inline const std::string kNoHooks = global_of("collections", "OrderedDict") + ")R";
inline std::string tensor_of(const std::string& storage, int64_t offset, const std::vector<int64_t>& shape,
                             const std::vector<int64_t>& strides) {
    return global_of("torch._utils", "_rebuild_tensor_v2") + "(" + storage + integer_of(offset) + tuple_of(shape) +
           tuple_of(strides) + "\x89" + kNoHooks + "tR";
}
inline std::string pickle_of(const std::string& body) {
    return "\x80\x02" + body + ".";
}

// A checkpoint of f32 tensors, {"model_state_dict": {...}, "step": step}.
inline std::string torch_bytes(const std::vector<std::pair<std::string, Tensor>>& tensors, int64_t step = 7) {
    std::string state = "}(";
    std::vector<ZipPart> parts(1);
    for (size_t i = 0; i < tensors.size(); ++i) {
        const auto& [name, tensor] = tensors[i];
        const std::vector<float> values = tensor.to_vector<float>();
        const Dims strides = Layout::contiguous(tensor.shape()).strides;
        state +=
            text_of(name) + tensor_of(storage_of("FloatStorage", std::to_string(i), tensor.numel()), 0,
                                      {tensor.shape().begin(), tensor.shape().end()}, {strides.begin(), strides.end()});
        parts.push_back({"archive/data/" + std::to_string(i),
                         std::string(reinterpret_cast<const char*>(values.data()), 4 * values.size())});
    }
    parts[0] = {"archive/data.pkl",
                pickle_of("}(" + text_of("model_state_dict") + state + "u" + text_of("step") + integer_of(step) + "u")};
    return zip_bytes(parts);
}

}  // namespace lc::io::test
