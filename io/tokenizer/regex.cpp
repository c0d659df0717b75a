#define PCRE2_CODE_UNIT_WIDTH 8
#include "io/tokenizer/regex.h"

#include <pcre2.h>

#include <algorithm>

#include "core/check.h"
#include "io/text.h"

namespace lc::io {
namespace {

constexpr size_t kMaxPatternBytes = size_t{64} << 10;
constexpr uint32_t kMatchLimit = 10'000'000;
constexpr uint32_t kHeapLimitKib = 64 << 10;
constexpr size_t kJitStackStart = size_t{64} << 10, kJitStackMax = size_t{8} << 20;

template <auto Free>
struct Deleter {
    template <class T>
    void operator()(T* object) const {
        Free(object);
    }
};
using CodePtr = std::unique_ptr<pcre2_code, Deleter<pcre2_code_free>>;
using CompileContextPtr = std::unique_ptr<pcre2_compile_context, Deleter<pcre2_compile_context_free>>;
using MatchContextPtr = std::unique_ptr<pcre2_match_context, Deleter<pcre2_match_context_free>>;
using MatchDataPtr = std::unique_ptr<pcre2_match_data, Deleter<pcre2_match_data_free>>;
using JitStackPtr = std::unique_ptr<pcre2_jit_stack, Deleter<pcre2_jit_stack_free>>;

std::string message_of(int error) {
    unsigned char buffer[256] = {};
    pcre2_get_error_message(error, buffer, sizeof buffer);
    return reinterpret_cast<const char*>(buffer);
}

// What begins `rest` and means something else to the other engine, else nothing. `in_class`: inside [...].
std::string_view other_dialect(std::string_view rest, bool in_class) {
    const std::string_view two = rest.substr(0, 2);
    // \w and \b go by other tables, \h is a hexadecimal digit there, the rest is missing on one side.
    if (rest[0] == '\\' && two.size() == 2 && std::string_view("wWbBhHRXKNOyYGC").find(two[1]) != two.npos) return two;
    if (in_class) return rest[0] == '[' || two == "&&" ? two : std::string_view();  // nested sets, POSIX classes
    if (two == "(?") {
        const std::string_view options = rest.substr(0, rest.find_first_of(":)=!<>#|'P"));
        return options.find('m') != options.npos ? options : std::string_view();  // there: the dot takes line ends
    }
    if (rest[0] == '{') {
        const size_t end = rest.find('}');  // {,n} is {0,n} there; {n,m}+ repeats, here it is possessive
        if (end != rest.npos && (two == "{," || rest.substr(end + 1, 1) == "+")) return rest.substr(0, end + 2);
    }
    return {};
}

void refuse_other_dialect(std::string_view pattern, const std::string& where) {
    bool in_class = false;
    for (size_t i = 0; i < pattern.size(); ++i) {
        const std::string_view rest = pattern.substr(i);
        const std::string_view found = other_dialect(rest, in_class);
        LC_REQUIRE(BadInput, found.empty(), "{}: the pattern uses '{}', which this build does not support", where,
                   printable(found));
        if (rest[0] == '\\') {
            const bool braced = rest.size() > 2 && rest[2] == '{';  // \p{L}
            i += braced ? std::min(rest.find('}'), rest.size()) : 1;
        } else if (rest[0] == '[') {
            in_class = true;
        } else if (rest[0] == ']') {
            in_class = false;
        }
    }
}

}  // namespace

struct RegexScratch::State {
    MatchDataPtr data{pcre2_match_data_create(1, nullptr)};
    MatchContextPtr context{pcre2_match_context_create(nullptr)};
    JitStackPtr stack{pcre2_jit_stack_create(kJitStackStart, kJitStackMax, nullptr)};
};

RegexScratch::RegexScratch() : state_(std::make_unique<State>()) {
    LC_REQUIRE(Resource, state_->data && state_->context, "regular expressions: out of memory");
    pcre2_set_match_limit(state_->context.get(), kMatchLimit);
    pcre2_set_heap_limit(state_->context.get(), kHeapLimitKib);
    if (state_->stack) pcre2_jit_stack_assign(state_->context.get(), nullptr, state_->stack.get());
}
RegexScratch::~RegexScratch() = default;
RegexScratch::RegexScratch(RegexScratch&&) noexcept = default;
RegexScratch& RegexScratch::operator=(RegexScratch&&) noexcept = default;

struct Regex::Code {
    CodePtr pattern;
    bool jit = false;
    std::string where;
};

Regex::Regex(std::string_view pattern, std::string where) {
    LC_REQUIRE(BadInput, pattern.size() <= kMaxPatternBytes, "{}: a pattern of {} bytes, at most {} are accepted",
               where, pattern.size(), kMaxPatternBytes);
    refuse_other_dialect(pattern, where);
    const CompileContextPtr context(pcre2_compile_context_create(nullptr));
    LC_REQUIRE(Resource, context != nullptr, "{}: out of memory for a pattern", where);
    pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
    pcre2_set_parens_nest_limit(context.get(), 100);
    int error = 0;
    PCRE2_SIZE offset = 0;
    // MULTILINE: Oniguruma's ^ and $ are anchors of lines. UCP: \s, \w and \d go by Unicode.
    constexpr uint32_t kOptions = PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C;
    auto code = std::make_shared<Code>();
    code->where = std::move(where);
    code->pattern.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), kOptions, &error,
                                      &offset, context.get()));
    LC_REQUIRE(BadInput, code->pattern != nullptr, "{}: the pattern does not compile at byte {}: {}", code->where,
               offset, message_of(error));
    code->jit = pcre2_jit_compile(code->pattern.get(), PCRE2_JIT_COMPLETE) == 0;
    code_ = std::move(code);
}

std::optional<Span> Regex::find(std::string_view text, size_t from, RegexScratch& scratch) const {
    const auto subject = reinterpret_cast<PCRE2_SPTR>(text.data());
    RegexScratch::State& state = *scratch.state_;
    int result = PCRE2_ERROR_JIT_STACKLIMIT;
    if (code_->jit)
        result =
            pcre2_jit_match(code_->pattern.get(), subject, text.size(), from, 0, state.data.get(), state.context.get());
    if (result == PCRE2_ERROR_JIT_STACKLIMIT)  // the interpreter keeps its frames on the heap, up to the limit set
        result = pcre2_match(code_->pattern.get(), subject, text.size(), from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT,
                             state.data.get(), state.context.get());
    if (result == PCRE2_ERROR_NOMATCH) return std::nullopt;
    LC_REQUIRE(BadInput, result >= 0, "{}: the pattern fails on the text at byte {} of {}: {}", code_->where, from,
               text.size(), message_of(result));
    const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(state.data.get());
    // \K is refused above, so that a match never ends before it begins.
    return Span{ends[0], ends[1]};
}

}  // namespace lc::io
