// Loss and dhidden of a frozen head on Hopper (sm_90a): softmax inside the first product, no pass over logits; bf16.
//
// MATHS    r_i any reference, e_iv = exp(l_iv - r_i), s_i = sum_v e_iv, p_i = e_i[label_i] / s_i:
//          nll_i = log s_i - (l_i[label_i] - r_i)      dhidden_i = (sum_{v != label_i} e_iv W_v / s_i + (p_i - 1) W[label_i]) / n
//          The sum divides a whole row: a factor of what the second product makes. So exponentials need not wait for it, nor for a
//          row's maximum: the label's logit is a reference that one dot product gives.
// TILING   once   references [N]: a warp a row
//          then chunks of up to 2048 rows, fewer where their shares would exceed 0.55 GB:
//            e [rows,V] in bf16, 0 at the label; highest logit and sum of each tile's rows         (linear_cross_entropy_sm90.cuh)
//            s, nll and a row's two factors of dhidden: a warp a row
//            Y [rows,D] = e W                     cuBLASLt, f32 out
//            dhidden = factors of Y and W[label]  a block a row
//          The first product: pairs of blocks (a cluster) make tiles of 2 x 128 rows and 256 columns; each fetches its own rows of hidden
//          and half of W's for both.
//            warpgroup 0, 1   64 rows each: [64,256] in registers, where logits become shares
//            warpgroup 2      one thread queues copies, four steps of k ahead: hidden [128,64], W [256,64]
//          A row with s beyond 2^100 (nll above 69) has its chunk done again with maxima as references. The host does not wait to
//          know: the second launch is always there, and ends at once where it is not wanted.
// COST     2 N D V FLOPs for e and as many for dhidden; beside the operands 2 + 2 bytes a logit, and 12 bytes an element of dhidden.
//          Without dhidden no logit leaves the multiprocessor. One exponential a logit, 16 a clock and multiprocessor: 3 % of the first
//          product where nothing hides them.
// NUMERICS logits are f32 accumulators; exponentials by exp2f, 2^-22; sums in f32 within a tile and in f64 over tiles. Shares are
//          rounded to bf16 as operands, as dlogits would be; the label's, which may cancel with 1, is not. 2^100 max |W| stays
//          far below the end of f32. A NaN logit, or one of +inf, makes its row's nll and dhidden NaN. Rows of a chunk that is
//          done again may differ in their last bits from what they are in another.
// LADDER   1 f32 logits in memory, 15 to 19 % over the two products: linear_cross_entropy.cu.
//          2 this, meant for 4 %: 2 to 4 % (H200, 8192 rows, D = 4096, V = 128256: 25.1 to 25.6 ms where the products alone,
//            8192 rows at once with bf16 results, take 12.4 + 12.2; before 29.1). nll alone 12.6 ms, before 14.9.
//            Exponentials are 0.1 ms of that, by exp2f or by ex2.approx alone. A warpgroup two steps ahead of the other, so that one
//            stores while the other multiplies, changed nothing.
//          What remains: the second product is 3 % slower in chunks of 2048 rows and with f32 results than at once.
// SOURCE   arXiv 2411.09009 keeps logits on the chip too, and makes them twice; PTX ISA, "wgmma.mma_async", "cp.async.bulk.tensor".
#include "kernels/linear_cross_entropy/linear_cross_entropy_sm90.h"

#include "core/cuda/runtime.h"
#include "kernels/common/cuda/gemm.h"
#include "kernels/common/cuda/operand.cuh"
#include "kernels/common/cuda/pack.cuh"
#include "kernels/common/ids.h"
#include "kernels/linear_cross_entropy/linear_cross_entropy_sm90.cuh"

namespace lc::kernels {
namespace {

using namespace head_sm90;
using bf16 = __nv_bfloat16;

constexpr int64_t kMostRows = 2048, kMostBytes = int64_t{550} << 20;
constexpr int kWarpRows = 8;                        // rows of a block where a warp has one
constexpr int kNoLabel = -1, kBadLabel = -2;        // ignored; neither ignored nor in [0,V)
constexpr float kMostSum = 1.2676506002282294e30f;  // 2^100
constexpr float kLog2E = 1.4426950408889634f;

__global__ void __launch_bounds__(kRoleThreads, 1) share_kernel(const __grid_constant__ Args args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ unsigned char dynamic[];
    __shared__ Barriers barriers;
    if (args.wanted && *args.wanted == 0) return;  // the same in both blocks
    __nv_bfloat16* const shared = aligned_shared(dynamic);
    const int warpgroup = warpgroup_index();
    if (threadIdx.x == 0) barriers.init();
    cluster_arrive(), cluster_wait();  // the other block's barriers are there as well
    if (warpgroup == kConsumers) {
        shrink_registers<kProducer>();
        if (threadIdx.x == kConsumers * kWarpgroup) produce(args, shared, barriers);
    } else {
        grow_registers<kConsumer>();
        consume(args, shared, barriers, warpgroup);
    }
    __syncwarp();
    cluster_arrive(), cluster_wait();  // nobody leaves whose memory the other one still writes
#endif
}

// Labels as codes, and log2(e) times their logits.
__global__ void __launch_bounds__(kWarpRows* kWarp)
    label_kernel(const bf16* hidden, int64_t hidden_stride, const bf16* weight, int64_t weight_stride, int width,
                 int64_t rows, int64_t vocabulary, const __grid_constant__ Operand ids, int* labels, float* reference) {
    const int64_t row = int64_t{blockIdx.x} * kWarpRows + threadIdx.x / kWarp;
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    if (row >= rows) return;
    const int64_t id = ids.load_id(row);
    const bool has_label = id >= 0 && id < vocabulary;
    float sum = 0;
    if (has_label)
        for (int d = lane * Pack<bf16>::kSize; d < width; d += kWarp * Pack<bf16>::kSize) {
            const Pack<bf16> x = load_pack(hidden + row * hidden_stride + d),
                             w = load_pack(weight + id * weight_stride + d);
#pragma unroll
            for (int j = 0; j < Pack<bf16>::kSize; ++j) sum = fmaf(x.get(j), w.get(j), sum);
        }
    sum = warp_sum(sum);
    if (lane > 0) return;
    labels[row] = has_label ? static_cast<int>(id) : id == kIgnoreLabel ? kNoLabel : kBadLabel;
    reference[row] = has_label ? sum * kLog2E : INFINITY;
}

struct RowArgs {
    const Partial* partial;  // [rows,tiles]
    int rows, tiles;
    const int* labels;
    const float *at_label, *scale;
    float* reference;
    float* nll;
    float2* factors;  // of Y and of W_label
    int* redo;        // set where a sum is too large; second pass: looked at
    bool again;
};

__global__ void __launch_bounds__(kWarpRows* kWarp) sum_kernel(const __grid_constant__ RowArgs args) {
    if (args.again && *args.redo == 0) return;
    const int row = static_cast<int>(blockIdx.x) * kWarpRows + static_cast<int>(threadIdx.x) / kWarp;
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    if (row >= args.rows) return;
    const int label = args.labels[row];
    if (label < 0) {
        if (lane == 0) args.nll[row] = label == kNoLabel ? 0.0f : NAN, args.factors[row] = make_float2(0, 0);
        return;
    }
    float high = -INFINITY;
    double total = 0;
    for (int i = lane; i < args.tiles; i += kWarp) {
        const Partial partial = args.partial[static_cast<int64_t>(row) * args.tiles + i];
        high = fmaxf(high, partial.high), total += static_cast<double>(partial.sum);
    }
    high = warp_max(high), total = warp_sum(total);
    if (lane > 0) return;
    if (!args.again && total > static_cast<double>(kMostSum)) *args.redo = 1;
    if (!args.again) args.reference[row] = high * kLog2E;
    const double at_label = static_cast<double>(args.at_label[row]);
    args.nll[row] = static_cast<float>((log2(total) - at_label) * 0.69314718055994531);
    const double p = exp2(at_label) / total, scale = static_cast<double>(*args.scale);
    args.factors[row] = make_float2(static_cast<float>(scale / total), static_cast<float>((p - 1) * scale));
}

// dhidden = factors.x Y + factors.y W_label
template <class T>
__global__ void __launch_bounds__(256)
    gradient_kernel(const float* weighted, int width, const bf16* weight, int64_t weight_stride, const int* labels,
                    const float2* factors, T* dhidden, int64_t stride) {
    const int label = labels[blockIdx.x];
    const float2 factor = factors[blockIdx.x];
    const float* y = weighted + static_cast<int64_t>(blockIdx.x) * width;
    for (int d = static_cast<int>(threadIdx.x) * 4; d < width; d += 1024) {
        const float4 sum = *reinterpret_cast<const float4*>(y + d);
        const float from[4] = {sum.x, sum.y, sum.z, sum.w};
        T to[4];
#pragma unroll
        for (int j = 0; j < 4; ++j)
            to[j] = from_float<T>(label < 0 ? 0.0f
                                            : fmaf(factor.x, from[j],
                                                   factor.y * __bfloat162float(weight[label * weight_stride + d + j])));
        using Bits = std::conditional_t<sizeof(T) == 2, uint2, uint4>;
        *reinterpret_cast<Bits*>(dhidden + blockIdx.x * stride + d) = *reinterpret_cast<const Bits*>(to);
    }
}

// Pairs that the device holds at a time. Asked once: on another GPU of the same kind it is the same.
int most_clusters() {
    static const int clusters = std::max(pairs_at_a_time(share_kernel, kRoleThreads, kSharedBytes), 1);
    return clusters;
}

}  // namespace

// The body of a kernel, and with it the barriers in static shared memory, is there in code for sm_90a alone.
bool frozen_head_has_sm90() {
    cudaFuncAttributes attributes{};
    if (cudaFuncGetAttributes(&attributes, share_kernel) == cudaSuccess) return attributes.sharedSizeBytes > 0;
    cudaGetLastError();  // no code at all for this device: the launch that follows says so
    return false;
}

FrozenHead::FrozenHead(const DeviceRows& hidden, const DeviceRows& weight, const TensorView& labels, const float* scale,
                       float* nll, const DeviceOutRows& dhidden, Stream stream)
    : hidden_(hidden), weight_(weight), dhidden_(dhidden), scale_(scale), nll_(nll), stream_(stream) {
    stride_ = ceil_div(weight.rows, 8) * 8, column_tiles_ = tiles_of(weight.rows, kN);
    constexpr int64_t kTileRows = kPair * kM;
    const int64_t fitting = kMostBytes / (stride_ * int64_t{sizeof(bf16)}) / kTileRows * kTileRows;
    step = std::min(std::clamp(fitting, kTileRows, kMostRows), hidden.rows);
    labels_ = {hidden.rows, stream}, redo_ = {1, stream};
    reference_ = {hidden.rows, stream}, at_label_ = {step, stream};
    partial_ = {step * column_tiles_, stream}, factors_ = {step, stream};
    if (dhidden) shares_ = {step * stride_, stream}, weighted_ = {step * hidden.columns, stream};
    const cudaStream_t queue = cuda::handle_of(stream);
    label_kernel<<<grid_x(ceil_div(hidden.rows, kWarpRows)), kWarpRows * kWarp, 0, queue>>>(
        hidden.as<bf16>(), hidden.stride, weight.as<bf16>(), weight.stride, static_cast<int>(hidden.columns),
        hidden.rows, weight.rows, Operand(labels), labels_.data(), reference_.data());
    LC_LAUNCHED("linear_cross_entropy", queue);
}

void FrozenHead::make_shares(int64_t first, int64_t rows, bool again) const {
    const cudaStream_t queue = cuda::handle_of(stream_);
    Args args;
    args.hidden = matrix_map(hidden_.as<bf16>() + first * hidden_.stride, rows, hidden_.columns, hidden_.stride, kM);
    args.weight = matrix_map(weight_.data, weight_.rows, weight_.columns, weight_.stride, kN / kPair);
    args.rows = static_cast<int>(rows), args.vocabulary = static_cast<int>(weight_.rows);
    args.steps = tiles_of(hidden_.columns, kK);
    args.reference = reference_.data() + first, args.labels = labels_.data() + first;
    args.shares = shares_.data(), args.stride = stride_;
    args.partial = reinterpret_cast<Partial*>(partial_.data()), args.at_label = at_label_.data();
    args.wanted = again ? redo_.data() : nullptr;
    allow_shared_memory(share_kernel, kSharedBytes);
    const int64_t tiles = tiles_of(rows, kPair * kM) * column_tiles_;
    const auto clusters = static_cast<unsigned>(std::min<int64_t>(tiles, most_clusters()));
    launch_clusters(share_kernel, kPair, clusters, kRoleThreads, kSharedBytes, queue, args);
    LC_LAUNCHED("linear_cross_entropy", queue);
    const RowArgs row_args{.partial = args.partial,
                           .rows = args.rows,
                           .tiles = static_cast<int>(column_tiles_),
                           .labels = args.labels,
                           .at_label = args.at_label,
                           .scale = scale_,
                           .reference = reference_.data() + first,
                           .nll = nll_ + first,
                           .factors = factors_.data(),
                           .redo = redo_.data(),
                           .again = again};
    sum_kernel<<<grid_x(ceil_div(rows, kWarpRows)), kWarpRows * kWarp, 0, queue>>>(row_args);
    LC_LAUNCHED("linear_cross_entropy", queue);
}

void FrozenHead::chunk(int64_t first, int64_t rows) const {
    const cudaStream_t queue = cuda::handle_of(stream_);
    LC_CUDA(cudaMemsetAsync(redo_.data(), 0, sizeof(int), queue));
    make_shares(first, rows, false);
    make_shares(first, rows, true);
    if (!dhidden_) return;
    const int64_t width = hidden_.columns;
    gemm({.m = rows,
          .n = width,
          .k = weight_.rows,
          .a = shares_.data(),
          .lda = stride_,
          .b = weight_.data,
          .ldb = weight_.stride,
          .c = weighted_.data(),
          .ldc = width,
          .dtype = DType::bf16,
          .c_dtype = DType::f32},
         stream_);
    dispatch_cuda(dhidden_.dtype, "linear_cross_entropy", [&](auto type) {
        using T = typename decltype(type)::type;
        gradient_kernel<T><<<grid_x(rows), 256, 0, queue>>>(
            weighted_.data(), static_cast<int>(width), weight_.as<bf16>(), weight_.stride, labels_.data() + first,
            factors_.data(), dhidden_.as<T>() + first * dhidden_.stride, dhidden_.stride);
    });
    LC_LAUNCHED("linear_cross_entropy", queue);
}

}  // namespace lc::kernels
