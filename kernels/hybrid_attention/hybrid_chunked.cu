// The chunked form of linearized attention on the GPU: grid, workspace, and the steps up to N and Z.
//
// MATHS    hybrid_attention.h. lambda is folded into phi_q.
// TILING   hybrid_chunked.cuh. Products are batched cuBLASLt GEMMs over all chunks of a slice; between them run kernels with one
//          warp a row (maps, weights) or one thread an element of the state, walking its chunks in order.
// COST     a row and query head: 4 D F + 4 F' D + 4 span D FLOPs; every operand makes one trip through memory a step, about
//          40 D bytes in f32. The states take 4 (bf16: 6) F' D bytes a chunk.
// NUMERICS operands of products have the activations' dtype (f32 or bf16); all products accumulate in f32, and u, scores, N, Z,
//          z and the running sums of S are f32. An f32 map beside bf16 activations enters u as the sum of two bf16 numbers. Z
//          adds up the weights as they are rounded for the product with V, so that a row with one key gives exactly its value.
//          The row maximum is exact: it is taken over all scores of the window before any exponential.
// LADDER   1 this. 2 would fuse maps, window and state in one kernel with S in registers.
// SOURCE   arXiv 2410.10254; chunked form: arXiv 2312.06635.
#include "kernels/feature_map/feature_map_device.cuh"
#include "kernels/hybrid_attention/hybrid_chunked.cuh"

namespace lc::kernels {
namespace {

constexpr int64_t kWorkspaceBytes = int64_t{1} << 30;  // a slice's share, unless one item alone needs more
constexpr int kStateThreads = 128;

int64_t round_up(int64_t n, int64_t multiple) {
    return ceil_div(n, multiple) * multiple;
}

ChunkGrid make_grid(const HybridAttentionForward& a) {
    ChunkGrid g{.spec = a.spec, .first_key = a.first_key};
    const int64_t rows = a.q.size(2), keys = a.k.size(2), w = a.spec.window_size;
    g.end = a.first_key + keys, g.first_row = g.end - rows;
    const bool terraced = a.spec.window == WindowKind::terraced;
    if (terraced && w % 64 == 0 && w <= 256) g.chunk = w;
    g.mixed = !(terraced && g.chunk == w);
    g.begin = g.first_key / g.chunk * g.chunk;
    g.chunks = std::max<int64_t>(1, ceil_div(g.end - g.begin, g.chunk));
    // How far left of a chunk's first row its window may begin.
    int64_t reach = 0;
    if (a.spec.window == WindowKind::sliding) reach = w - 1;
    if (terraced) reach = g.chunk % w == 0 ? w : 2 * w - 1;
    g.lag = std::min(ceil_div(reach, g.chunk), g.chunks - 1);
    return g;
}

// to [front + rows, columns], zero where there is no row or column. One warp a row.
template <class T>
__global__ void load_kernel(ChunkGrid g, StridedRows x, int64_t length, HeadOf head, int64_t origin, int64_t front,
                            int columns, bool packed, T* to) {
    const int64_t line = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / kWarp;
    if (line >= front + g.rows()) return;
    const int lane = threadIdx.x % kWarp;
    T* out = to + line * columns;
    const GridRow row(g, max(line - front, int64_t{0}));
    const int64_t t = row.position - origin;
    if (line < front || t < 0 || t >= length) {
        for (int i = lane; i < columns; i += kWarp) out[i] = from_float<T>(0);
        return;
    }
    const T* from = static_cast<const T*>(x.data) + x.row(row.batch, head.of(row.kv_head), t);
    if (packed) {
        for (int i = lane * Pack<T>::kSize; i < columns; i += kWarp * Pack<T>::kSize)
            store_pack(out + i, load_pack(from + i));
        return;
    }
    for (int i = lane; i < columns; i += kWarp) out[i] = i < x.d ? from[i * x.stride_d] : from_float<T>(0);
}

// to [heads, rows, columns] from w [*, D, F], zero padded. part 1: what rounding to T took away.
template <class T>
__global__ void load_map_kernel(Operand w, HeadOf head, int64_t heads0, int64_t heads, int d, int f, int rows,
                                int columns, int part, T* to) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= heads * rows * columns) return;
    const int column = static_cast<int>(i % columns), row = static_cast<int>(i / columns % rows);
    float value = 0;
    if (row < d && column < f) value = w.load((head.of(heads0 + i / columns / rows) * d + row) * f + column);
    const T rounded = from_float<T>(value);
    to[i] = part == 0 ? rounded : from_float<T>(value - to_float(rounded));
}

// u += bias (+ x), phi = map(u), times lambda for queries; zero where the row holds no query or key. One warp a row; a lane
// touches only its own entries of u.
template <class T>
__global__ void map_kernel(ChunkGrid g, float* u_all, int f, int ld_u, const T* x, int ld_x, Operand bias,
                           int bias_width, HeadOf head, Operand mix_logit, bool queries, T* phi_all, int ld_phi) {
    const int64_t r = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / kWarp;
    if (r >= g.rows()) return;
    const int lane = threadIdx.x % kWarp;
    const GridRow row(g, r);
    T* phi = phi_all + r * ld_phi;
    const int features = static_cast<int>(feature_size(g.spec.activation, f));
    for (int i = features + lane; i < ld_phi; i += kWarp) phi[i] = from_float<T>(0);
    const bool live = queries ? row.query : row.key;
    const int64_t h = head.of(row.kv_head);
    float* u = u_all + r * ld_u;
    for (int i = lane; i < f; i += kWarp) {
        if (!live)
            u[i] = 0;
        else {
            if (bias) u[i] += bias.load(h * bias_width + (bias_width == 1 ? 0 : i));
            if (g.spec.skip) u[i] += to_float(x[r * ld_x + i]);
        }
    }
    const float factor = !live ? 0.0f : queries ? DeviceMix(mix_logit, g.spec, h).lambda : 1.0f;
    feature_map_row_warp(g.spec.activation, u, f, [&](int i, float value) { phi[i] = from_float<T>(factor * value); });
}

// sums[chunk][f] (+)= sum over the chunk's rows of x, weighted or not. One block a chunk.
template <class T>
__global__ void chunk_sum_kernel(const T* x, int64_t chunk_rows, int columns, const float* row_weights, bool accumulate,
                                 float* sums) {
    const int64_t chunk = blockIdx.x;
    for (int f = threadIdx.x; f < columns; f += blockDim.x) {
        float sum = accumulate ? sums[chunk * columns + f] : 0.0f;
        for (int64_t r = chunk * chunk_rows; r < (chunk + 1) * chunk_rows; ++r) {
            const float value = to_float(x[r * columns + f]);
            sum += row_weights ? row_weights[r] * value : value;
        }
        sums[chunk * columns + f] = sum;
    }
}

// One element of S (or z: d = ld = 1 and no v) of one item, chunk by chunk: state[c] = init + sum of parts before chunk c - lag.
// Also the state handed on: whole chunks from parts, the rest key by key.
template <class T, class Out>
__global__ void state_kernel(ChunkGrid g, const float* parts, int ld_phi, int ld, int features, int d, Operand init,
                             HeadOf head, int64_t states, const T* phi, const T* v, Operand out, Out* state) {
    const int64_t size = static_cast<int64_t>(ld_phi) * ld, blocks = ceil_div(size, kStateThreads);
    const int64_t item = blockIdx.x / blocks, e = blockIdx.x % blocks * kStateThreads + threadIdx.x;
    if (e >= size) return;
    const int row = static_cast<int>(e / ld), column = static_cast<int>(e % ld);
    const bool inside = row < features && column < d;
    const int64_t hs = head.of(g.heads0 + item / g.batch), b = g.batch0 + item % g.batch;
    const int64_t place = ((b * states + hs) * features + row) * d + column;
    const int64_t chunk0 = item * g.chunks;
    float sum = init && inside ? init.load(place) : 0.0f;
    for (int64_t c = 0; c < g.chunks; ++c) {
        if (c > g.lag) sum += parts[(chunk0 + c - g.lag - 1) * size + e];
        state[(chunk0 + c) * size + e] = from_float<Out>(sum);
    }
    if (!out || !inside) return;
    const int64_t full = g.full_chunks();
    for (int64_t c = max(int64_t{0}, g.chunks - 1 - g.lag); c < full; ++c) sum += parts[(chunk0 + c) * size + e];
    const int64_t base = item * g.item_rows();
    for (int64_t t = full * g.chunk; g.begin + t < g.far_out(); ++t) {
        const float weight = to_float(phi[(base + t) * ld_phi + row]);
        sum += v ? weight * to_float(v[(base + t) * ld + column]) : weight;
    }
    out.put(place, sum);
}

// The weights of one row of the span and their sum Z. One warp a row.
template <class T>
__global__ void weight_kernel(ChunkGrid g, const float* scores, const float* linear, const T* phi_q, int ld_phi,
                              const float* z, Operand mix_logit, HeadOf head, T* weights, float* z_row) {
    const int64_t r = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / kWarp;
    if (r >= g.rows()) return;
    const int lane = threadIdx.x % kWarp;
    const GridRow row(g, r);
    const int64_t span = g.span();
    T* out = weights + r * span;
    if (!row.query) {
        for (int64_t x = lane; x < span; x += kWarp) out[x] = from_float<T>(0);
        if (lane == 0) z_row[r] = 1;
        return;
    }
    const SpanColumns columns(g, row);
    const float gamma = DeviceMix(mix_logit, g.spec, head.of(row.kv_head)).gamma;
    float high = -INFINITY, sum = 0;
    for (int64_t x = columns.far + lane; x < columns.end; x += kWarp) high = fmaxf(high, scores[r * span + x]);
    high = warp_max(high);
    for (int64_t x = lane; x < span; x += kWarp) {
        float value = 0;
        if (x >= columns.far && x < columns.end)
            value = gamma * expf(scores[r * span + x] - high);
        else if (x >= columns.first && x < columns.far)
            value = linear ? linear[r * span + x] : 0.0f;
        out[x] = from_float<T>(value);
        sum += to_float(out[x]);
    }
    for (int f = lane; f < ld_phi; f += kWarp) sum += to_float(phi_q[r * ld_phi + f]) * z[row.chunk * ld_phi + f];
    sum = warp_sum(sum);
    if (lane == 0) z_row[r] = g.spec.window == WindowKind::none ? sum + static_cast<float>(kLinearEpsilon) : sum;
}

}  // namespace

void ChunkBuffer::clear(Stream stream) const {
    if (memory.data())
        LC_CUDA(cudaMemsetAsync(memory.data(), 0, (front + elements) * element_bytes, cuda::handle_of(stream)));
}
void ChunkBuffer::clear_front(Stream stream) const {
    if (front > 0) LC_CUDA(cudaMemsetAsync(memory.data(), 0, front * element_bytes, cuda::handle_of(stream)));
}

HybridChunked::HybridChunked(const HybridAttentionForward& args, const HybridGradSlots* slots, Stream stream)
    : args_(args),
      slots_(slots && slots->any() ? slots : nullptr),
      stream_(stream),
      operand_(args.q.dtype),
      grid_(make_grid(args)),
      batch_(args.q.size(0)),
      kv_heads_(args.k.size(1)),
      group_(args.q.size(1) / args.k.size(1)),
      d_(args.q.size(3)),
      f_(args.wq.size(2)),
      features_(feature_size(args.spec.activation, f_)),
      dp_(round_up(d_, 8)),
      fp_(round_up(f_, 8)),
      ep_(round_up(features_, 8)),
      shared_maps_(args.wk.size(0) == args.k.size(1)),
      window_(args.spec.window != WindowKind::none) {
    if (slots_) {
        const HybridGradSlots& s = *slots_;
        want_scores_ = window_ && (s.dq || s.dk);
        want_keys_ = s.dk || s.dv || s.dwk || s.dbk || s.ds_in || s.dz_in;
        want_rows_ = s.dq || s.dk || s.dwq || s.dbq || s.dmix_logit;
    }
    const int64_t span = grid_.span(), state = ep_ * dp_, narrow = size_of(operand_);
    for (segment_ = 8; grid_.chunks % segment_ != 0;) segment_ /= 2;
    const int64_t floats = 2 * fp_ + 3 * span + 5 * dp_ + 2 * ep_ + (2 * state + dp_ * fp_ / segment_) / grid_.chunk;
    const int64_t operands = 5 * dp_ + 2 * ep_ + 2 * fp_ + 3 * span + 2 * state / grid_.chunk;
    const int64_t item_bytes = grid_.item_rows() * (4 * floats + narrow * operands);
    const int64_t items = std::max<int64_t>(1, kWorkspaceBytes / item_bytes);
    slice_heads_ = std::min(kv_heads_, items);
    slice_batch_ = std::clamp<int64_t>(items / kv_heads_, 1, std::max<int64_t>(batch_, 1));

    const int64_t most = slice_heads_ * slice_batch_, rows = most * grid_.item_rows(), chunks = most * grid_.chunks;
    const int64_t front = grid_.lag * grid_.chunk;
    const DType f32 = DType::f32;
    const auto make = [&](DType dtype, int64_t count, int64_t pad = 0) {
        return ChunkBuffer(dtype, count, stream, pad);
    };
    q_ = make(operand_, rows * dp_), k_ = make(operand_, rows * dp_, front * dp_),
    v_ = make(operand_, rows * dp_, front * dp_);
    wq_ = make(operand_, 2 * slice_heads_ * dp_ * fp_), wk_ = make(operand_, 2 * slice_heads_ * dp_ * fp_);
    uq_ = make(f32, rows * fp_), uk_ = make(f32, rows * fp_);
    phi_q_ = make(operand_, rows * ep_), phi_k_ = make(operand_, rows * ep_, front * ep_);
    parts_ = make(f32, chunks * state), z_parts_ = make(f32, chunks * ep_);
    s_ = make(operand_, chunks * state), z_ = make(f32, chunks * ep_);
    if (window_) scores_ = make(f32, rows * span);
    if (grid_.mixed) linear_ = make(f32, rows * span);
    weights_ = make(operand_, rows * span), z_row_ = make(f32, rows), n_ = make(f32, rows * dp_);
    phi_k_.clear_front(stream);
    if (!slots_) return;
    dn_ = make(operand_, rows * dp_), dz_row_ = make(f32, rows);
    if (grid_.mixed || want_scores_) dc_ = make(f32, rows * span);
    if (grid_.mixed) dlinear_ = make(operand_, rows * span);
    if (want_scores_) dscores_ = make(operand_, rows * span);
    dw_parts_ = make(f32, chunks / segment_ * dp_ * fp_), db_parts_ = make(f32, chunks * fp_);
    if (want_rows_) {
        dphi_q_ = make(f32, rows * ep_), d_row_ = make(f32, rows), du_q_ = make(operand_, rows * fp_);
        if (slots_->dq) dq_ = make(f32, rows * dp_);
    }
    if (want_keys_) {
        t_parts_ = make(f32, chunks * state), tz_parts_ = make(f32, chunks * ep_);
        t_ = make(operand_, chunks * state), tz_ = make(f32, chunks * ep_);
        dphi_k_ = make(f32, rows * ep_, front * ep_), du_k_ = make(operand_, rows * fp_);
        if (slots_->dk) dk_ = make(f32, rows * dp_, front * dp_);
        if (slots_->dv) dv_ = make(f32, rows * dp_, front * dp_);
    }
    sums_q_.make(slots_->dwq, slots_->dbq, args.wq.size(0), d_, f_, stream);
    sums_k_.make(slots_->dwk, slots_->dbk, args.wk.size(0), d_, f_, stream);
    if (slots_->dmix_logit) dmix_ = make(f32, args.q.size(1)), dmix_.clear(stream);
}

bool HybridChunked::next_slice() {
    ++slice_;
    const int64_t by_head = ceil_div(kv_heads_, slice_heads_), by_batch = ceil_div(batch_, slice_batch_);
    if (slice_ >= by_head * by_batch) return false;
    grid_.heads0 = slice_ % by_head * slice_heads_, grid_.heads = std::min(slice_heads_, kv_heads_ - grid_.heads0);
    grid_.batch0 = slice_ / by_head * slice_batch_, grid_.batch = std::min(slice_batch_, batch_ - grid_.batch0);
    return true;
}

void HybridChunked::load_rows(const TensorView& view, const HeadOf& head, int64_t origin, const ChunkBuffer& to) {
    const cudaStream_t queue = cuda::handle_of(stream_);
    const StridedRows x(view);
    const int64_t front = to.front / dp_;
    dispatch_cuda(operand_, "hybrid_attention", [&](auto type) {
        using T = typename decltype(type)::type;
        const int64_t unit = Pack<T>::kSize;
        const bool packed = x.stride_d == 1 && d_ == dp_ && d_ % unit == 0 &&
                            is_pack_aligned(static_cast<T*>(x.data)) && x.stride_b % unit == 0 &&
                            x.stride_h % unit == 0 && x.stride_t % unit == 0;
        load_kernel<T><<<grid_x(ceil_div(front + grid_.rows(), kRowsPerBlock)), kRowThreads, 0, queue>>>(
            grid_, x, view.size(2), head, origin, front, static_cast<int>(dp_), packed, to.as<T>() - to.front);
    });
    LC_LAUNCHED("hybrid_attention", queue);
}

// u = x W; the copy of W in the operand dtype stays for the way back.
void HybridChunked::project(const ChunkBuffer& x, const TensorView& w, const HeadOf& head, const ChunkBuffer& w_copy,
                            const ChunkBuffer& u) {
    const cudaStream_t queue = cuda::handle_of(stream_);
    const int64_t size = dp_ * fp_, all = grid_.heads * size, rows = grid_.batch * grid_.item_rows();
    for (int part = 0; part < (w.dtype == operand_ ? 1 : 2); ++part) {
        const int64_t place = part * slice_heads_ * size;
        dispatch_cuda(operand_, "hybrid_attention", [&](auto type) {
            using T = typename decltype(type)::type;
            load_map_kernel<T><<<grid_x(ceil_div(all, 256)), 256, 0, queue>>>(
                Operand(w), head, grid_.heads0, grid_.heads, static_cast<int>(d_), static_cast<int>(f_),
                static_cast<int>(dp_), static_cast<int>(fp_), part, w_copy.as<T>() + place);
        });
        LC_LAUNCHED("hybrid_attention", queue);
        gemm({.m = rows,
              .n = fp_,
              .k = dp_,
              .a = x.at(0),
              .lda = dp_,
              .b = w_copy.at(place),
              .ldb = fp_,
              .beta = part == 0 ? 0.0f : 1.0f,
              .c = u.at(0),
              .ldc = fp_,
              .dtype = operand_,
              .c_dtype = DType::f32,
              .batch = grid_.heads,
              .stride_a = rows * dp_,
              .stride_b = size,
              .stride_c = rows * fp_},
             stream_);
    }
}

void HybridChunked::chunk_gemm(Op op_a, Op op_b, int64_t m, int64_t n, int64_t k, const void* a, int64_t lda,
                               int64_t stride_a, const void* b, int64_t ldb, int64_t stride_b, float beta, void* c,
                               int64_t ldc, int64_t stride_c, float alpha) {
    gemm({.op_a = op_a,
          .op_b = op_b,
          .m = m,
          .n = n,
          .k = k,
          .alpha = alpha,
          .a = a,
          .lda = lda,
          .b = b,
          .ldb = ldb,
          .beta = beta,
          .c = c,
          .ldc = ldc,
          .dtype = operand_,
          .c_dtype = DType::f32,
          .batch = grid_.items() * grid_.chunks,
          .stride_a = stride_a,
          .stride_b = stride_b,
          .stride_c = stride_c},
         stream_);
}

void HybridChunked::chunk_sums(const ChunkBuffer& rows, int64_t columns, const float* row_weights, bool accumulate,
                               const ChunkBuffer& sums) {
    const cudaStream_t queue = cuda::handle_of(stream_);
    dispatch_cuda(operand_, "hybrid_attention", [&](auto type) {
        using T = typename decltype(type)::type;
        chunk_sum_kernel<T><<<grid_x(grid_.items() * grid_.chunks), 128, 0, queue>>>(
            rows.as<T>(), grid_.chunk, static_cast<int>(columns), row_weights, accumulate, sums.as<float>());
    });
    LC_LAUNCHED("hybrid_attention", queue);
}

void HybridChunked::load_keys() {
    load_rows(args_.k, {}, grid_.first_key, k_);
    load_rows(args_.v, {}, grid_.first_key, v_);
}

// phi_k, and the states S, z before the span of every chunk.
void HybridChunked::map_keys(int64_t g) {
    const cudaStream_t queue = cuda::handle_of(stream_);
    const HeadOf head = shared_maps_ ? HeadOf{} : HeadOf{group_, g};
    project(k_, args_.wk, head, wk_, uk_);
    const int64_t size = ep_ * dp_, states = args_.wk.size(0);
    const int ep = static_cast<int>(ep_), dp = static_cast<int>(dp_);
    dispatch_cuda(operand_, "hybrid_attention", [&](auto type) {
        using T = typename decltype(type)::type;
        map_kernel<T><<<grid_x(ceil_div(grid_.rows(), kRowsPerBlock)), kRowThreads, 0, queue>>>(
            grid_, uk_.as<float>(), static_cast<int>(f_), static_cast<int>(fp_), k_.as<T>(), dp, Operand(args_.bk),
            args_.bk ? static_cast<int>(args_.bk.size(1)) : 0, head, Operand(), false, phi_k_.as<T>(), ep);
        LC_LAUNCHED("hybrid_attention", queue);
        chunk_sums(phi_k_, ep_, nullptr, false, z_parts_);
        chunk_gemm(Op::Transpose, Op::None, ep_, dp_, grid_.chunk, phi_k_.at(0), ep_, grid_.chunk * ep_, v_.at(0), dp_,
                   grid_.chunk * dp_, 0, parts_.at(0), dp_, size);
        state_kernel<T, T><<<grid_x(grid_.items() * ceil_div(size, kStateThreads)), kStateThreads, 0, queue>>>(
            grid_, parts_.as<float>(), ep, dp, static_cast<int>(features_), static_cast<int>(d_), Operand(args_.s_in),
            head, states, phi_k_.as<T>(), v_.as<T>(), Operand(args_.s_out), s_.as<T>());
        LC_LAUNCHED("hybrid_attention", queue);
        state_kernel<T, float><<<grid_x(grid_.items() * ceil_div(ep_, kStateThreads)), kStateThreads, 0, queue>>>(
            grid_, z_parts_.as<float>(), ep, 1, static_cast<int>(features_), 1, Operand(args_.z_in), head, states,
            phi_k_.as<T>(), static_cast<const T*>(nullptr), Operand(args_.z_out), z_.as<float>());
        LC_LAUNCHED("hybrid_attention", queue);
    });
}

// phi_q, the weights of all spans, N and Z of query head g of every group.
void HybridChunked::attend(int64_t g) {
    const cudaStream_t queue = cuda::handle_of(stream_);
    const HeadOf head{group_, g};
    load_rows(args_.q, head, grid_.first_row, q_);
    project(q_, args_.wq, head, wq_, uq_);
    const int64_t c = grid_.chunk, span = grid_.span(), back = grid_.lag * c;
    const int ep = static_cast<int>(ep_);
    const unsigned row_blocks = grid_x(ceil_div(grid_.rows(), kRowsPerBlock));
    dispatch_cuda(operand_, "hybrid_attention", [&](auto type) {
        using T = typename decltype(type)::type;
        map_kernel<T><<<row_blocks, kRowThreads, 0, queue>>>(
            grid_, uq_.as<float>(), static_cast<int>(f_), static_cast<int>(fp_), q_.as<T>(), static_cast<int>(dp_),
            Operand(args_.bq), args_.bq ? static_cast<int>(args_.bq.size(1)) : 0, head, Operand(args_.mix_logit), true,
            phi_q_.as<T>(), ep);
        LC_LAUNCHED("hybrid_attention", queue);
        if (window_)
            chunk_gemm(Op::None, Op::Transpose, c, span, dp_, q_.at(0), dp_, c * dp_, k_.at(-back * dp_), dp_, c * dp_,
                       0, scores_.at(0), span, c * span, 1 / std::sqrt(static_cast<float>(d_)));
        if (grid_.mixed)
            chunk_gemm(Op::None, Op::Transpose, c, span, ep_, phi_q_.at(0), ep_, c * ep_, phi_k_.at(-back * ep_), ep_,
                       c * ep_, 0, linear_.at(0), span, c * span);
        weight_kernel<T><<<row_blocks, kRowThreads, 0, queue>>>(
            grid_, window_ ? scores_.as<float>() : nullptr, grid_.mixed ? linear_.as<float>() : nullptr, phi_q_.as<T>(),
            ep, z_.as<float>(), Operand(args_.mix_logit), head, weights_.as<T>(), z_row_.as<float>());
        LC_LAUNCHED("hybrid_attention", queue);
    });
    chunk_gemm(Op::None, Op::None, c, dp_, span, weights_.at(0), span, c * span, v_.at(-back * dp_), dp_, c * dp_, 0,
               n_.at(0), dp_, c * dp_);
    chunk_gemm(Op::None, Op::None, c, dp_, ep_, phi_q_.at(0), ep_, c * ep_, s_.at(0), dp_, ep_ * dp_, 1, n_.at(0), dp_,
               c * dp_);
}

}  // namespace lc::kernels
