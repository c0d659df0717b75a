// Loss and gradients of stage 1 from the parts that its walks leave: one launch for all of them.
//
// MATHS    loss = factor sum parts; dmix = dlogit sum D; dW [D,F] of a map = sum of its parts
// TILING   the first thread block the loss, the second the mix, one head a thread; the others 256 elements of one map of dWq or dWk each
// COST     reads every part once: 2 x 33 KB a walk's segment, D = 128
// NUMERICS f64 for loss and mix, f32 for maps, in the order of the parts: the same bits in every run
// LADDER   1 a launch for each of the four. 2 this, launched early: 30 us less for stage 1 as a whole (transfer_loss_fused.cu).
// SOURCE   derived here
#include "kernels/transfer_loss/transfer_loss_totals.h"

#include "core/cuda/element.cuh"
#include "kernels/common/cuda/early.cuh"
#include "kernels/common/cuda/hopper.h"
#include "kernels/common/cuda/reduce.cuh"

namespace lc::kernels {
namespace {

constexpr int kTotalsThreads = 256, kOthers = 2;  // thread blocks of the loss and of the mix

struct MapParts {
    const float* parts;
    int maps;  // H, or the k-maps
    Operand out;
};

struct TotalsArgs {
    FusedShape shape;
    const double *loss_parts, *da_parts;
    double factor;
    std::byte* loss;
    DType loss_type;
    Operand mix_logit;
    LinearizedSpec spec;
    Operand dmix;
    MapParts q, k;
    int size;  // D F
};

__device__ void total_loss(const TotalsArgs& a) {
    double sum = 0;
    for (int64_t i = threadIdx.x; i < a.shape.items * a.shape.segments; i += kTotalsThreads) sum += a.loss_parts[i];
    sum = block_sum(sum) * a.factor;
    if (threadIdx.x != 0) return;
    if (a.loss_type == DType::f64)
        *reinterpret_cast<double*>(a.loss) = sum;
    else
        cuda::store_float(a.loss, 0, a.loss_type, static_cast<float>(sum));
}

__device__ void total_mix(const TotalsArgs& a) {
    const FusedShape& s = a.shape;
    for (int h = threadIdx.x; h < s.heads; h += kTotalsThreads) {
        double sum = 0;
        for (int64_t b = 0; b < s.items / s.heads; ++b)
            for (int i = 0; i < s.segments; ++i) sum += a.da_parts[(b * s.heads + h) * s.segments + i];
        a.dmix.put(h, static_cast<float>(DeviceMix(a.mix_logit, a.spec, h).dlogit * sum));
    }
}

// 256 elements of one map, whose parts are those of all its heads and their segments in every batch entry.
__device__ void total_map(const TotalsArgs& a, const MapParts& of, int block) {
    constexpr int kAtOnce = 8;  // loads under way
    const int blocks = (a.size + kTotalsThreads - 1) / kTotalsThreads, map = block / blocks;
    const int i = block % blocks * kTotalsThreads + static_cast<int>(threadIdx.x);
    if (i >= a.size) return;
    const int shares = a.shape.heads * a.shape.segments, members = shares / of.maps;
    const int count = static_cast<int>(a.shape.items / a.shape.heads) * members;
    const float* from = of.parts + static_cast<int64_t>(map) * members * a.size + i;
    float sum = 0;
    for (int first = 0; first < count; first += kAtOnce) {
        float x[kAtOnce];
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k) {
            const int n = first + k;
            x[k] = n < count ? from[(static_cast<int64_t>(n / members) * shares + n % members) * a.size] : 0;
        }
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k) sum += x[k];
    }
    of.out.put(static_cast<int64_t>(map) * a.size + i, sum);
}

__global__ void __launch_bounds__(kTotalsThreads) totals_kernel(const __grid_constant__ TotalsArgs a) {
    wait_for_predecessor();
    const int block = static_cast<int>(blockIdx.x);
    const int of_queries = a.q.parts ? a.q.maps * ((a.size + kTotalsThreads - 1) / kTotalsThreads) : 0;
    if (block == 0)
        total_loss(a);
    else if (block == 1) {
        if (a.dmix) total_mix(a);
    } else if (block - kOthers < of_queries)
        total_map(a, a.q, block - kOthers);
    else
        total_map(a, a.k, block - kOthers - of_queries);
}

}  // namespace

void store_transfer_totals(const TransferParts& parts, const FusedInputs& in, int64_t d, double factor,
                           const TensorView& loss, const HybridMapSlots& out, Stream stream) {
    const FusedShape& s = in.shape;
    const auto map = [](const float* from, int maps, const GradSlot& slot) {
        return slot ? MapParts{from, maps, Operand(slot)} : MapParts{nullptr, 0, {}};
    };
    const TotalsArgs args{s,
                          parts.loss,
                          parts.da,
                          factor,
                          loss.base + loss.layout.offset * size_of(loss.dtype),
                          loss.dtype,
                          in.mix_logit,
                          in.spec,
                          out.dmix_logit ? Operand(out.dmix_logit) : Operand{},
                          map(parts.dwq, s.heads, out.dwq),
                          map(parts.dwk, s.maps, out.dwk),
                          static_cast<int>(d) * kFusedMap};
    const int64_t blocks = kOthers + (args.q.maps + args.k.maps) * ceil_div(args.size, kTotalsThreads);
    launch_early(totals_kernel, {.blocks = blocks, .threads = kTotalsThreads, .early = hopper_applies({})},
                 cuda::handle_of(stream), args);
    LC_LAUNCHED("transfer_loss", cuda::handle_of(stream));
}

}  // namespace lc::kernels
