// AdamW on the GPU: all tensors of a step in one launch.
//
// MATHS    adamw.h.
// TILING   up to 500 tensors travel as kernel arguments, each with its rates (no copy to the device, nothing to keep alive). A block
//          finds by bisection which tensor its chunk of 4096 elements lies in; a thread takes four elements at a time, 16 bytes of
//          each array.
// COST     28 bytes and about 15 FLOPs an element: bound by memory.
// NUMERICS f32 as on the CPU; the bias corrections are made in f64 on the host. Correctly rounded sqrt and division.
// LADDER   1 64 tensors a launch, one set of rates a launch: two launches for each group of parameters.
//          2 rates a tensor, and as many tensors as arguments hold: a step of 32 groups is one launch.
// SOURCE   arXiv 1711.05101.
#include <cmath>

#include "kernels/adamw/adamw.h"
#include "kernels/common/cuda/launch.h"
#include "kernels/common/cuda/pack.cuh"

namespace lc::kernels {
namespace {

constexpr int kThreads = 256, kWidth = Pack<float>::kSize, kTensors = 500;
constexpr int64_t kElements = 4 * kThreads * kWidth;  // a block's
constexpr size_t kMostArguments = 32764;              // bytes, since CUDA 12.1

struct Rates {  // of all tensors
    float eps, b1, rest1, b2, rest2, correct1, correct2;
};
struct Entry {
    float *p, *m, *v;
    const float* grad;
    int64_t numel, first_block;
    float lr, decay, grad_scale;
};
struct Table {
    Entry entries[kTensors];
    int count = 0;
    Rates rates;
};
static_assert(sizeof(Table) <= kMostArguments);

__device__ void update(const Rates& r, const Entry& e, float grad, float& p, float& m, float& v) {
    const float g = e.grad_scale * grad;
    m = r.b1 * m + r.rest1 * g;
    v = r.b2 * v + r.rest2 * g * g;
    p -= e.lr * (m * r.correct1 / (sqrtf(v * r.correct2) + r.eps) + e.decay * p);
}

__global__ void adamw_kernel(const __grid_constant__ Table table) {
    int low = 0, high = table.count - 1;
    while (low < high) {  // the last entry that starts at or before this block
        const int middle = (low + high + 1) / 2;
        if (table.entries[middle].first_block <= blockIdx.x)
            low = middle;
        else
            high = middle - 1;
    }
    const Entry& e = table.entries[low];
    const bool packed = is_pack_aligned(e.p) && is_pack_aligned(e.m) && is_pack_aligned(e.v) && is_pack_aligned(e.grad);
    const int64_t begin = (blockIdx.x - e.first_block) * kElements, end = min(e.numel, begin + kElements);
    for (int64_t first = begin + threadIdx.x * kWidth; first < end; first += kThreads * kWidth) {
        if (packed && first + kWidth <= end) {
            auto p = load_pack(e.p + first), m = load_pack(e.m + first), v = load_pack(e.v + first);
            const auto grad = load_pack(e.grad + first);
#pragma unroll
            for (int j = 0; j < kWidth; ++j)
                update(table.rates, e, grad.values[j], p.values[j], m.values[j], v.values[j]);
            store_pack(e.p + first, p), store_pack(e.m + first, m), store_pack(e.v + first, v);
        } else {
            for (int64_t i = first; i < min(end, first + kWidth); ++i)
                update(table.rates, e, e.grad[i], e.p[i], e.m[i], e.v[i]);
        }
    }
}

float narrow(double value) {
    return static_cast<float>(value);
}

Rates rates_of(const AdamwStep& args) {
    const double t = static_cast<double>(args.step);
    return {.eps = narrow(args.eps),
            .b1 = narrow(args.beta1),
            .rest1 = narrow(1 - args.beta1),
            .b2 = narrow(args.beta2),
            .rest2 = narrow(1 - args.beta2),
            .correct1 = narrow(1 / (1 - std::pow(args.beta1, t))),
            .correct2 = narrow(1 / (1 - std::pow(args.beta2, t)))};
}

}  // namespace

void adamw_step_cuda(const AdamwStep& args, Stream stream) {
    Table table;
    table.rates = rates_of(args);
    int64_t blocks = 0;
    const auto launch = [&] {
        if (table.count == 0) return;
        adamw_kernel<<<grid_x(blocks), kThreads, 0, cuda::handle_of(stream)>>>(table);
        LC_LAUNCHED("adamw", cuda::handle_of(stream));
        table.count = 0, blocks = 0;
    };
    for (const AdamwTensor& t : args.tensors) {
        const int64_t numel = t.parameter.numel();
        if (numel == 0) continue;
        if (table.count == kTensors) launch();
        table.entries[table.count++] = {.p = t.parameter.data<float>(),
                                        .m = t.m.data<float>(),
                                        .v = t.v.data<float>(),
                                        .grad = t.grad.data<float>(),
                                        .numel = numel,
                                        .first_block = blocks,
                                        .lr = narrow(t.lr),
                                        .decay = narrow(t.weight_decay),
                                        .grad_scale = narrow(t.grad_scale)};
        blocks += ceil_div(numel, kElements);
    }
    launch();
}

}  // namespace lc::kernels
