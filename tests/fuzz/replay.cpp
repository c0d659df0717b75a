// Runs a target over inputs that are known already, and over simple changes of each: no fuzzer and no clang needed.
//
//   fuzz_replay TARGET CORPUS.zip REGRESSIONS [CHANGES]
//
// The corpus is an archive of stored files; REGRESSIONS a folder, whose files named TARGET-* are inputs that were findings once. Every
// input is followed by CHANGES changed forms of it (default 3), always the same ones. A finding ends the process, after its input was named.
#include <fmt/format.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "core/log.h"
#include "core/rng.h"
#include "io/file.h"
#include "io/zip_archive.h"
#include "tests/fuzz/support.h"
#include "tests/fuzz/targets.h"

namespace lc::fuzz {
namespace {

struct Input {
    std::string name, bytes;
};

constexpr int64_t kLargest = int64_t{1} << 20;

std::vector<Input> inputs_of(const Target& target, const std::filesystem::path& corpus,
                             const std::filesystem::path& regressions) {
    std::vector<Input> inputs;
    const io::ZipArchive archive(corpus);
    for (const io::ZipMember& member : archive.members())
        inputs.push_back({member.name, archive.read_text(member, kLargest)});
    for (const auto& entry : std::filesystem::directory_iterator(regressions)) {
        const std::string name = entry.path().filename().string();
        if (name.starts_with(fmt::format("{}-", target.name)))
            inputs.push_back({name, io::read_file(entry.path(), kLargest)});
    }
    std::ranges::sort(inputs, {}, &Input::name);
    return inputs;
}

// One byte exchanged, a part left out, a part doubled, or the end cut off.
std::string changed(const std::string& bytes, const Random& random, uint64_t which) {
    if (bytes.empty()) return bytes;
    const auto below = [&](size_t bound, uint64_t use) {
        return static_cast<size_t>(random.below(bound, 4 * which + use));
    };
    const size_t begin = below(bytes.size(), 0), length = 1 + below(std::min<size_t>(16, bytes.size() - begin), 1);
    std::string result = bytes;
    switch (below(4, 2)) {
        case 0:
            result[begin] = static_cast<char>(below(256, 3));
            return result;
        case 1:
            return result.erase(begin, length);
        case 2:
            return result.insert(begin, bytes, begin, length);
        default:
            return result.substr(0, begin);
    }
}

// Names the input that the process ends in, if it does.
const Input* running = nullptr;
void name_running(int signal) {
    if (running) std::fprintf(stderr, "in %s\n", running->name.c_str());
    std::signal(signal, SIG_DFL);
    std::raise(signal);
}

int replay(const Target& target, const std::vector<Input>& inputs, uint64_t changes) {
    std::signal(SIGABRT, name_running);
    uint64_t runs = 0;
    for (const Input& input : inputs) {
        running = &input;
        target.run(input.bytes);
        const Random random(runs);
        for (uint64_t i = 0; i < changes; ++i) target.run(changed(input.bytes, random, i));
        runs += 1 + changes;
    }
    fmt::print("{}: {} inputs, {} runs\n", target.name, inputs.size(), runs);
    return inputs.empty() ? 1 : 0;
}

}  // namespace
}  // namespace lc::fuzz

int main(int count, char** arguments) {
    const lc::fuzz::Target* target = count >= 4 ? lc::fuzz::find_target(arguments[1]) : nullptr;
    if (target == nullptr || count > 5) {
        fmt::print(stderr, "usage: fuzz_replay TARGET CORPUS.zip REGRESSIONS [CHANGES]\n");
        return 2;
    }
    lc::set_log_level(lc::LogLevel::Error);
    const uint64_t changes = count == 5 ? std::strtoull(arguments[4], nullptr, 10) : 3;
    return lc::fuzz::replay(*target, lc::fuzz::inputs_of(*target, arguments[2], arguments[3]), changes);
}
