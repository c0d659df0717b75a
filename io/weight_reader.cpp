#include "io/weight_reader.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <system_error>
#include <thread>
#include <tuple>
#include <vector>

#include "core/cuda/runtime.h"
#include "core/cuda/stream.h"
#include "core/log.h"
#include "core/parallel.h"
#include "io/text.h"

namespace lc::io {
namespace {

constexpr int kMaxThreads = 256;
constexpr int kSpareSlots = 2;                         // being uploaded while every thread reads into its own
constexpr int64_t kConvertedBytes = int64_t{1} << 20;  // stays in a core's cache between being read and converted

// Consecutive elements of one tensor: what a thread reads at a time.
struct Piece {
    const SafetensorsFile* file;
    const TensorInfo* info;
    int64_t offset, bytes;  // in the tensor, as the file has it
    DType stored;
    TensorView target;  // of these elements, rank 1

    bool converts() const { return stored != target.dtype; }
    std::byte* target_bytes() const { return target.base + target.layout.offset * size_of(target.dtype); }
};

// The first `count` elements of `view` from element `first` on, of a view without gaps.
TensorView flat(TensorView view, int64_t first, int64_t count) {
    const int64_t offset = view.layout.offset + first;
    view.layout = Layout::contiguous({count});
    view.layout.offset = offset;
    return view;
}

void check_request(const WeightRequest& request, Device device, const SafetensorsFile& file, const TensorInfo& info) {
    const Tensor& target = request.target;
    LC_CHECK(target.defined() && is_floating(target.dtype()) && target.is_contiguous(),
             "read_weights: the target of '{}' must be defined, floating-point and contiguous",
             printable(request.name));
    LC_CHECK(target.device() == device, "read_weights: the target of '{}' is on {}, others are on {}",
             printable(request.name), target.device().str(), device.str());
    const std::string source = file.path().string();
    LC_REQUIRE(BadInput, is_floating(tensor_dtype(info, source)),
               "{}: tensor '{}' must hold floating-point numbers, got {}", source, printable(info.name), info.dtype);
    const Shape& wanted = target.shape();
    LC_REQUIRE(BadInput, std::ranges::equal(info.shape, std::span(wanted.begin(), wanted.end())),
               "{}: tensor '{}' must be {}, got [{}]", source, printable(info.name), wanted,
               fmt::join(info.shape, ","));
}

// In the order of the files, which is how disks and read-ahead like it.
std::vector<Piece> pieces_of(const SafetensorsModel& model, std::span<const WeightRequest> requests,
                             int64_t piece_bytes) {
    std::vector<Piece> pieces;
    for (const WeightRequest& request : requests) {
        const SafetensorsFile& file = model.file_of(request.name);
        const TensorInfo& info = file.info(request.name);
        check_request(request, requests[0].target.device(), file, info);
        const DType stored = tensor_dtype(info, file.path().string());
        const int64_t width = size_of(stored), most = std::max<int64_t>(piece_bytes / width, 1);
        const int64_t count = request.target.numel();
        for (int64_t first = 0; first < count; first += most) {
            const int64_t n = std::min(most, count - first);
            pieces.push_back({&file, &info, first * width, n * width, stored, flat(request.target.view(), first, n)});
        }
    }
    std::ranges::sort(pieces, {}, [](const Piece& p) { return std::tuple(p.file, p.info->begin + p.offset); });
    return pieces;
}

// bytes.size() bytes of the piece from `offset` on. The file names itself and the place; the tensor is added here.
void read_stored(const Piece& piece, int64_t offset, std::span<std::byte> bytes) {
    try {
        piece.file->read_bytes(*piece.info, piece.offset + offset, bytes);
    } catch (const Error& error) {
        throw Error(error.kind(), fmt::format("{}; reading tensor '{}'", error.what(), printable(piece.info->name)));
    }
}

void read_to_host(const Piece& piece) {
    if (!piece.converts()) return read_stored(piece, 0, {piece.target_bytes(), static_cast<size_t>(piece.bytes)});
    const int64_t width = size_of(piece.stored);
    std::vector<std::byte> buffer(static_cast<size_t>(std::min(piece.bytes, kConvertedBytes)));
    for (int64_t done = 0; done < piece.bytes; done += std::ssize(buffer)) {
        const int64_t bytes = std::min(piece.bytes - done, std::ssize(buffer)), n = bytes / width;
        read_stored(piece, done, std::span(buffer).first(static_cast<size_t>(bytes)));
        copy_strided({buffer.data(), Layout::contiguous({n}), piece.stored, {}}, flat(piece.target, done / width, n));
    }
}

// Reads pieces into pinned buffers and queues their way to a CUDA device. Threads share it.
class Uploader {
  public:
    Uploader(Device device, std::span<const Piece> pieces, int threads);
    ~Uploader();
    Uploader(const Uploader&) = delete;
    Uploader& operator=(const Uploader&) = delete;

    void read(const Piece& piece);
    void finish();  // waits for all that is queued

  private:
    struct Slot {
        explicit Slot(int64_t bytes) : host(cuda::allocate_pinned(bytes)) {}
        cuda::PinnedBuffer host;
        cuda::Event uploaded;
    };
    // A stream and the place where its pieces wait for their conversion; with two, one copies while the other converts.
    struct Lane {
        explicit Lane(Device device) : stream(device.index) {}
        std::mutex mutex;
        cuda::OwnedStream stream;
        Tensor staging;  // undefined when no piece converts
    };

    Slot& take();
    void give(Slot& slot);
    void upload(const Piece& piece, Slot& slot);

    const Device device_;
    const int64_t slot_bytes_;
    const int max_slots_;
    std::mutex mutex_;
    int made_ = 0;  // or being made
    std::vector<std::unique_ptr<Slot>> slots_;
    std::deque<Slot*> free_;  // the longest given back first
    std::array<Lane, 2> lanes_;
    std::atomic<size_t> uploads_{0};
};

Uploader::Uploader(Device device, std::span<const Piece> pieces, int threads)
    : device_(device),
      slot_bytes_(std::ranges::max(pieces, {}, &Piece::bytes).bytes),
      max_slots_(threads + kSpareSlots),
      lanes_{Lane(device), Lane(device)} {
    // Not allocated on the lanes' streams: the allocator would keep blocks for streams that are gone.
    if (std::ranges::any_of(pieces, &Piece::converts))
        for (Lane& lane : lanes_) lane.staging = Tensor::empty({slot_bytes_}, DType::u8, device);
    synchronize(device);  // a block of memory may come with work of its last owner still queued
}

// Buffers and staging may not go while copies use them, also when an error ends the reading early.
Uploader::~Uploader() {
    try {
        finish();
    } catch (const std::exception& error) {
        log_line(LogLevel::Error, error.what());
    }
}

void Uploader::finish() {
    for (Lane& lane : lanes_) cuda::synchronize(lane.stream.get());
}

// Slots are made as they are needed, for pinning takes time, and a few do where the disk is the slower side. There is
// always one to be had: each of `threads` threads holds at most one (a thread that fails keeps it, and ends).
Uploader::Slot& Uploader::take() {
    std::unique_lock lock(mutex_);
    if (made_ < max_slots_ && (free_.empty() || !free_.front()->uploaded.reached())) {
        ++made_;
        lock.unlock();
        auto slot = std::make_unique<Slot>(slot_bytes_);
        lock.lock();
        return *slots_.emplace_back(std::move(slot));
    }
    Slot& slot = *free_.front();
    free_.pop_front();
    lock.unlock();
    slot.uploaded.wait();
    return slot;
}

void Uploader::give(Slot& slot) {
    std::lock_guard lock(mutex_);
    free_.push_back(&slot);
}

void Uploader::read(const Piece& piece) {
    cuda::make_current(device_);
    Slot& slot = take();
    read_stored(piece, 0, {slot.host.get(), static_cast<size_t>(piece.bytes)});
    upload(piece, slot);
    give(slot);
}

void Uploader::upload(const Piece& piece, Slot& slot) {
    Lane& lane = lanes_[uploads_++ % lanes_.size()];
    std::lock_guard lock(lane.mutex);
    const Stream stream = lane.stream.get();
    if (!piece.converts()) {
        cuda::copy_bytes(piece.target_bytes(), slot.host.get(), piece.bytes, stream);
        return slot.uploaded.record(stream);
    }
    const TensorView staged{lane.staging.view().base, Layout::contiguous(piece.target.shape()), piece.stored, device_};
    cuda::copy_bytes(staged.base, slot.host.get(), piece.bytes, stream);
    slot.uploaded.record(stream);
    cuda::copy_strided(staged, piece.target, stream);
}

// Calls body(i) once for every i in [0, count), in this thread and threads - 1 others (parallel_for has one a core,
// which is few for threads that wait). After an exception no further index is handed out; when all threads have ended,
// that of the lowest index is thrown. Indices are handed out in order and then finished, so this one does not depend on
// timing.
template <class Body>
void for_each_index(int64_t count, int threads, const Body& body) {
    std::atomic<int64_t> next{0};
    std::atomic<bool> failed{false};
    std::mutex mutex;
    int64_t failed_at = count;
    std::exception_ptr error;
    const auto work = [&] {
        while (!failed) {
            const int64_t i = next++;
            if (i >= count) return;
            try {
                body(i);
            } catch (...) {
                std::lock_guard lock(mutex);
                failed = true;
                if (i < failed_at) failed_at = i, error = std::current_exception();
            }
        }
    };
    {
        std::vector<std::jthread> others;
        try {
            while (std::ssize(others) + 1 < threads) others.emplace_back(work);
        } catch (const std::system_error&) {  // no more threads to be had: fewer are slower, not wrong
        }
        work();
    }
    if (error) std::rethrow_exception(error);
}

// Small models get few: a thread, and on a GPU its pinned buffer, must be worth making.
int threads_for(const WeightReadOptions& options, std::span<const Piece> pieces, int64_t bytes) {
    const int64_t largest = std::ranges::max(pieces, {}, &Piece::bytes).bytes;
    const int64_t wanted =
        options.threads > 0 ? options.threads
                            : std::min<int64_t>(std::clamp(2 * num_threads(), 4, 16), (bytes + largest - 1) / largest);
    return static_cast<int>(std::min<int64_t>(wanted, std::ssize(pieces)));
}

}  // namespace

ReadReport read_weights(const SafetensorsModel& model, std::span<const WeightRequest> requests,
                        const WeightReadOptions& options) {
    LC_CHECK(options.threads >= 0 && options.threads <= kMaxThreads, "read_weights: threads must be 0..{}, got {}",
             kMaxThreads, options.threads);
    LC_CHECK(options.piece_bytes > 0, "read_weights: piece_bytes must be positive, got {}", options.piece_bytes);
    const auto start = std::chrono::steady_clock::now();
    const std::vector<Piece> pieces = pieces_of(model, requests, options.piece_bytes);
    for (const WeightRequest& request : requests) request.target.bump_version();
    ReadReport report;
    for (const Piece& piece : pieces) report.bytes += piece.bytes;
    if (report.bytes > 0) {
        const Device device = pieces[0].target.device;
        const int threads = threads_for(options, pieces, report.bytes);
        std::optional<Uploader> uploader;
        if (device.is_cuda()) uploader.emplace(device, pieces, threads);
        for_each_index(std::ssize(pieces), threads, [&](int64_t i) {
            const Piece& piece = pieces[static_cast<size_t>(i)];
            uploader ? uploader->read(piece) : read_to_host(piece);
        });
        if (uploader) uploader->finish();
    }
    report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return report;
}

}  // namespace lc::io
