#include "io/pickle.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <optional>
#include <unordered_map>

#include "core/check.h"
#include "io/text.h"

namespace lc::io {
namespace {

// The opcodes that are understood; the letters are those of Python's pickletools.
enum Opcode : unsigned char {
    kProto = 0x80,
    kStop = '.',
    kMark = '(',
    kNone = 'N',
    kNewTrue = 0x88,
    kNewFalse = 0x89,
    kBinInt = 'J',
    kBinInt1 = 'K',
    kBinInt2 = 'M',
    kLong1 = 0x8a,
    kBinFloat = 'G',
    kBinUnicode = 'X',
    kEmptyTuple = ')',
    kTuple = 't',
    kTuple1 = 0x85,
    kTuple2 = 0x86,
    kTuple3 = 0x87,
    kEmptyDict = '}',
    kSetItem = 's',
    kSetItems = 'u',
    kBinGet = 'h',
    kLongBinGet = 'j',
    kBinPut = 'q',
    kLongBinPut = 'r',
    kGlobal = 'c',
    kReduce = 'R',
    kBuild = 'b',
    kBinPersId = 'Q',
};

struct KnownGlobal {
    std::string_view module, name;
    PickleGlobal global;
    DType dtype = DType::f32;
};
constexpr KnownGlobal kGlobals[] = {
    {"collections", "OrderedDict", PickleGlobal::ordered_dict},
    {"torch._utils", "_rebuild_tensor_v2", PickleGlobal::rebuild_tensor},
    {"torch._utils", "_rebuild_parameter", PickleGlobal::rebuild_parameter},
    {"torch", "FloatStorage", PickleGlobal::dtype, DType::f32},
    {"torch", "HalfStorage", PickleGlobal::dtype, DType::f16},
    {"torch", "BFloat16Storage", PickleGlobal::dtype, DType::bf16},
    {"torch", "DoubleStorage", PickleGlobal::dtype, DType::f64},
};

constexpr size_t kMaxMemo = size_t{1} << 20;
constexpr size_t kMaxGlobalName = 256;

}  // namespace

std::string describe(const PickleValue& value) {
    switch (value.kind) {
        case PickleKind::none:
            return "None";
        case PickleKind::boolean:
            return value.integer ? "True" : "False";
        case PickleKind::integer:
            return fmt::format("the integer {}", value.integer);
        case PickleKind::real:
            return fmt::format("the number {}", value.real);
        case PickleKind::text:
            return fmt::format("the text '{}'", printable(value.text));
        case PickleKind::tuple:
            return fmt::format("a tuple of {}", value.items.size());
        case PickleKind::dict:
            return fmt::format("a dict of {}", value.items.size() / 2);
        case PickleKind::global:
            return "a global";
        case PickleKind::storage:
            return "a storage";
        case PickleKind::tensor:
            return "a tensor";
    }
    return "?";
}

class PickleMachine {
  public:
    PickleMachine(std::string_view bytes, std::string source, Pickle& pickle)
        : bytes_(bytes), source_(std::move(source)), values_(pickle.values_) {}

    PickleId run() {
        require(byte() == kProto && byte() == 2, "must begin with protocol 2, which torch.save writes");
        for (;;) {
            start_ = at_;
            const unsigned char opcode = byte();
            if (opcode == kStop) break;
            if (!scalar(opcode) && !container(opcode) && !memo(opcode) && !call(opcode))
                fail_here(fmt::format("opcode {:#04x} is none of those that describe tensors", opcode));
        }
        require(stack_.size() == 1 && marks_.empty(), "must leave one value, and not {}", stack_.size());
        require(at_ == bytes_.size(), "ends, but {} bytes follow", bytes_.size() - at_);
        return stack_.back();
    }

  private:
    template <class... Args>
    void require(bool condition, fmt::format_string<Args...> format, Args&&... args) const {
        if (!condition) fail_here(fmt::format(format, std::forward<Args>(args)...));
    }
    [[noreturn]] void fail_here(const std::string& what) const {
        fail(ErrorKind::BadInput, "{}: pickle at byte {}: {}", source_, start_, what);
    }

    // --- bytes ---
    std::string_view take(size_t count) {
        require(count <= bytes_.size() - at_, "needs {} more bytes, has {}", count, bytes_.size() - at_);
        at_ += count;
        return bytes_.substr(at_ - count, count);
    }
    unsigned char byte() { return static_cast<unsigned char>(take(1)[0]); }
    uint32_t little(size_t count) {
        uint32_t value = 0;
        const std::string_view raw = take(count);
        for (size_t i = 0; i < count; ++i) value |= uint32_t{static_cast<unsigned char>(raw[i])} << 8 * i;
        return value;
    }
    std::string_view line() {
        const size_t end = bytes_.substr(at_, kMaxGlobalName + 1).find('\n');
        require(end != std::string_view::npos, "a global's name must end within {} bytes", kMaxGlobalName);
        const std::string_view text = take(end);
        take(1);
        return text;
    }

    // --- the stack ---
    PickleValue& push(PickleKind kind) {
        require(values_.size() < Pickle::kMaxValues, "holds more than {} values", Pickle::kMaxValues);
        stack_.push_back(static_cast<PickleId>(values_.size()));
        return values_.emplace_back(PickleValue{.kind = kind});
    }
    PickleId pop() {
        require(stack_.size() > floor(), "takes a value from an empty stack");
        const PickleId id = stack_.back();
        stack_.pop_back();
        return id;
    }
    // Values above the last mark belong to it; none below may be taken before it is used up.
    size_t floor() const { return marks_.empty() ? 0 : marks_.back(); }
    std::vector<PickleId> pop_to_mark() {
        require(!marks_.empty(), "goes back to a mark that is not there");
        const auto first = stack_.begin() + static_cast<ptrdiff_t>(marks_.back());
        std::vector<PickleId> items(first, stack_.end());
        stack_.erase(first, stack_.end());
        marks_.pop_back();
        return items;
    }
    PickleValue& top() {
        require(stack_.size() > floor(), "changes a value of an empty stack");
        return values_[stack_.back()];
    }
    const PickleValue& expect(PickleId id, PickleKind kind, const char* what) const {
        if (values_[id].kind != kind) fail_here(fmt::format("{}, got {}", what, describe(values_[id])));
        return values_[id];
    }

    // --- opcodes, by what they do; false: not one of these ---
    bool scalar(unsigned char opcode) {
        if (opcode == kNone) {
            push(PickleKind::none);
        } else if (opcode == kNewTrue || opcode == kNewFalse) {
            push(PickleKind::boolean).integer = opcode == kNewTrue;
        } else if (opcode == kBinInt) {
            push(PickleKind::integer).integer = static_cast<int32_t>(little(4));
        } else if (opcode == kBinInt1 || opcode == kBinInt2) {
            push(PickleKind::integer).integer = little(opcode == kBinInt1 ? 1 : 2);
        } else if (opcode == kLong1) {
            push(PickleKind::integer).integer = long_integer();
        } else if (opcode == kBinFloat) {
            uint64_t bits = 0;  // the only big-endian field
            for (const char c : take(8)) bits = bits << 8 | static_cast<unsigned char>(c);
            push(PickleKind::real).real = std::bit_cast<double>(bits);
        } else if (opcode == kBinUnicode) {
            const std::string_view text = take(little(4));
            require(!first_invalid_utf8(text), "text must be UTF-8");
            push(PickleKind::text).text = text;
        } else {
            return false;
        }
        return true;
    }
    int64_t long_integer() {
        const std::string_view raw = take(byte());
        require(raw.size() <= 8, "an integer has {} bytes, at most 8", raw.size());
        uint64_t value = !raw.empty() && (raw.back() & 0x80) != 0 ? ~uint64_t{0} : 0;
        for (size_t i = raw.size(); i-- > 0;) value = value << 8 | static_cast<unsigned char>(raw[i]);
        return static_cast<int64_t>(value);
    }

    bool container(unsigned char opcode) {
        if (opcode == kMark) {
            marks_.push_back(stack_.size());
        } else if (opcode == kEmptyTuple) {
            push(PickleKind::tuple);
        } else if (opcode == kTuple) {
            std::vector<PickleId> items = pop_to_mark();
            push(PickleKind::tuple).items = std::move(items);
        } else if (opcode >= kTuple1 && opcode <= kTuple3) {
            std::vector<PickleId> items(opcode - kTuple1 + 1u);
            for (size_t i = items.size(); i-- > 0;) items[i] = pop();
            push(PickleKind::tuple).items = std::move(items);
        } else if (opcode == kEmptyDict) {
            push(PickleKind::dict);
        } else if (opcode == kSetItem) {
            const PickleId value = pop(), key = pop();
            set_items({key, value});
        } else if (opcode == kSetItems) {
            set_items(pop_to_mark());
        } else {
            return false;
        }
        return true;
    }
    void set_items(const std::vector<PickleId>& pairs) {
        if (top().kind != PickleKind::dict) fail_here("sets items of " + describe(top()));
        require(pairs.size() % 2 == 0, "sets a key without a value");
        for (size_t i = 0; i < pairs.size(); i += 2) expect(pairs[i], PickleKind::text, "keys of dicts must be text");
        std::vector<PickleId>& items = top().items;
        items.insert(items.end(), pairs.begin(), pairs.end());
    }

    bool memo(unsigned char opcode) {
        if (opcode == kBinGet || opcode == kLongBinGet) {
            const uint32_t slot = little(opcode == kBinGet ? 1 : 4);
            const auto found = memo_.find(slot);
            require(found != memo_.end(), "fetches memo {}, which was not stored", slot);
            stack_.push_back(found->second);
        } else if (opcode == kBinPut || opcode == kLongBinPut) {
            const uint32_t slot = little(opcode == kBinPut ? 1 : 4);
            require(stack_.size() > floor(), "stores an empty stack");
            require(memo_.size() < kMaxMemo, "stores more than {} values", kMaxMemo);
            memo_[slot] = stack_.back();
        } else {
            return false;
        }
        return true;
    }

    bool call(unsigned char opcode) {
        if (opcode == kGlobal) {
            global();
        } else if (opcode == kReduce) {
            reduce();
        } else if (opcode == kBinPersId) {
            storage();
        } else if (opcode == kBuild) {
            build();
        } else {
            return false;
        }
        return true;
    }
    void global() {
        const std::string_view module = line(), name = line();
        const auto known =
            std::ranges::find_if(kGlobals, [&](const KnownGlobal& g) { return g.module == module && g.name == name; });
        require(known != std::end(kGlobals), "global '{}.{}' is none of those that describe tensors", printable(module),
                printable(name));
        PickleValue& value = push(PickleKind::global);
        value.global = known->global, value.dtype = known->dtype;
    }
    void reduce() {
        const PickleId arguments = pop(), callable = pop();
        const std::vector<PickleId> items = expect(arguments, PickleKind::tuple, "arguments must be a tuple").items;
        switch (expect(callable, PickleKind::global, "calls a value that is no global").global) {
            case PickleGlobal::ordered_dict:
                require(items.empty(), "OrderedDict takes no arguments here, got {}", items.size());
                push(PickleKind::dict).ordered = true;
                return;
            case PickleGlobal::rebuild_tensor:
                return tensor(items);
            case PickleGlobal::rebuild_parameter:
                require(items.size() == 3, "_rebuild_parameter takes 3 arguments, got {}", items.size());
                expect(items[0], PickleKind::tensor, "_rebuild_parameter takes a tensor first");
                expect(items[1], PickleKind::boolean, "requires_grad must be a bool");
                require(expect(items[2], PickleKind::dict, "hooks must be a dict").items.empty(),
                        "hooks of a parameter are not supported");
                stack_.push_back(items[0]);
                return;
            case PickleGlobal::dtype:
                fail_here("calls a storage type");
        }
    }
    // ('storage', torch.FloatStorage, key, location, elements)
    void storage() {
        const std::vector<PickleId> items = expect(pop(), PickleKind::tuple, "a persistent id must be a tuple").items;
        require(items.size() == 5 && values_[items[0]].text == "storage",
                "a persistent id must be ('storage', type, key, location, elements)");
        const PickleValue& type = expect(items[1], PickleKind::global, "a storage's type must be a global");
        require(type.global == PickleGlobal::dtype, "a storage's type must be a storage type");
        const std::string key = expect(items[2], PickleKind::text, "a storage's key must be text").text;
        expect(items[3], PickleKind::text, "a storage's location must be text");
        const int64_t elements = expect(items[4], PickleKind::integer, "a storage's size must be an integer").integer;
        require(elements >= 0, "a storage's size must be at least 0, got {}", elements);
        const DType dtype = type.dtype;
        PickleValue& value = push(PickleKind::storage);
        value.dtype = dtype, value.text = key, value.integer = elements;
    }
    // (storage, offset, size, stride, requires_grad, hooks); a seventh, metadata, only as None
    void tensor(const std::vector<PickleId>& items) {
        require(items.size() == 6 || (items.size() == 7 && values_[items[6]].kind == PickleKind::none),
                "_rebuild_tensor_v2 takes 6 arguments, got {}", items.size());
        PickleValue made = expect(items[0], PickleKind::storage, "a tensor must lie in a storage");
        made.kind = PickleKind::tensor;
        made.offset = expect(items[1], PickleKind::integer, "a tensor's offset must be an integer").integer;
        made.shape = integers(items[2], "a tensor's size"), made.strides = integers(items[3], "a tensor's stride");
        expect(items[4], PickleKind::boolean, "requires_grad must be a bool");
        require(expect(items[5], PickleKind::dict, "hooks must be a dict").items.empty(),
                "hooks of a tensor are not supported");
        check_bounds(made);
        push(PickleKind::tensor) = std::move(made);
    }
    std::vector<int64_t> integers(PickleId id, const char* what) const {
        if (values_[id].kind != PickleKind::tuple) fail_here(fmt::format("{} must be a tuple", what));
        require(values_[id].items.size() <= kMaxStoredRank, "{} has {} dimensions, at most {}", what,
                values_[id].items.size(), kMaxStoredRank);
        std::vector<int64_t> result;
        for (const PickleId item : values_[id].items) {
            const bool size = values_[item].kind == PickleKind::integer && values_[item].integer >= 0;
            if (!size)
                fail_here(fmt::format("{} must hold integers of at least 0, got {}", what, describe(values_[item])));
            result.push_back(values_[item].integer);
        }
        return result;
    }
    // Every element lies in the storage, and there are no more of them than it has: a stride of 0 makes none.
    void check_bounds(const PickleValue& tensor) const {
        require(tensor.shape.size() == tensor.strides.size(), "a tensor has {} sizes and {} strides",
                tensor.shape.size(), tensor.strides.size());
        int64_t count = 1, last = tensor.offset;
        bool overflow = tensor.offset < 0;
        for (size_t i = 0; i < tensor.shape.size(); ++i) {
            int64_t step = 0;
            overflow |= __builtin_mul_overflow(count, tensor.shape[i], &count);
            overflow |= __builtin_mul_overflow(std::max<int64_t>(tensor.shape[i] - 1, 0), tensor.strides[i], &step);
            overflow |= __builtin_add_overflow(last, step, &last);
        }
        require(!overflow && count <= tensor.integer && (count == 0 || last < tensor.integer),
                "a tensor of size [{}], stride [{}] and offset {} leaves its storage of {} elements",
                fmt::join(tensor.shape, ","), fmt::join(tensor.strides, ","), tensor.offset, tensor.integer);
    }
    // state_dict() hangs a note about versions on its OrderedDict, which nothing here needs.
    void build() {
        const PickleValue& state = expect(pop(), PickleKind::dict, "state must be a dict");
        require(state.items.size() == 2 && values_[state.items[0]].text == "_metadata" && top().ordered,
                "only an OrderedDict takes state, and only its _metadata");
    }

    static constexpr size_t kMaxStoredRank = 8;

    std::string_view bytes_;
    std::string source_;
    std::vector<PickleValue>& values_;
    size_t at_ = 0, start_ = 0;  // of the current opcode
    std::vector<PickleId> stack_;
    std::vector<size_t> marks_;
    std::unordered_map<uint32_t, PickleId> memo_;
};

Pickle::Pickle(std::string_view bytes, std::string source) {
    root_ = PickleMachine(bytes, std::move(source), *this).run();
}

const PickleValue* Pickle::find(const PickleValue& dict, std::string_view key) const {
    for (size_t i = dict.items.size(); i >= 2; i -= 2)
        if (values_[dict.items[i - 2]].text == key) return &values_[dict.items[i - 1]];
    return nullptr;
}

}  // namespace lc::io
