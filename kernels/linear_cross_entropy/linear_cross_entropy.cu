// Linear cross-entropy on the GPU.
//
// MATHS    linear_cross_entropy.h.
// TILING   loss and dhidden of 256 or more aligned bf16 rows on Hopper, without a bias: linear_cross_entropy_sm90.cu.
//          LC_HEAD=portable or sm90 in the environment takes that form wherever it fits.
//          Else chunks of up to 1024 rows, fewer where their logits would exceed 0.55 GB:
//            logits [rows,V] = hidden W^T + b        cuBLASLt, f32 out; the bias is its epilogue
//            rows: maximum and sum, nll, then dlogits over the logits where they lie (linear_cross_entropy_rows.cuh)
//            dhidden [rows,D] = dlogits W            dW (+)= dlogits^T hidden          cuBLASLt; db (+)= column_sum of dlogits
//          Before: one block counts the valid rows. After: one block adds the nll in a fixed order. The host waits for nothing.
// COST     2 N D V FLOPs for the logits and for each gradient; 4 + 4 + 4 + 2 + 2 bytes a logit beside that, 4 + 4 + 2 + 2 where rows are
//          held in registers.
// NUMERICS logits, maximum and sum are f32 also beside bf16 (a bf16 logit of 100 is off by up to 0.25, and its probability by as
//          much); nll and its sum in f64, stored in f32. dlogits are rounded to hidden's dtype as operands. dW is added over
//          chunks in its own dtype, which callers make f32.
//          A label that is neither -100 nor in [0,V) makes its nll, and so the loss, NaN: refusing it would have to wait for
//          the GPU.
// LADDER   1 a block a row, logits read twice: 15 % over the two products of 8192 rows and 128256 logits (H100), as its bytes say.
//          2 rows held by clusters of blocks: 6.3 GB instead of 10.5 beside the products. 0.6 of a copy's rate (H200): loads, two
//            meetings with fences of the whole GPU and stores one after the other, two blocks an SM.
//          3 blocks stay, the next row on its way meanwhile; one meeting by st.async. Meant for 0.85 of a copy.
//          The first product costs 5 % more than one of bf16 results for 8192 rows at once (f32 results, chunks).
//          4 softmax in the first product's own kernel: linear_cross_entropy_sm90.cu.
// SOURCE   online maximum and sum: arXiv 1805.02867.
#include <cstdlib>
#include <string_view>

#include "core/cuda/runtime.h"
#include "kernels/common/cuda/column_sum.h"
#include "kernels/common/cuda/elementwise.cuh"
#include "kernels/common/cuda/gemm.h"
#include "kernels/common/cuda/rows.h"
#include "kernels/linear_cross_entropy/linear_cross_entropy.h"
#include "kernels/linear_cross_entropy/linear_cross_entropy_rows.cuh"
#include "kernels/linear_cross_entropy/linear_cross_entropy_sm90.h"

namespace lc::kernels {
namespace {

constexpr int kOneBlock = 1024;
constexpr int64_t kMostRows = 1024, kMostBytes = int64_t{550} << 20;

// *scale = 1 / number of valid rows; 0 when there is none.
__global__ void scale_kernel(const __grid_constant__ Operand labels, int64_t rows, float* scale) {
    double valid = 0;
    for (int64_t i = threadIdx.x; i < rows; i += blockDim.x) valid += labels.load_id(i) != kIgnoreLabel;
    valid = block_sum(valid);
    if (threadIdx.x == 0) *scale = valid > 0 ? static_cast<float>(1 / valid) : 0.0f;
}

__global__ void loss_kernel(const float* nll, const __grid_constant__ Operand labels, int64_t rows,
                            const __grid_constant__ Operand loss) {
    double total = 0, valid = 0;
    for (int64_t i = threadIdx.x; i < rows; i += blockDim.x) {
        total += nll[i];
        valid += labels.load_id(i) != kIgnoreLabel;
    }
    total = block_sum(total), valid = block_sum(valid);
    if (threadIdx.x == 0) loss.put(0, valid > 0 ? static_cast<float>(total / valid) : 0.0f);
}

__global__ void put_kernel(const float* values, int64_t count, const __grid_constant__ Operand out) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count) out.put(i, values[i]);
}

struct Product {
    __device__ void operator()(const float (&in)[2], float (&out)[1]) const { out[0] = in[0] * in[1]; }
};

// Whether the form for Hopper is to be used where it takes what is asked for.
bool wants_sm90() {
    static const std::string_view forced = [] {
        const char* value = std::getenv("LC_HEAD");
        return std::string_view(value == nullptr ? "" : value);
    }();
    LC_CHECK(forced.empty() || forced == "portable" || forced == "sm90", "LC_HEAD must be portable or sm90, got '{}'",
             forced);
    if (forced == "portable") return false;
    const bool runs = frozen_head_has_sm90();
    LC_CHECK(runs || forced.empty(), "LC_HEAD=sm90: this build has no sm_90a code that this device runs");
    return runs;
}

// One call: what all its chunks share.
struct Call {
    const LinearCrossEntropyForward& args;
    Stream stream;
    DType dtype = args.hidden.dtype;
    DeviceRows hidden{args.hidden, dtype}, weight{args.weight, dtype};
    std::optional<DeviceRows> bias =
        args.bias ? std::make_optional<DeviceRows>(args.bias, DType::f32) : std::nullopt;  // logits are f32
    DeviceOutRows dhidden{args.dhidden}, dweight{args.dweight};
    DeviceScratch<float> nll{hidden.rows, stream}, scale{1, stream};

    const void* hidden_at(int64_t row) const {
        return static_cast<const std::byte*>(hidden.data) + row * hidden.stride * size_of(dtype);
    }
    void* dhidden_at(int64_t row) const {
        return static_cast<std::byte*>(dhidden.data) + row * dhidden.stride * size_of(dhidden.dtype);
    }
    bool is_frozen_head() const {
        return !dweight && !args.dbias && !bias && frozen_head_takes(hidden, weight, dhidden) && wants_sm90();
    }
};

// Whatever is asked for, with the logits of a chunk in memory.
struct LogitChunks {
    const Call& call;
    int64_t vocabulary = call.weight.rows, width = call.weight.columns;
    int64_t stride = ceil_div(vocabulary, kPerThread) * kPerThread;
    int64_t step = std::clamp<int64_t>(kMostBytes / (stride * int64_t{sizeof(float)}), 1,
                                       std::min(kMostRows, std::max<int64_t>(call.hidden.rows, 1)));
    DeviceScratch<float> logits{step * stride, call.stream};

    explicit LogitChunks(const Call& c) : call(c) {
        if (stride > vocabulary)  // whole packs are loaded: a row's padding is read, though not used
            LC_CUDA(cudaMemsetAsync(logits.data(), 0, static_cast<size_t>(step * stride) * sizeof(float),
                                    cuda::handle_of(call.stream)));
    }

    void chunk(int64_t first, int64_t rows) const {
        const auto& [args, stream, dtype, hidden, weight, bias, dhidden, dweight, nll, scale] = call;
        gemm({.op_b = Op::Transpose,
              .m = rows,
              .n = vocabulary,
              .k = width,
              .a = call.hidden_at(first),
              .lda = hidden.stride,
              .b = weight.data,
              .ldb = weight.stride,
              .c = logits.data(),
              .ldc = stride,
              .dtype = dtype,
              .c_dtype = DType::f32,
              .bias = bias ? bias->data : nullptr},
             stream);
        const RowArgs row_args{.logits = logits.data(),
                               .vocabulary = vocabulary,
                               .stride = stride,
                               .first = first,
                               .rows = rows,
                               .labels = Operand(args.labels),
                               .scale = scale.data(),
                               .nll = nll.data(),
                               .blocks = 1};
        const cudaStream_t queue = cuda::handle_of(stream);
        dispatch_cuda(dtype, "linear_cross_entropy", [&](auto type) {
            using T = typename decltype(type)::type;
            if (dhidden || dweight || args.dbias)
                launch_rows<T>(row_args, rows, queue);
            else
                row_kernel<T, false><<<grid_x(rows), kRowThreads, 0, queue>>>(row_args);
        });
        LC_LAUNCHED("linear_cross_entropy", queue);
        const int64_t gradient_stride = stride * int64_t{sizeof(float)} / size_of(dtype);
        if (dhidden)
            gemm({.m = rows,
                  .n = width,
                  .k = vocabulary,
                  .a = logits.data(),
                  .lda = gradient_stride,
                  .b = weight.data,
                  .ldb = weight.stride,
                  .c = call.dhidden_at(first),
                  .ldc = dhidden.stride,
                  .dtype = dtype,
                  .c_dtype = dhidden.dtype},
                 stream);
        if (dweight)
            gemm({.op_a = Op::Transpose,
                  .m = vocabulary,
                  .n = width,
                  .k = rows,
                  .a = logits.data(),
                  .lda = gradient_stride,
                  .b = call.hidden_at(first),
                  .ldb = hidden.stride,
                  .beta = first > 0 ? 1.0f : 0.0f,
                  .c = dweight.data,
                  .ldc = dweight.stride,
                  .dtype = dtype,
                  .c_dtype = dweight.dtype},
                 stream);
        if (args.dbias) {
            TensorView dlogits{reinterpret_cast<std::byte*>(logits.data()),
                               Layout{.shape = {rows, vocabulary}, .strides = {gradient_stride, 1}, .offset = 0}, dtype,
                               args.hidden.device};
            column_sum_cuda(DeviceRows(dlogits, dtype),
                            {args.dbias, first > 0 ? GradWrite::Accumulate : GradWrite::Overwrite}, stream);
        }
    }
};

template <class Chunks>
void in_chunks(const Chunks& chunks, int64_t rows) {
    for (int64_t first = 0; first < rows; first += chunks.step)
        chunks.chunk(first, std::min(chunks.step, rows - first));
}

void run(const Call& call) {
    const LinearCrossEntropyForward& args = call.args;
    const int64_t rows = call.hidden.rows;
    const cudaStream_t queue = cuda::handle_of(call.stream);
    const Operand labels(args.labels);
    scale_kernel<<<1, kOneBlock, 0, queue>>>(labels, rows, call.scale.data());
    LC_LAUNCHED("linear_cross_entropy", queue);
    if (call.is_frozen_head())
        in_chunks(FrozenHead(call.hidden, call.weight, args.labels, call.scale.data(), call.nll.data(), call.dhidden,
                             call.stream),
                  rows);
    else
        in_chunks(LogitChunks(call), rows);
    if (args.dbias && rows == 0) cuda::fill(args.dbias, 0, call.stream);
    if (call.dweight && rows == 0)
        cuda::fill(args.dweight, 0, call.stream);
    else
        call.dweight.finish();
    call.dhidden.finish();
    if (args.loss) {
        loss_kernel<<<1, kOneBlock, 0, queue>>>(call.nll.data(), labels, rows, Operand(args.loss));
        LC_LAUNCHED("linear_cross_entropy", queue);
    }
    if (args.nll && rows > 0) {
        put_kernel<<<grid_x(ceil_div(rows, 256)), 256, 0, queue>>>(call.nll.data(), rows, Operand(args.nll));
        LC_LAUNCHED("linear_cross_entropy", queue);
    }
}

}  // namespace

void linear_cross_entropy_forward_cuda(const LinearCrossEntropyForward& args, Stream stream) {
    run(Call{args, stream});
}

void linear_cross_entropy_backward_cuda(const LinearCrossEntropyBackward& args, Stream stream) {
    const auto scaled = [&](const TensorView& unit, const GradSlot& slot) {
        if (!slot) return;
        elementwise<2, 1>("linear_cross_entropy", Product{}, {unit, broadcast(args.dloss, unit.shape())}, {slot},
                          stream);
    };
    scaled(args.unit_dhidden, args.dhidden);
    scaled(args.unit_dweight, args.dweight);
    scaled(args.unit_dbias, args.dbias);
}

}  // namespace lc::kernels
