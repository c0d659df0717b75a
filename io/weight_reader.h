// Model weights into tensors where they shall lie, at the speed of the disk or of the bus to the device.
//
//   CUDA   threads pread pieces into a ring of pinned buffers; two streams of our own copy them straight into the
//          target or, where the stored dtype is another, into a staging tensor each, from where they are converted
//   CPU    threads pread pieces straight into the target, or convert them on their way
//
// While a piece is uploaded the next ones are read. Beside the targets there are at most threads + 2 buffers of one
// piece on the host and two on the device, whatever the size of the model.
#pragma once
#include <cstdint>
#include <span>
#include <string>

#include "core/tensor.h"
#include "io/safetensors_model.h"

namespace lc::io {

struct WeightRequest {
    std::string name;
    Tensor target;  // floating dtype, contiguous, of the stored shape; all targets of a call lie on one device, apart
};

struct WeightReadOptions {
    int threads = 0;                          // 0: two a core, 4 to 16, for they wait for the disk
    int64_t piece_bytes = int64_t{32} << 20;  // of the file; rounded down to whole elements, but at least one
};

struct ReadReport {
    int64_t bytes = 0;  // of the files
    double seconds = 0;
    double gigabytes_per_second() const { return seconds > 0 ? static_cast<double>(bytes) / seconds * 1e-9 : 0; }
};

// Fills every target with the bits of model.read(name, target.dtype()).to(target.device()); but where the dtype changes
// on a GPU, it chooses which NaN a NaN becomes. Waits for what is queued on the device's current stream (memory may
// come with work of its last owner); all is done when this returns. Bumps the targets' versions.
//
// Throws, before anything is read: BadInput for a tensor that is missing, not floating-point or of another shape than
// its target; Internal for targets and options that are not as above. While reading: what SafetensorsFile::read_bytes
// throws, with the tensor's name, once, and for the first such place in the files; Resource when memory runs out. All
// threads have ended then, and what the targets hold is unspecified.
ReadReport read_weights(const SafetensorsModel& model, std::span<const WeightRequest> requests,
                        const WeightReadOptions& options = {});

}  // namespace lc::io
