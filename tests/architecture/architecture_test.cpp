// The rules of the house that a compiler does not check, in words.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace fs = std::filesystem;

namespace {

const fs::path kRoot = LC_SOURCE_DIR;

// room -> rooms it may include. "tests and bench see everything; nothing sees them."
const std::map<std::string, std::set<std::string>> kMayInclude = {
    {"core", {"core"}},
    {"kernels", {"kernels", "core"}},
    {"autograd", {"autograd", "kernels", "core"}},
    {"io", {"io", "core"}},
    {"models", {"models", "io", "autograd", "kernels", "core"}},
    {"train", {"train", "models", "io", "autograd", "kernels", "core"}},
    {"apps", {"apps", "train", "models", "io", "autograd", "kernels", "core"}},
};

std::vector<std::string> lines_of(const fs::path& path) {
    std::ifstream file(path);
    std::vector<std::string> lines;
    for (std::string line; std::getline(file, line);) lines.push_back(line);
    return lines;
}

std::vector<fs::path> sources_of(const std::string& room) {
    std::vector<fs::path> paths;
    for (const auto& entry : fs::recursive_directory_iterator(kRoot / room)) {
        const std::string extension = entry.path().extension().string();
        if (extension == ".h" || extension == ".cpp" || extension == ".cu") paths.push_back(entry.path());
    }
    std::sort(paths.begin(), paths.end());
    return paths;
}

TEST(Architecture, IncludesPointDownwards) {
    for (const auto& [room, allowed] : kMayInclude)
        for (const fs::path& path : sources_of(room))
            for (const std::string& line : lines_of(path)) {
                if (!line.starts_with("#include \"")) continue;
                const std::string target = line.substr(10, line.find('/', 10) - 10);
                EXPECT_TRUE(allowed.contains(target))
                    << fs::relative(path, kRoot) << ": room '" << room << "' may not include '" << target << "': " << line;
            }
}

TEST(Architecture, EveryRoomHasAReadme) {
    std::vector<std::string> rooms = {"tests", "bench"};
    for (const auto& [room, allowed] : kMayInclude) rooms.push_back(room);
    for (const std::string& room : rooms) EXPECT_TRUE(fs::exists(kRoot / room / "README.md")) << room << " lacks README.md";
}

TEST(Architecture, FilesStayReadable) {
    for (const auto& [room, allowed] : kMayInclude)
        for (const fs::path& path : sources_of(room)) {
            const auto lines = lines_of(path);
            EXPECT_LE(lines.size(), 450u) << fs::relative(path, kRoot) << " has " << lines.size() << " lines: split it";
        }
}

TEST(Architecture, KernelsAllocateNoTensorsAndKnowNoNodes) {
    for (const fs::path& path : sources_of("kernels"))
        for (const std::string& line : lines_of(path)) {
            EXPECT_EQ(line.find("Tensor::empty"), std::string::npos) << fs::relative(path, kRoot) << ": " << line;
            EXPECT_EQ(line.find("#include \"autograd"), std::string::npos) << fs::relative(path, kRoot) << ": " << line;
        }
}

// Work is ordered by streams and events; memory comes from the allocator. A warm step must not stop the whole device.
TEST(Architecture, NothingWaitsForAWholeDevice) {
    for (const auto& [room, allowed] : kMayInclude)
        for (const fs::path& path : sources_of(room))
            for (const std::string& line : lines_of(path)) {
                EXPECT_EQ(line.find("cudaDeviceSynchronize"), std::string::npos) << fs::relative(path, kRoot) << ": " << line;
                if (path.filename() == "runtime.cpp") continue;
                EXPECT_EQ(line.find("cudaMalloc"), std::string::npos) << fs::relative(path, kRoot) << ": " << line;
            }
}

TEST(Architecture, OnlyAppsMayExit) {
    for (const auto& [room, allowed] : kMayInclude) {
        if (room == "apps") continue;
        for (const fs::path& path : sources_of(room))
            for (const std::string& line : lines_of(path))
                for (const char* call : {" exit(", "std::exit(", "abort(", " assert("})  // fine in a comment
                    EXPECT_GE(line.find(call), line.find("//")) << fs::relative(path, kRoot) << ": " << line;
    }
}

}  // namespace
