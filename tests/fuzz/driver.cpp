// libFuzzer's entry: LC_FUZZ_TARGET names the target.
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "core/log.h"
#include "tests/fuzz/targets.h"

namespace {

const lc::fuzz::Target* target = nullptr;

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) {
    lc::set_log_level(lc::LogLevel::Error);
    const char* name = std::getenv("LC_FUZZ_TARGET");
    target = lc::fuzz::find_target(name ? name : "");
    if (target) return 0;
    std::fputs("set LC_FUZZ_TARGET to one of:", stderr);
    for (const lc::fuzz::Target& known : lc::fuzz::targets()) std::fprintf(stderr, " %s", known.name.data());
    std::fputs("\n", stderr);
    std::exit(2);
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    target->run({reinterpret_cast<const char*>(data), size});
    return 0;
}
