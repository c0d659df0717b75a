#include "train/checkpoint.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <tuple>

#include "core/log.h"
#include "io/file.h"
#include "io/safetensors.h"

namespace lc::train {
namespace {

namespace fs = std::filesystem;
using io::Json;

constexpr const char* kTensorsFile = "state.safetensors";
constexpr const char* kStateFile = "state.json";
constexpr const char* kManifestFile = "manifest.json";
constexpr const char* kFormat = "lolcats-checkpoint";
constexpr int64_t kVersion = 1;
constexpr int64_t kLargestJson = int64_t{64} << 20;

Json describe_file(const fs::path& directory, const char* name) {
    return {{"name", name},
            {"bytes", static_cast<int64_t>(fs::file_size(directory / name))},
            {"xxh3_128", io::xxh3_128_hex_of_file(directory / name)}};
}

std::string directory_name(const std::string& stage, int64_t step) {
    return fmt::format("step-{}-{:08}", stage, step);
}

std::string written_form(const Json& json) {
    return json.dump(1) + "\n";
}

// The manifest covers the files; its own hash covers the manifest.
std::string self_hash(Json manifest) {
    manifest.erase("xxh3_128");
    return io::xxh3_128_hex(std::string_view(manifest.dump()));
}

void verify_file(const fs::path& directory, const Json& entry, const std::string& source) {
    const io::JsonObject object(entry, source, "files");
    const std::string name = object.get_string("name");  // a known one: it must not lead out of the directory
    LC_REQUIRE(Checkpoint, name == kTensorsFile || name == kStateFile, "{}: lists an unknown file", source);
    const fs::path path = directory / name;
    const int64_t wanted = object.get_int("bytes", 0, std::numeric_limits<int64_t>::max());
    const int64_t bytes = io::InputFile(path).size();
    LC_REQUIRE(Checkpoint, bytes == wanted, "{}: has {} bytes, the checkpoint was written with {}", path.string(),
               bytes, wanted);
    LC_REQUIRE(Checkpoint, io::xxh3_128_hex_of_file(path) == object.get_string("xxh3_128"),
               "{}: content differs from what was written (checksum)", path.string());
}

// Leaves the files unread. Returns the manifest.
Json verify(const fs::path& directory) {
    const fs::path path = directory / kManifestFile;
    const std::string source = path.string();
    const std::string text = io::read_file(path, kLargestJson);
    const Json manifest = io::parse_json(text, source);
    const io::JsonObject object(manifest, source);
    LC_REQUIRE(Checkpoint, object.get_string("xxh3_128") == self_hash(manifest) && text == written_form(manifest),
               "{}: content differs from what was written (checksum)", source);
    LC_REQUIRE(Checkpoint, object.get_string("format") == kFormat && object.get_int("version", 0, 1 << 20) == kVersion,
               "{}: is {} version {}, this program reads {} version {}", source, object.get_string("format"),
               object.get_int("version", 0, 1 << 20), kFormat, kVersion);
    const Json& files = object.get_array("files");
    LC_REQUIRE(Checkpoint, files.size() == 2, "{}: lists {} files, expected 2", source, files.size());
    for (const Json& file : files) verify_file(directory, file, source);
    return manifest;
}

// Whatever is wrong with a checkpoint's files is the checkpoint's fault, whoever found it.
template <class F>
decltype(auto) as_checkpoint_error(F&& f) {
    try {
        return f();
    } catch (const Error& error) {
        if (error.kind() == ErrorKind::Resource) throw;
        throw Error(ErrorKind::Checkpoint, error.what());
    }
}

bool verifies(const fs::path& directory) {
    try {
        verify(directory);
        return true;
    } catch (const Error&) {
        return false;
    }
}

void require_space(const fs::path& directory, const Checkpoint& checkpoint) {
    double bytes = 1 << 20;  // the JSON files and headers
    for (const auto& [name, tensor] : checkpoint.tensors) bytes += static_cast<double>(tensor.nbytes());
    std::error_code error;
    const fs::space_info space = fs::space(directory, error);
    LC_REQUIRE(Resource, error || static_cast<double>(space.available) >= 1.2 * bytes,
               "{}: a checkpoint needs {:.0f} bytes, {} are free; the last one is untouched", directory.string(),
               1.2 * bytes, space.available);
}

}  // namespace

const Tensor& Checkpoint::tensor(const std::string& name) const {
    const auto found = std::ranges::find(tensors, name, [](const auto& entry) { return entry.first; });
    LC_REQUIRE(Checkpoint, found != tensors.end(), "checkpoint of stage {} step {}: holds no '{}'", stage, step, name);
    return found->second;
}

Checkpoint read_checkpoint(const fs::path& directory) {
    return as_checkpoint_error([&] {
        LC_REQUIRE(Checkpoint, fs::is_directory(directory), "{}: no checkpoint directory", directory.string());
        const Json manifest = verify(directory);
        const io::JsonObject object(manifest, (directory / kManifestFile).string());
        Checkpoint checkpoint{.stage = object.get_string("stage"),
                              .step = object.get_int("step", 0, std::numeric_limits<int64_t>::max()),
                              .model_hash = object.get_string("model_hash"),
                              .tensors = {},
                              .state = io::read_json_file(directory / kStateFile)};
        const std::string name = fs::path(directory).lexically_normal().filename().string();
        LC_REQUIRE(Checkpoint, name == directory_name(checkpoint.stage, checkpoint.step),
                   "{}: holds stage {} step {}; it was renamed", directory.string(), checkpoint.stage, checkpoint.step);
        const io::SafetensorsFile file(directory / kTensorsFile);
        for (const io::TensorInfo& info : file.tensors())
            checkpoint.tensors.emplace_back(info.name, file.read(info.name));
        return checkpoint;
    });
}

CheckpointStore::CheckpointStore(fs::path directory, std::vector<std::string> stages, int64_t keep)
    : directory_(std::move(directory)), stages_(std::move(stages)), keep_(keep) {
    LC_REQUIRE(Usage, keep >= 2, "--keep must be at least 2 (a checkpoint may be damaged), got {}", keep);
    std::error_code error;
    fs::create_directories(directory_, error);
    LC_REQUIRE(Resource, fs::is_directory(directory_), "{}: cannot be created: {}", directory_.string(),
               error.message());
}

fs::path CheckpointStore::path_of(const std::string& stage, int64_t step) const {
    return directory_ / directory_name(stage, step);
}

std::vector<CheckpointStore::Entry> CheckpointStore::list() const {
    std::vector<Entry> entries;
    for (const fs::directory_entry& item : fs::directory_iterator(directory_)) {
        const std::string name = item.path().filename().string();
        for (const std::string& stage : stages_) {
            const std::string prefix = "step-" + stage + "-";
            if (!name.starts_with(prefix) || !item.is_directory()) continue;
            int64_t step = -1;
            const char *begin = name.data() + prefix.size(), *end = name.data() + name.size();
            const auto [stop, code] = std::from_chars(begin, end, step);
            if (code == std::errc() && stop == end && step >= 0) entries.push_back({item.path(), stage, step});
        }
    }
    const auto order = [&](const Entry& e) { return std::tuple(std::ranges::find(stages_, e.stage), e.step); };
    std::ranges::sort(entries, [&](const Entry& a, const Entry& b) { return order(a) > order(b); });
    return entries;
}

std::optional<std::pair<CheckpointStore::Entry, Checkpoint>> CheckpointStore::newest() const {
    const std::vector<Entry> entries = list();
    std::string first_error;
    for (const Entry& entry : entries) {
        try {
            return std::pair(entry, read_checkpoint(entry.path));
        } catch (const Error& error) {
            if (error.kind() != ErrorKind::Checkpoint) throw;
            log_warning("damaged checkpoint passed over: {}", error.what());
            if (first_error.empty()) first_error = error.what();
        }
    }
    LC_REQUIRE(Checkpoint, entries.empty(), "no intact checkpoint in {}: {}", directory_.string(), first_error);
    return std::nullopt;
}

void CheckpointStore::save(const Checkpoint& checkpoint, int64_t best_step) {
    const fs::path target = path_of(checkpoint.stage, checkpoint.step);
    if (fs::exists(target)) {
        if (verifies(target)) return;
        remove(target);
    }
    require_space(directory_, checkpoint);
    io::AtomicDirectory directory(target);
    io::write_safetensors(directory.path() / kTensorsFile, checkpoint.tensors);
    io::write_file_atomic(directory.path() / kStateFile, written_form(checkpoint.state));
    Json manifest = {
        {"format", kFormat},
        {"version", kVersion},
        {"stage", checkpoint.stage},
        {"step", checkpoint.step},
        {"model_hash", checkpoint.model_hash},
        {"config_hash", io::xxh3_128_hex(std::string_view(checkpoint.state.value("config", Json()).dump()))},
        {"files", {describe_file(directory.path(), kTensorsFile), describe_file(directory.path(), kStateFile)}}};
    manifest["xxh3_128"] = self_hash(manifest);
    io::write_file_atomic(directory.path() / kManifestFile, manifest.dump(1) + "\n");
    directory.commit();
    purge(checkpoint, best_step);
}

void CheckpointStore::remove(const fs::path& path) const {
    // Renamed first: a kill in the middle of the removal must not leave half a checkpoint under a valid name.
    const fs::path doomed = directory_ / (std::string(io::kTemporaryPrefix) + path.filename().string() + "-removed");
    std::error_code error;
    fs::remove_all(doomed, error);
    fs::rename(path, doomed, error);
    if (!error) fs::remove_all(doomed, error);
    if (error) log_warning("{}: cannot be removed: {}", path.string(), error.message());
}

void CheckpointStore::purge(const Checkpoint& latest, int64_t best_step) const {
    const std::vector<Entry> entries = list();
    for (size_t i = static_cast<size_t>(keep_); i < entries.size(); ++i)
        if (entries[i].stage != latest.stage || entries[i].step != best_step) remove(entries[i].path);
    // What a killed process left behind; the run's lock says that nobody else writes here.
    for (const fs::directory_entry& item : fs::directory_iterator(directory_)) {
        std::error_code ignored;
        if (item.path().filename().string().starts_with(io::kTemporaryPrefix)) fs::remove_all(item.path(), ignored);
    }
}

void CheckpointStore::discard_after(const Entry& entry) {
    for (const Entry& other : list()) {
        if (other.path == entry.path) return;
        remove(other.path);
    }
}

RunLock::RunLock(const fs::path& run) {
    const fs::path path = run / ".lock";
    fd_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    LC_REQUIRE(Resource, fd_ >= 0, "{}: cannot be opened: {}", path.string(), std::strerror(errno));
    if (::flock(fd_, LOCK_EX | LOCK_NB) == 0) return;
    const int reason = errno;
    ::close(fd_);
    LC_REQUIRE(Checkpoint, reason != EWOULDBLOCK, "{}: another process is training in this directory", run.string());
    fail(ErrorKind::Resource, "{}: cannot be locked: {}", path.string(), std::strerror(reason));
}

RunLock::~RunLock() {
    ::close(fd_);
}

}  // namespace lc::train
