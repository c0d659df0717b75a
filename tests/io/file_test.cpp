#include "io/file.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>

#include "tests/io/faults.h"

namespace lc::io {
namespace {

namespace fs = std::filesystem;
using test::expect_refused;

int64_t entries(const fs::path& dir) {
    return std::distance(fs::directory_iterator(dir), fs::directory_iterator());
}

TEST(File, ReadsWholeFilesAndParts) {
    const test::ScratchDir dir;
    const fs::path path = dir.write("a", std::string("0123\0x", 6));
    EXPECT_EQ(read_file(path, 6), std::string("0123\0x", 6));
    EXPECT_EQ(read_file(dir.write("empty", ""), 0), "");
    InputFile file(path);
    std::string part(2, ' ');
    file.read_at(1, std::as_writable_bytes(std::span(part)));
    EXPECT_EQ(part, "12");
    const InputFile moved = std::move(file);
    EXPECT_EQ(moved.size(), 6);
    fs::create_symlink(path, dir / "link");
    EXPECT_EQ(read_file(dir / "link", 100).size(), 6u);
}

TEST(File, RefusesWhatIsNoRegularFile) {
    const test::ScratchDir dir;
    ASSERT_EQ(::mkfifo((dir / "fifo").c_str(), 0600), 0);
    fs::create_symlink("/dev/zero", dir / "zero");
    fs::create_symlink(dir.write("a", "x"), dir / "link");
    fs::create_symlink(dir / "loop", dir / "loop");
    expect_refused([&] { InputFile(dir / "fifo"); }, {"fifo", "regular file"});
    expect_refused([&] { InputFile(dir.path()); }, {"regular file"});
    expect_refused([&] { InputFile(dir / "zero"); }, {"zero", "regular file"});
    expect_refused([&] { InputFile(dir / "loop"); }, {"loop", "cannot be opened"});
    expect_refused([&] { InputFile(dir / "link", {.follow_symlinks = false}); }, {"link", "symbolic link"});
    expect_refused([&] { InputFile(dir / "none"); }, {"none", "No such file"});
    expect_refused([&] { read_file(dir / "a", 0); }, {"a: has 1 bytes", "at most 0"});
}

TEST(File, ReportsTruncationInUse) {
    const test::ScratchDir dir;
    const InputFile file(dir.write("a", std::string(100, 'x')));
    std::string bytes(100, ' ');
    fs::resize_file(dir / "a", 40);
    expect_refused([&] { file.read_at(0, std::as_writable_bytes(std::span(bytes))); }, {"a: ends at byte 40", "100"});
    expect_refused([&] { file.check_unchanged(); }, {"had 100 bytes, has 40"});
}

TEST(AtomicFile, ReplacesOrLeavesTheOldContent) {
    const test::ScratchDir dir;
    const fs::path path = dir.write("a", "old");
    {
        AtomicFile file(path);
        file.write("half");
    }  // never committed
    EXPECT_EQ(read_file(path, 100), "old");
    EXPECT_EQ(entries(dir.path()), 1);
    write_file_atomic(path, "new");
    EXPECT_EQ(read_file(path, 100), "new");
    EXPECT_EQ(entries(dir.path()), 1);
    expect_refused([&] { write_file_atomic(dir / "no/such/file", "x"); }, {"no/such/file", "created", "No such file"},
                   ErrorKind::Resource);
    expect_refused([&] { write_file_atomic(dir.path().string() + "/", "x"); }, {"names no file"}, ErrorKind::Usage);
}

TEST(AtomicFile, AFailedWriteKeepsTheOldFile) {
    const test::ScratchDir dir;
    const fs::path path = dir.write("a", "old");
    const auto previous = ::signal(SIGXFSZ, SIG_IGN);
    rlimit old_limit{};
    ::getrlimit(RLIMIT_FSIZE, &old_limit);
    const rlimit limit{1000, old_limit.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    expect_refused([&] { write_file_atomic(path, std::string(5000, 'x')); }, {"a: cannot be written", "too large"},
                   ErrorKind::Resource);
    ::setrlimit(RLIMIT_FSIZE, &old_limit);
    ::signal(SIGXFSZ, previous);
    EXPECT_EQ(read_file(path, 100), "old");
    EXPECT_EQ(entries(dir.path()), 1);
}

TEST(AtomicDirectory, AppearsCompleteOrNotAtAll) {
    const test::ScratchDir dir;
    const fs::path target = dir / "ckpt";
    {
        AtomicDirectory directory(target);
        write_file_atomic(directory.path() / "x", "1");
    }
    EXPECT_EQ(entries(dir.path()), 0);
    {
        AtomicDirectory directory(target.string() + "/");
        EXPECT_TRUE(directory.path().filename().string().starts_with(kTemporaryPrefix));
        fs::create_directory(directory.path() / "sub");
        write_file_atomic(directory.path() / "sub/x", "1");
        EXPECT_FALSE(fs::exists(target));
        directory.commit();
    }
    EXPECT_EQ(read_file(target / "sub/x", 10), "1");
    EXPECT_EQ(entries(dir.path()), 1);
    expect_refused([&] { AtomicDirectory again(target); }, {"ckpt", "already exists"}, ErrorKind::Usage);
    AtomicDirectory late(dir / "late");
    fs::create_directory(dir / "late");  // someone else was faster
    expect_refused([&] { late.commit(); }, {"late", "already exists"}, ErrorKind::Usage);
}

TEST(Hash, IsThatOfXxh128sum) {
    const test::ScratchDir dir;
    EXPECT_EQ(xxh3_128_hex(std::string_view()), "99aa06d3014798d86001c324468d497f");
    const std::string big(9'000'000, 'q');
    EXPECT_EQ(xxh3_128_hex_of_file(dir.write("big", big)), xxh3_128_hex(big));
    EXPECT_EQ(xxh3_128_hex_of_file(dir.write("empty", "")), "99aa06d3014798d86001c324468d497f");
}

}  // namespace
}  // namespace lc::io
