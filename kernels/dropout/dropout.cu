// Dropout on the GPU.
//
// MATHS    dropout.h: the mask of the CPU, bit for bit.
// TILING   gap-free tensors: a thread has two runs of eight elements, 256 runs apart, both under way while it makes a Philox block
//          for each. Other layouts: elementwise.cuh in row-major order, a block an element.
// COST     8 bytes an element in f32, 4 in bf16, and an eighth of a Philox block (ten rounds, about 100 integer instructions): half of
//          the time that the bytes take.
// NUMERICS the scale 1/(1-p) is rounded to f32; f32 product, rounded once.
// LADDER   1 a Philox block an element, of which one word was used: eight times the instructions, which then bound it.
//          2 all bits of a block, 16 an element: meant for 0.85 of a copy.
// SOURCE   Philox: Salmon et al., SC 2011.
#include "kernels/common/cuda/elementwise.cuh"
#include "kernels/dropout/dropout.h"

namespace lc::kernels {
namespace {

constexpr int kThreads = 256, kRuns = 2;

struct Dropout {
    DropoutMask mask;
    uint32_t threshold;
    float scale;
    __device__ void operator()(const float (&in)[1], float (&out)[1], int64_t i) const {
        const auto words = dropout_words(mask, static_cast<uint64_t>(i) / 8);
        out[0] = dropout_bits(words, static_cast<uint64_t>(i)) >= threshold ? scale * in[0] : 0.0f;
    }
    __device__ __forceinline__ void run(int64_t first, float (&values)[kRun]) const {
        static_assert(kRun == 8);
        const auto words = dropout_words(mask, static_cast<uint64_t>(first) / 8);
#pragma unroll
        for (int j = 0; j < kRun; ++j) values[j] = dropout_bits(words, j) >= threshold ? scale * values[j] : 0.0f;
    }
};

struct FlatArgs {
    Elements x, y;
    int64_t numel;
    bool add;
    Dropout dropout;
};

template <class T>
__global__ void __launch_bounds__(kThreads) flat_kernel(const __grid_constant__ FlatArgs a) {
    const int64_t first = (static_cast<int64_t>(blockIdx.x) * kRuns * kThreads + threadIdx.x) * kRun;
    const T* x = reinterpret_cast<const T*>(a.x.base);
    RunBits<T> bits[kRuns];
#pragma unroll
    for (int r = 0; r < kRuns; ++r) {
        const int64_t i = first + r * kThreads * kRun;
        if (i + kRun <= a.numel) bits[r] = RunBits<T>::load(x + i);
    }
#pragma unroll
    for (int r = 0; r < kRuns; ++r) {
        const int64_t i = first + r * kThreads * kRun;
        if (i >= a.numel) return;
        const int count = static_cast<int>(min(int64_t{kRun}, a.numel - i));
        float values[kRun];
        if (count == kRun) {
#pragma unroll
            for (int j = 0; j < kRun; ++j) values[j] = bits[r].get(j);
        } else {
            load_run(a.x, i, count, values);
        }
        a.dropout.run(i, values);
        store_run(a.y, i, count, a.add, values);
    }
}

// A gap-free, aligned tensor in row-major order.
Elements flat(const TensorView& view) {
    Elements elements{view.base + view.layout.offset * size_of(view.dtype), view.dtype, false};
    elements.packed = view.layout.is_contiguous() && is_pack_aligned(elements.base);
    return elements;
}

void apply(const TensorView& from, const DropoutMask& mask, const GradSlot& to, Stream stream) {
    if (!to || from.numel() == 0) return;
    const Dropout dropout{mask, dropout_threshold(mask.p), static_cast<float>(1 / (1 - mask.p))};
    const FlatArgs a{flat(from), flat(to.view), from.numel(), to.accumulate(), dropout};
    if (!a.x.packed || !a.y.packed) return elementwise<1, 1>("dropout", dropout, {from}, {to}, stream);
    const cudaStream_t queue = cuda::handle_of(stream);
    dispatch_cuda(from.dtype, "dropout", [&](auto type) {
        const unsigned blocks = grid_x(ceil_div(a.numel, int64_t{kThreads} * kRuns * kRun));
        flat_kernel<typename decltype(type)::type><<<blocks, kThreads, 0, queue>>>(a);
    });
    LC_LAUNCHED("dropout", queue);
}

}  // namespace

void dropout_forward_cuda(const DropoutForward& args, Stream stream) {
    apply(args.x, args.mask, {args.y}, stream);
}

void dropout_backward_cuda(const DropoutBackward& args, Stream stream) {
    apply(args.dy, args.mask, args.dx, stream);
}

}  // namespace lc::kernels
