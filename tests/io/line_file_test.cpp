#include "io/line_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <fstream>

#include "io/file.h"
#include "tests/io/faults.h"

namespace lc::io {
namespace {

using test::expect_refused;
using testing::ElementsAre;
namespace fs = std::filesystem;

class LineFileTest : public testing::Test {
  protected:
    fs::path path() const { return directory_ / "out.jsonl"; }
    void put(std::string_view text) const { std::ofstream(path(), std::ios::binary) << text; }
    std::string all() const { return read_file(path(), 1 << 20); }
    const test::ScratchDir directory_;
};

TEST_F(LineFileTest, GrowsByWholeLines) {
    {
        LineFile file(path());
        EXPECT_TRUE(file.lines().empty());
        file.append("one"), file.append(""), file.append("three");
        file.sync();
    }
    EXPECT_EQ(all(), "one\n\nthree\n");
    LineFile again(path());
    EXPECT_THAT(again.lines(), ElementsAre("one", "", "three"));
    again.append("four");
    EXPECT_EQ(all(), "one\n\nthree\nfour\n");
    EXPECT_THROW(again.append("a\nb"), Error);
}

TEST_F(LineFileTest, CutsOffWhatADyingMachineLeft) {
    for (const std::string_view left : {"x", "half a li", "\xff"}) {
        put("one\ntwo\n" + std::string(left));
        LineFile file(path());
        EXPECT_THAT(file.lines(), ElementsAre("one", "two"));
        EXPECT_EQ(all(), "one\ntwo\n");
        file.append("three");
        EXPECT_EQ(all(), "one\ntwo\nthree\n");
    }
    put("no line at all");
    EXPECT_TRUE(LineFile(path()).lines().empty());
    EXPECT_EQ(all(), "");
}

TEST_F(LineFileTest, Refusals) {
    {
        const LineFile first(path());
        expect_refused([&] { LineFile{path()}; }, {"out.jsonl", "another process"}, ErrorKind::Usage);
    }
    LineFile free_again(path());
    free_again.append("12345");
    expect_refused([&] { LineFile{directory_ / "absent/out"}; }, {"absent/out", "opened"}, ErrorKind::Resource);
    expect_refused([&] { LineFile{directory_.path()}; }, {"opened"}, ErrorKind::Resource);
    ASSERT_EQ(::mkfifo((directory_ / "pipe").c_str(), 0600), 0);
    expect_refused([&] { LineFile{directory_ / "pipe"}; }, {"pipe", "regular file"});
    const fs::path large = directory_.write("large", "0123456789\n");
    expect_refused([&] { LineFile(large, 5); }, {"large", "more than 5"});
}

}  // namespace
}  // namespace lc::io
