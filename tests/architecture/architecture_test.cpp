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

TEST(Architecture, OnlyAppsMayExit) {
    for (const auto& [room, allowed] : kMayInclude) {
        if (room == "apps") continue;
        for (const fs::path& path : sources_of(room))
            for (const std::string& line : lines_of(path))
                for (const char* call : {" exit(", "std::exit(", "abort(", " assert("})  // fine in a comment
                    EXPECT_GE(line.find(call), line.find("//")) << fs::relative(path, kRoot) << ": " << line;
    }
}

// Headers that the build precompiles (cmake/precompiled), with names that they declare. A file that uses a name includes its
// header, itself or through headers of ours: else it would compile only where headers are precompiled.
const std::map<std::string, std::vector<std::string>> kDeclares = {
    {"<algorithm>", {"std::sort(", "std::min(", "std::max(", "std::clamp(", "std::copy(", "std::fill("}},
    {"<array>", {"std::array<"}},
    {"<atomic>", {"std::atomic<"}},
    {"<cmath>", {"std::sqrt(", "std::exp(", "std::log(", "std::pow(", "std::isfinite(", "std::isnan(", "std::fabs("}},
    {"<cstring>", {"std::memcpy(", "std::memset(", "std::memcmp("}},
    {"<filesystem>", {"std::filesystem"}},
    {"<fmt/format.h>", {"fmt::format(", "fmt::print(", "fmt::format_to("}},
    {"<fstream>", {"std::ifstream", "std::ofstream"}},
    {"<functional>", {"std::function<"}},
    {"<gmock/gmock.h>", {"EXPECT_THAT(", "ASSERT_THAT("}},
    {"<gtest/gtest.h>", {"EXPECT_EQ(", "ADD_FAILURE("}},
    {"<limits>", {"std::numeric_limits<"}},
    {"<map>", {"std::map<"}},
    {"<memory>", {"std::unique_ptr<", "std::shared_ptr<", "std::make_unique<", "std::make_shared<"}},
    {"<mutex>", {"std::mutex", "std::lock_guard", "std::scoped_lock", "std::unique_lock"}},
    {"<nlohmann/json.hpp>", {"Json::array(", "Json::object(", "Record::object(", "nlohmann::ordered_json::"}},
    {"<optional>", {"std::optional<", "std::nullopt"}},
    {"<span>", {"std::span<"}},
    {"<stdexcept>", {"std::runtime_error", "std::invalid_argument"}},
    {"<string>", {"std::string(", "std::string&", "std::string ", "std::to_string("}},
    {"<string_view>", {"std::string_view"}},
    {"<unordered_map>", {"std::unordered_map<"}},
    {"<vector>", {"std::vector<"}},
};

// "<vector>" and "core/tensor.h": what `path` includes, and what that includes in turn.
void collect_includes(const fs::path& path, std::set<std::string>& found) {
    for (const std::string& line : lines_of(path)) {
        if (!line.starts_with("#include ")) continue;
        const bool ours = line[9] == '"';
        const std::string name = line.substr(ours ? 10 : 9, line.find(ours ? '"' : '>', 10) - (ours ? 10 : 8));
        if (found.insert(name).second && ours) collect_includes(kRoot / name, found);
    }
}

TEST(Architecture, FilesIncludeWhatTheyUse) {
    std::vector<std::string> rooms = {"tests", "bench"};
    for (const auto& [room, allowed] : kMayInclude) rooms.push_back(room);
    for (const std::string& room : rooms)
        for (const fs::path& path : sources_of(room)) {
            if (path.extension() == ".cu" || path.filename() == "architecture_test.cpp") continue;  // not precompiled; the table
            std::set<std::string> included;
            collect_includes(path, included);
            for (const auto& [header, names] : kDeclares) {
                if (included.contains(header)) continue;
                for (const std::string& line : lines_of(path))
                    for (const std::string& name : names)
                        EXPECT_GE(line.find(name), line.find("//"))  // fine in a comment
                            << fs::relative(path, kRoot) << " lacks #include " << header << ": " << line;
            }
        }
}

}  // namespace
