// Private to io: the dtypes of safetensors.
#pragma once
#include <optional>
#include <string_view>

#include "core/dtype.h"

namespace lc::io {

struct StoredType {
    std::string_view name;  // in the file
    int64_t bytes;          // an element
    DType dtype;            // what it is read as
};

inline constexpr StoredType kStoredTypes[] = {
    {"F64", 8, DType::f64}, {"F32", 4, DType::f32},      {"F16", 2, DType::f16}, {"BF16", 2, DType::bf16},
    {"I64", 8, DType::i64}, {"I32", 4, DType::i32},      {"I16", 2, DType::i32}, {"I8", 1, DType::i32},
    {"U8", 1, DType::u8},   {"BOOL", 1, DType::boolean},
};

// nullptr when we do not know it; such a tensor may stand in a file but is not read.
inline const StoredType* stored_type(std::string_view name) {
    for (const StoredType& type : kStoredTypes)
        if (type.name == name) return &type;
    return nullptr;
}

inline std::string_view stored_name(DType dtype) {
    for (const StoredType& type : kStoredTypes)
        if (type.dtype == dtype && type.bytes == size_of(dtype)) return type.name;
    return {};
}

inline constexpr size_t kMaxTensorName = 512;            // bytes
inline constexpr int64_t kMaxHeaderBytes = 100'000'000;  // as in the reference implementation
inline constexpr size_t kMaxStoredRank = 8;

}  // namespace lc::io
