// Helpers of the io tests: a scratch directory, and a check that bad input is refused in the promised way.
#pragma once
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "core/check.h"

namespace lc::io::test {

// A fresh directory, removed with everything in it.
class ScratchDir {
  public:
    ScratchDir() {
        std::string pattern = (std::filesystem::temp_directory_path() / "lolcats-test-XXXXXX").string();
        if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("mkdtemp failed for " + pattern);
        path_ = pattern;
    }
    ~ScratchDir() {
        std::error_code ignored;
        std::filesystem::remove_all(path_, ignored);
    }
    ScratchDir(const ScratchDir&) = delete;
    ScratchDir& operator=(const ScratchDir&) = delete;

    const std::filesystem::path& path() const { return path_; }
    std::filesystem::path operator/(std::string_view name) const { return path_ / name; }
    std::filesystem::path write(std::string_view name, std::string_view bytes) const {
        const std::filesystem::path target = path_ / name;
        std::ofstream(target, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
        return target;
    }

  private:
    std::filesystem::path path_;
};

// Runs `action` and demands lc::Error of `kind`, on one line, with every one of `parts` in its message.
template <class Action>
void expect_refused(Action&& action, const std::vector<std::string>& parts, ErrorKind kind = ErrorKind::BadInput) {
    try {
        action();
    } catch (const Error& error) {
        const std::string message = error.what();
        EXPECT_EQ(static_cast<int>(error.kind()), static_cast<int>(kind)) << message;
        EXPECT_EQ(message.find('\n'), std::string::npos) << message;
        EXPECT_LT(message.size(), 1000u) << message;
        for (const std::string& part : parts)
            EXPECT_NE(message.find(part), std::string::npos) << part << " in: " << message;
        return;
    } catch (const std::exception& other) {
        ADD_FAILURE() << "not an lc::Error: " << other.what();
        return;
    }
    ADD_FAILURE() << "accepted";
}

}  // namespace lc::io::test
