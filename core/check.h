// Errors. Everything that can go wrong ends in lc::Error with a one-line message that names what, where, expected and
// actual; only apps/ turn it into an exit code. No assert, no abort, no exit() in the libraries.
#pragma once
#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace lc {

// The value is the process's exit code (documented in --help).
enum class ErrorKind : int {
    Internal = 1,     // a bug, or a misuse of the API (shapes that do not fit)
    Usage = 2,        // command line or configuration
    BadInput = 3,     // model, tokenizer, adapter or data file
    Resource = 4,     // memory, disk, no such device
    Numerics = 5,     // non-finite or diverged
    Distributed = 6,  // peer lost, timeout, mismatch
    Checkpoint = 7,   // checkpoint missing, corrupt or incompatible
};

class Error : public std::runtime_error {
  public:
    Error(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
    ErrorKind kind() const { return kind_; }

  private:
    ErrorKind kind_;
};

// Out of line and cold: a check costs its caller a compare and a call.
[[noreturn, gnu::cold]] void vfail(ErrorKind kind, fmt::string_view format, fmt::format_args args);

template <class... Args>
[[noreturn, gnu::cold]] void fail(ErrorKind kind, fmt::format_string<Args...> format, Args&&... args) {
    vfail(kind, format, fmt::make_format_args(args...));
}

}  // namespace lc

// Contract of an API: LC_CHECK(x.rank() == 4, "hedgehog: x must be [B,H,T,D], got {}", x.shape())
#define LC_CHECK(condition, ...)                                        \
    do {                                                                \
        if (!(condition)) [[unlikely]]                                  \
            ::lc::fail(::lc::ErrorKind::Internal, __VA_ARGS__);         \
    } while (false)

// The same for what comes from outside: LC_REQUIRE(BadInput, n >= 8, "{}: file has {} bytes, a header needs 8", path, n)
#define LC_REQUIRE(kind, condition, ...)                                \
    do {                                                                \
        if (!(condition)) [[unlikely]]                                  \
            ::lc::fail(::lc::ErrorKind::kind, __VA_ARGS__);             \
    } while (false)
