// The part of Python's pickle (protocol 2) that torch.save needs to describe dicts of tensors, and nothing else.
//
// A pickle is a program for a stack machine that may call any function of the reader's Python. This reader knows no
// functions: of the opcodes those that build None, bools, ints, floats, text, tuples and dicts, and of the globals
//
//   collections.OrderedDict()                              an empty dict
//   torch._utils._rebuild_tensor_v2(storage, ...)          a description of a tensor
//   torch._utils._rebuild_parameter(tensor, ...)           the same tensor
//   torch.{Float,Half,BFloat16,Double}Storage              a dtype
//
// which it understands as what they would make. Everything else is refused, by name; nothing is executed.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/dtype.h"

namespace lc::io {

enum class PickleKind : uint8_t { none, boolean, integer, real, text, tuple, dict, global, storage, tensor };
enum class PickleGlobal : uint8_t { ordered_dict, rebuild_tensor, rebuild_parameter, dtype };

using PickleId = uint32_t;  // of a value in its Pickle

struct PickleValue {
    PickleKind kind = PickleKind::none;
    bool ordered = false;  // dict made by OrderedDict()
    PickleGlobal global{};
    DType dtype = DType::f32;  // storage, tensor, and global of kind dtype
    int64_t integer = 0;       // integer, boolean; storage and tensor: elements of the storage
    double real = 0;
    int64_t offset = 0;                   // tensor: elements of the storage before its first
    std::string text;                     // text; storage and tensor: the key of the storage
    std::vector<PickleId> items;          // tuple: its elements; dict: key, value, key, value, ... (keys are text)
    std::vector<int64_t> shape, strides;  // tensor
};

// Values live in one list and name each other by number: whatever a file nests or ties into a ring, there is no recursion
// and nothing to free in order.
class Pickle {
  public:
    // Throws BadInput naming `source`, the place in `bytes` and what is not supported there; also for more than
    // kMaxValues values.
    Pickle(std::string_view bytes, std::string source);

    const PickleValue& root() const { return (*this)[root_]; }
    const PickleValue& operator[](PickleId id) const { return values_[id]; }
    // Of a dict; nullptr when it has no such key. The last one of several, as in Python.
    const PickleValue* find(const PickleValue& dict, std::string_view key) const;

    static constexpr size_t kMaxValues = size_t{1} << 18;

  private:
    friend class PickleMachine;
    std::vector<PickleValue> values_;
    PickleId root_ = 0;
};

// "a dict", "the integer 3": for messages.
std::string describe(const PickleValue& value);

}  // namespace lc::io
