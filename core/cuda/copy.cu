// Copies between layouts and dtypes on the device.
//
// MATHS    to[i] = convert(from[i]), or value, for every index i of the shape.
// TILING   one thread an element, rows of the innermost axis side by side, so that contiguous runs are coalesced. Dense tensors
//          of one layout and dtype do not come here: they are one cudaMemcpyAsync.
// COST     size_of(from) + size_of(to) bytes an element; two 64-bit divisions an axis and element.
// NUMERICS same dtype: bits are moved; otherwise through float (through int64 between integers, double from f64), to nearest even.
// LADDER   1 this. A vectorized form for permuted dense tensors pays only where an op cannot read strides; none does today.
// SOURCE   core/tensor.cpp copy_strided, the CPU form.
#include <algorithm>

#include "core/cuda/check.h"
#include "core/cuda/element.cuh"
#include "core/cuda/runtime.h"

namespace lc::cuda {
namespace {

struct CopyArgs {
    const std::byte* from;
    std::byte* to;
    DType from_dtype, to_dtype;
    int rank;
    int64_t numel;
    int64_t shape[kMaxRank], from_strides[kMaxRank], to_strides[kMaxRank];
    int64_t from_offset, to_offset;
};

__device__ bool is_integer(DType dtype) {
    return dtype == DType::i64 || dtype == DType::i32 || dtype == DType::u8 || dtype == DType::boolean;
}

__device__ int64_t load_any_int(const void* base, int64_t i, DType dtype) {
    if (dtype == DType::u8) return static_cast<const uint8_t*>(base)[i];
    if (dtype == DType::boolean) return static_cast<const bool*>(base)[i];
    return load_int(base, i, dtype);
}

template <class Bits>
__device__ void move(const CopyArgs& a, int64_t from, int64_t to) {
    reinterpret_cast<Bits*>(a.to)[to] = reinterpret_cast<const Bits*>(a.from)[from];
}

__global__ void copy_kernel(const __grid_constant__ CopyArgs a) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < a.numel; i += step) {
        int64_t rest = i, from = a.from_offset, to = a.to_offset;
        for (int axis = a.rank - 1; axis >= 0; --axis) {
            const int64_t index = rest % a.shape[axis];
            rest /= a.shape[axis];
            from += index * a.from_strides[axis];
            to += index * a.to_strides[axis];
        }
        if (a.from_dtype == a.to_dtype) {
            switch (size_of(a.from_dtype)) {
                case 8: move<uint64_t>(a, from, to); break;
                case 4: move<uint32_t>(a, from, to); break;
                case 2: move<uint16_t>(a, from, to); break;
                default: move<uint8_t>(a, from, to);
            }
        } else if (is_integer(a.from_dtype) && is_integer(a.to_dtype)) {
            const int64_t value = load_any_int(a.from, from, a.from_dtype);
            if (a.to_dtype == DType::i64) reinterpret_cast<int64_t*>(a.to)[to] = value;
            else if (a.to_dtype == DType::i32) reinterpret_cast<int32_t*>(a.to)[to] = static_cast<int32_t>(value);
            else if (a.to_dtype == DType::u8) reinterpret_cast<uint8_t*>(a.to)[to] = static_cast<uint8_t>(value);
            else reinterpret_cast<bool*>(a.to)[to] = value != 0;
        } else if (a.from_dtype == DType::f64 && is_integer(a.to_dtype)) {
            const double value = reinterpret_cast<const double*>(a.from)[from];
            if (a.to_dtype == DType::i64) reinterpret_cast<int64_t*>(a.to)[to] = static_cast<int64_t>(value);
            else store_float(a.to, to, a.to_dtype, static_cast<float>(value));
        } else if (is_integer(a.from_dtype) && a.to_dtype == DType::f64) {
            reinterpret_cast<double*>(a.to)[to] = static_cast<double>(load_any_int(a.from, from, a.from_dtype));
        } else {
            store_float(a.to, to, a.to_dtype, load_float(a.from, from, a.from_dtype));
        }
    }
}

struct FillArgs {
    std::byte* to;
    DType dtype;
    int rank;
    int64_t numel, offset;
    int64_t shape[kMaxRank], strides[kMaxRank];
    double value;
};

__global__ void fill_kernel(const __grid_constant__ FillArgs a) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < a.numel; i += step) {
        int64_t rest = i, to = a.offset;
        for (int axis = a.rank - 1; axis >= 0; --axis) {
            to += rest % a.shape[axis] * a.strides[axis];
            rest /= a.shape[axis];
        }
        if (a.dtype == DType::f64) reinterpret_cast<double*>(a.to)[to] = a.value;
        else if (a.dtype == DType::i64) reinterpret_cast<int64_t*>(a.to)[to] = static_cast<int64_t>(a.value);
        else store_float(a.to, to, a.dtype, static_cast<float>(a.value));
    }
}

constexpr int kThreads = 256;

unsigned blocks_for(int64_t numel) {
    constexpr int64_t kMaxBlocks = 1 << 16;  // the rest is the kernel's loop
    return static_cast<unsigned>(std::min<int64_t>((numel + kThreads - 1) / kThreads, kMaxBlocks));
}

}  // namespace

void copy_strided(const TensorView& from, const TensorView& to, Stream stream) {
    LC_CHECK(from.shape() == to.shape(), "copy: shapes differ, {} into {}", from.shape(), to.shape());
    LC_CHECK(from.device == to.device && from.device == stream.device, "copy: from {} to {} on a stream of {}",
             from.device.str(), to.device.str(), stream.device.str());
    const int64_t numel = from.numel();
    if (numel == 0) return;
    const int64_t width = size_of(from.dtype);
    if (from.dtype == to.dtype && from.layout.is_dense() && from.layout.strides == to.layout.strides)
        return copy_bytes(to.base + to.layout.offset * width, from.base + from.layout.offset * width, numel * width, stream);
    CopyArgs args{.from = from.base,
                  .to = to.base,
                  .from_dtype = from.dtype,
                  .to_dtype = to.dtype,
                  .rank = from.rank(),
                  .numel = numel,
                  .from_offset = from.layout.offset,
                  .to_offset = to.layout.offset};
    for (int axis = 0; axis < args.rank; ++axis) {
        args.shape[axis] = from.size(axis);
        args.from_strides[axis] = from.stride(axis);
        args.to_strides[axis] = to.stride(axis);
    }
    copy_kernel<<<blocks_for(numel), kThreads, 0, handle_of(stream)>>>(args);
    LC_LAUNCHED("copy", handle_of(stream));
}

void fill(const TensorView& to, double value, Stream stream) {
    FillArgs args{.to = to.base, .dtype = to.dtype, .rank = to.rank(), .numel = to.numel(), .offset = to.layout.offset, .value = value};
    if (args.numel == 0) return;
    for (int axis = 0; axis < args.rank; ++axis) args.shape[axis] = to.size(axis), args.strides[axis] = to.stride(axis);
    fill_kernel<<<blocks_for(args.numel), kThreads, 0, handle_of(stream)>>>(args);
    LC_LAUNCHED("fill", handle_of(stream));
}

}  // namespace lc::cuda
