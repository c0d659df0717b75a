// The chunked form of linearized attention on the GPU: gradients.
//
// MATHS    hybrid_attention.h. phi_q holds lambda phi_q. Inside a span the weights' gradients are dc_ij = dN_i.v_j + dZ_i; left of
//          a row's far end they go to phi_q and phi_k, from there on through the scores. Far chunks go through S and
//          T[c] = sum of phi_q^T dN over chunks beyond c + lag (+ dS_out). D_i is made by the identity -phi_q,i . dphi_q,i.
// TILING   hybrid_chunked.cuh. A sum over the rows that see a key is lag+1 batched products, one for each chunk of the spans: in one
//          product every key has a single writer.
// COST     a row and query head: 10 F' D + 6 D F + 8 span D FLOPs beside the forward's, which is made again.
// NUMERICS as hybrid_chunked.cu: dN, dS, du, T enter products in the activations' dtype, everything is summed in f32. dZ is made
//          from dN as it was rounded, so that the weights' gradients of a row add up to zero. Scores are compared with the maximum
//          of the very same scores. dk and dv of a KV head are sums over its query heads in order; dW, db and the logit's gradient
//          are partial sums of a fixed number of rows, added in order.
// LADDER   1 this.
// SOURCE   arXiv 2410.10254; the gradient through the row maximum and the identity for D_i are derived in hybrid_attention.h.
#include "kernels/feature_map/feature_map_device.cuh"
#include "kernels/hybrid_attention/hybrid_chunked.cuh"

namespace lc::kernels {
namespace {

constexpr int kStateThreads = 128;

template <class T>
__global__ void upstream_kernel(ChunkGrid g, HeadOf head, StridedRows dy, const float* n, const float* z, int ld, T* dn,
                                float* dz) {
    const int64_t r = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / kWarp;
    if (r >= g.rows()) return;
    const int lane = threadIdx.x % kWarp;
    const GridRow row(g, r);
    const int64_t from = row.query ? dy.row(row.batch, head.of(row.kv_head), row.position - g.first_row) : 0;
    float dot = 0;
    for (int i = lane; i < ld; i += kWarp) {
        const bool inside = row.query && i < dy.d;
        const T value =
            from_float<T>(inside ? to_float(static_cast<const T*>(dy.data)[from + i * dy.stride_d]) / z[r] : 0.0f);
        dn[r * ld + i] = value;
        if (inside) dot += to_float(value) * n[r * ld + i];
    }
    dot = warp_sum(dot);
    if (lane == 0) dz[r] = row.query ? -dot / z[r] : 0.0f;
}

// dlinear = dc on far keys of the span, 0 elsewhere.
template <class T>
__global__ void linear_gradient_kernel(ChunkGrid g, const float* dc, const float* dz, T* dlinear) {
    const int64_t r = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / kWarp;
    if (r >= g.rows()) return;
    const GridRow row(g, r);
    const SpanColumns columns(g, row);
    for (int64_t x = threadIdx.x % kWarp; x < g.span(); x += kWarp) {
        const bool far = row.query && x >= columns.first && x < columns.far;
        dlinear[r * g.span() + x] = from_float<T>(far ? dc[r * g.span() + x] + dz[r] : 0.0f);
    }
}

// dscores = scale (p dc - [s = m] D / ties) in the window, 0 elsewhere.
template <class T>
__global__ void score_gradient_kernel(ChunkGrid g, const float* scores, const T* weights, const float* dc,
                                      const float* dz, const float* d_row, float scale, T* dscores) {
    const int64_t r = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / kWarp;
    if (r >= g.rows()) return;
    const int lane = threadIdx.x % kWarp;
    const GridRow row(g, r);
    const SpanColumns columns(g, row);
    const int64_t span = g.span(), begin = row.query ? columns.far : span, end = row.query ? columns.end : span;
    const float* s = scores + r * span;
    float high = -INFINITY, ties = 0;
    for (int64_t x = begin + lane; x < end; x += kWarp) high = fmaxf(high, s[x]);
    high = warp_max(high);
    for (int64_t x = begin + lane; x < end; x += kWarp) ties += s[x] == high ? 1.0f : 0.0f;
    ties = warp_sum(ties);
    for (int64_t x = lane; x < span; x += kWarp) {
        float value = 0;
        if (x >= begin && x < end) {
            value = to_float(weights[r * span + x]) * (dc[r * span + x] + dz[r]);
            if (s[x] == high) value -= d_row[r] / ties;
        }
        dscores[r * span + x] = from_float<T>(scale * value);
    }
}

// Back through the maps, one warp a row: g = dphi + z (times dZ for queries), D = -phi.g and du of lambda g for queries.
template <class T>
__global__ void map_backward_kernel(ChunkGrid g, const float* u, int f, int ld_u, const T* phi, const float* dphi,
                                    const float* z, int ld_phi, const float* dz, HeadOf head, Operand mix_logit,
                                    bool queries, float* d_row, T* du) {
    const int64_t r = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / kWarp;
    if (r >= g.rows()) return;
    const int lane = threadIdx.x % kWarp;
    const GridRow row(g, r);
    T* out = du + r * ld_u;
    if (!(queries ? row.query : row.key)) {
        for (int i = lane; i < ld_u; i += kWarp) out[i] = from_float<T>(0);
        if (queries && lane == 0) d_row[r] = 0;
        return;
    }
    for (int i = f + lane; i < ld_u; i += kWarp) out[i] = from_float<T>(0);
    const float factor = queries ? DeviceMix(mix_logit, g.spec, head.of(row.kv_head)).lambda : 1.0f;
    const float z_factor = queries ? dz[r] : 1.0f;
    const auto grad = [&](int i) { return dphi[r * ld_phi + i] + z_factor * z[row.chunk * ld_phi + i]; };
    if (queries) {
        const int features = static_cast<int>(feature_size(g.spec.activation, f));
        float dot = 0;
        for (int i = lane; i < features; i += kWarp) dot += to_float(phi[r * ld_phi + i]) * grad(i);
        dot = warp_sum(dot);
        if (lane == 0) d_row[r] = -dot;
    }
    feature_map_row_backward_warp(
        g.spec.activation, u + r * ld_u, f, [&](int i) { return factor * grad(i); },
        [&](int i, float value) { out[i] = from_float<T>(value); });
}

// One element of T (or t: d = ld = 1) of one item, from the last chunk down: what chunk c's keys get from the rows beyond its
// span and from the state handed on. Then the gradient of the state handed in.
template <class Out>
__global__ void state_gradient_kernel(ChunkGrid g, const float* parts, int ld_phi, int ld, int features, int d,
                                      Operand handed_on, HeadOf head, int64_t states, Operand handed_in, Out* state) {
    const int64_t size = static_cast<int64_t>(ld_phi) * ld, blocks = ceil_div(size, kStateThreads);
    const int64_t item = blockIdx.x / blocks, e = blockIdx.x % blocks * kStateThreads + threadIdx.x;
    if (e >= size) return;
    const int row = static_cast<int>(e / ld), column = static_cast<int>(e % ld);
    const bool inside = row < features && column < d;
    const int64_t hs = head.of(g.heads0 + item / g.batch), b = g.batch0 + item % g.batch;
    const int64_t place = ((b * states + hs) * features + row) * d + column, chunk0 = item * g.chunks,
                  full = g.full_chunks();
    const float out = handed_on && inside ? handed_on.load(place) : 0.0f;
    float sum = 0;
    for (int64_t c = g.chunks - 1; c >= 0; --c) {
        if (c + g.lag + 1 < g.chunks) sum += parts[(chunk0 + c + g.lag + 1) * size + e];
        state[(chunk0 + c) * size + e] = from_float<Out>(c < full ? sum + out : sum);
    }
    if (!handed_in || !inside) return;
    for (int64_t c = min(g.lag, g.chunks - 1); c >= 0; --c) sum += parts[(chunk0 + c) * size + e];
    handed_in.put(place, sum + out);
}

// The keys of the last, partly handed-on chunk: dphi_k += dS_out v + dz_out, dv += dS_out^T phi_k. One block a key.
template <class T>
__global__ void handed_on_kernel(ChunkGrid g, int64_t keys, const T* phi, int ld_phi, const T* v, int ld, int features,
                                 int d, Operand ds, Operand dz, HeadOf head, int64_t states, float* dphi, float* dv) {
    const int64_t item = blockIdx.x / keys, r = item * g.item_rows() + g.full_chunks() * g.chunk + blockIdx.x % keys;
    const int64_t hs = head.of(g.heads0 + item / g.batch), b = g.batch0 + item % g.batch;
    const int64_t state = (b * states + hs) * features;
    if (g.begin + r % g.item_rows() < g.first_key) return;
    for (int f = threadIdx.x; f < features; f += blockDim.x) {
        float sum = dz ? dz.load(state + f) : 0.0f;
        for (int x = 0; x < d && ds; ++x) sum += ds.load((state + f) * d + x) * to_float(v[r * ld + x]);
        dphi[r * ld_phi + f] += sum;
    }
    for (int x = threadIdx.x; x < d && dv && ds; x += blockDim.x) {
        float sum = 0;
        for (int f = 0; f < features; ++f) sum += ds.load((state + f) * d + x) * to_float(phi[r * ld_phi + f]);
        dv[r * ld + x] += sum;
    }
}

// dx += du: the skip connection of the map.
template <class T>
__global__ void skip_kernel(int64_t rows, const T* du, int ld_u, int f, float* dx, int ld) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < rows * f) dx[i / f * ld + i % f] += to_float(du[i / f * ld_u + i % f]);
}

// dw[h][d][f] += sum over the head's segments; one thread an element.
__global__ void map_sum_kernel(const float* parts, int64_t segments, HeadOf head, int64_t heads0, int64_t heads, int d,
                               int f, int rows, int columns, float* dw) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= heads * d * f) return;
    const int column = static_cast<int>(i % f), row = static_cast<int>(i / f % d);
    const int64_t h = i / f / d;
    float sum = 0;
    for (int64_t s = h * segments; s < (h + 1) * segments; ++s) sum += parts[(s * rows + row) * columns + column];
    dw[(head.of(heads0 + h) * d + row) * f + column] += sum;
}

// dmix[h] += dlogit * sum of D over all rows of the slice's head. One block a head.
__global__ void mix_sum_kernel(ChunkGrid g, const float* d_row, HeadOf head, Operand mix_logit, float* dmix) {
    const int64_t rows = g.batch * g.item_rows(), h = head.of(g.heads0 + blockIdx.x);
    double sum = 0;
    for (int64_t r = threadIdx.x; r < rows; r += blockDim.x) sum += d_row[blockIdx.x * rows + r];
    sum = block_sum(sum);
    if (threadIdx.x == 0) dmix[h] += static_cast<float>(DeviceMix(mix_logit, g.spec, h).dlogit * sum);
}

// out[i] (+)= sum of the i-th `fold` numbers.
__global__ void store_sums_kernel(const float* sums, int64_t count, int64_t fold, Operand out) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    float sum = 0;
    for (int64_t k = 0; k < fold; ++k) sum += sums[i * fold + k];
    out.put(i, sum);
}

__global__ void store_rows_kernel(ChunkGrid g, const float* from, int ld, HeadOf head, int64_t origin, int64_t length,
                                  StridedRows to, bool accumulate) {
    const int64_t r = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / kWarp;
    if (r >= g.rows()) return;
    const GridRow row(g, r);
    const int64_t t = row.position - origin;
    if (t < 0 || t >= length) return;
    const int64_t start = to.row(row.batch, head.of(row.kv_head), t);
    for (int i = threadIdx.x % kWarp; i < to.d; i += kWarp) {
        const int64_t place = start + i * to.stride_d;
        const float before = accumulate ? cuda::load_float(to.data, place, to.dtype) : 0.0f;
        cuda::store_float(to.data, place, to.dtype, before + from[r * ld + i]);
    }
}

void store_sums(const ChunkBuffer& sums, const GradSlot& slot, Stream stream) {
    if (!slot || slot.view.numel() == 0) return;
    const int64_t count = slot.view.numel();
    store_sums_kernel<<<grid_x(ceil_div(count, 256)), 256, 0, cuda::handle_of(stream)>>>(
        sums.as<float>(), count, sums.elements / count, Operand(slot));
    LC_LAUNCHED("hybrid_attention", cuda::handle_of(stream));
}

}  // namespace

void ParameterSums::make(const GradSlot& dw_slot, const GradSlot& db_slot, int64_t heads, int64_t d, int64_t f,
                         Stream stream) {
    if (dw_slot) dw = ChunkBuffer(DType::f32, heads * d * f, stream), dw.clear(stream);
    if (db_slot) db = ChunkBuffer(DType::f32, heads * f, stream), db.clear(stream);
}

void hybrid_upstream_cuda(const HybridChunked& chunked, int64_t g, const TensorView& dy, Stream stream) {
    const ChunkGrid& grid = chunked.grid();
    dispatch_cuda(chunked.operand(), "hybrid_attention", [&](auto type) {
        using T = typename decltype(type)::type;
        upstream_kernel<T><<<grid_x(ceil_div(grid.rows(), kRowsPerBlock)), kRowThreads, 0, cuda::handle_of(stream)>>>(
            grid, chunked.query_head(g), StridedRows(dy), chunked.numerator(), chunked.denominator(),
            static_cast<int>(chunked.padded_d()), static_cast<T*>(chunked.upstream()), chunked.upstream_z());
    });
    LC_LAUNCHED("hybrid_attention", cuda::handle_of(stream));
}

// to[key] += sum over the rows i that have it in their span of weights[i][key] rows[i]
void HybridChunked::span_transposed(const ChunkBuffer& weights, const ChunkBuffer& rows, int64_t columns,
                                    const ChunkBuffer& to) {
    const int64_t c = grid_.chunk, span = grid_.span();
    for (int64_t j = 0; j <= grid_.lag; ++j)
        chunk_gemm(Op::Transpose, Op::None, c, columns, c, weights.at(j * c), span, c * span, rows.at(0), columns,
                   c * columns, 1, to.at((j - grid_.lag) * c * columns), columns, c * columns);
}

// dW += x^T du and db += sum of du.
void HybridChunked::parameter_sums(const ChunkBuffer& x, const ChunkBuffer& du, const HeadOf& head,
                                   const ParameterSums& sums) {
    const cudaStream_t queue = cuda::handle_of(stream_);
    const auto add = [&](const ChunkBuffer& parts, int64_t segments, int64_t d, int64_t rows, const ChunkBuffer& to) {
        map_sum_kernel<<<grid_x(ceil_div(grid_.heads * d * f_, 256)), 256, 0, queue>>>(
            parts.as<float>(), segments, head, grid_.heads0, grid_.heads, static_cast<int>(d), static_cast<int>(f_),
            static_cast<int>(rows), static_cast<int>(fp_), to.as<float>());
        LC_LAUNCHED("hybrid_attention", queue);
    };
    if (sums.dw.memory.data()) {
        const int64_t rows = segment_ * grid_.chunk;
        gemm({.op_a = Op::Transpose,
              .m = dp_,
              .n = fp_,
              .k = rows,
              .a = x.at(0),
              .lda = dp_,
              .b = du.at(0),
              .ldb = fp_,
              .c = dw_parts_.at(0),
              .ldc = fp_,
              .dtype = operand_,
              .c_dtype = DType::f32,
              .batch = grid_.items() * grid_.chunks / segment_,
              .stride_a = rows * dp_,
              .stride_b = rows * fp_,
              .stride_c = dp_ * fp_},
             stream_);
        add(dw_parts_, grid_.batch * grid_.chunks / segment_, d_, dp_, sums.dw);
    }
    if (sums.db.memory.data()) {
        chunk_sums(du, fp_, nullptr, false, db_parts_);
        add(db_parts_, grid_.batch * grid_.chunks, 1, 1, sums.db);
    }
}

// dx += du W^T (+ du)
void HybridChunked::back_through_map(const ChunkBuffer& du, const ChunkBuffer& w_copy, const ChunkBuffer& dx) {
    const int64_t rows = grid_.batch * grid_.item_rows();
    gemm({.op_b = Op::Transpose,
          .m = rows,
          .n = dp_,
          .k = fp_,
          .a = du.at(0),
          .lda = fp_,
          .b = w_copy.at(0),
          .ldb = fp_,
          .beta = 1,
          .c = dx.at(0),
          .ldc = dp_,
          .dtype = operand_,
          .c_dtype = DType::f32,
          .batch = grid_.heads,
          .stride_a = rows * fp_,
          .stride_b = dp_ * fp_,
          .stride_c = rows * dp_},
         stream_);
    if (!grid_.spec.skip) return;
    dispatch_cuda(operand_, "hybrid_attention", [&](auto type) {
        using T = typename decltype(type)::type;
        skip_kernel<T><<<grid_x(ceil_div(grid_.rows() * f_, 256)), 256, 0, cuda::handle_of(stream_)>>>(
            grid_.rows(), du.as<T>(), static_cast<int>(fp_), static_cast<int>(f_), dx.as<float>(),
            static_cast<int>(dp_));
    });
    LC_LAUNCHED("hybrid_attention", cuda::handle_of(stream_));
}

void HybridChunked::store_rows(const ChunkBuffer& from, const HeadOf& head, int64_t origin, const GradSlot& to) {
    store_rows_kernel<<<grid_x(ceil_div(grid_.rows(), kRowsPerBlock)), kRowThreads, 0, cuda::handle_of(stream_)>>>(
        grid_, from.as<float>(), static_cast<int>(dp_), head, origin, to.view.size(2), StridedRows(to.view),
        to.accumulate());
    LC_LAUNCHED("hybrid_attention", cuda::handle_of(stream_));
}

// Everything that the rows of query head g give: dq and the parameters of its map, and their shares of the keys' gradients.
void HybridChunked::backward_rows(int64_t g) {
    const cudaStream_t queue = cuda::handle_of(stream_);
    const HeadOf head{group_, g};
    const int64_t c = grid_.chunk, span = grid_.span(), back = grid_.lag * c;
    const unsigned row_blocks = grid_x(ceil_div(grid_.rows(), kRowsPerBlock));
    const int ep = static_cast<int>(ep_);
    if (g == 0) dk_.clear(stream_), dv_.clear(stream_);
    if (g == 0 || !shared_maps_) dphi_k_.clear(stream_);
    if (grid_.mixed || want_scores_)
        chunk_gemm(Op::None, Op::Transpose, c, span, dp_, dn_.at(0), dp_, c * dp_, v_.at(-back * dp_), dp_, c * dp_, 0,
                   dc_.at(0), span, c * span);
    dispatch_cuda(operand_, "hybrid_attention", [&](auto type) {
        using T = typename decltype(type)::type;
        if (grid_.mixed) {
            linear_gradient_kernel<T>
                <<<row_blocks, kRowThreads, 0, queue>>>(grid_, dc_.as<float>(), dz_row_.as<float>(), dlinear_.as<T>());
            LC_LAUNCHED("hybrid_attention", queue);
        }
        if (want_rows_) {
            chunk_gemm(Op::None, Op::Transpose, c, ep_, dp_, dn_.at(0), dp_, c * dp_, s_.at(0), dp_, ep_ * dp_, 0,
                       dphi_q_.at(0), ep_, c * ep_);
            if (grid_.mixed)
                chunk_gemm(Op::None, Op::None, c, ep_, span, dlinear_.at(0), span, c * span, phi_k_.at(-back * ep_),
                           ep_, c * ep_, 1, dphi_q_.at(0), ep_, c * ep_);
            map_backward_kernel<T><<<row_blocks, kRowThreads, 0, queue>>>(
                grid_, uq_.as<float>(), static_cast<int>(f_), static_cast<int>(fp_), phi_q_.as<T>(),
                dphi_q_.as<float>(), z_.as<float>(), ep, dz_row_.as<float>(), head, Operand(args_.mix_logit), true,
                d_row_.as<float>(), du_q_.as<T>());
            LC_LAUNCHED("hybrid_attention", queue);
        }
        if (want_scores_) {
            score_gradient_kernel<T><<<row_blocks, kRowThreads, 0, queue>>>(
                grid_, scores_.as<float>(), weights_.as<T>(), dc_.as<float>(), dz_row_.as<float>(), d_row_.as<float>(),
                1 / std::sqrt(static_cast<float>(d_)), dscores_.as<T>());
            LC_LAUNCHED("hybrid_attention", queue);
        }
    });
    if (want_rows_) parameter_sums(q_, du_q_, head, sums_q_);
    if (slots_->dmix_logit) {
        mix_sum_kernel<<<grid_x(grid_.heads), 256, 0, queue>>>(grid_, d_row_.as<float>(), head,
                                                               Operand(args_.mix_logit), dmix_.as<float>());
        LC_LAUNCHED("hybrid_attention", queue);
    }
    if (slots_->dq) {
        if (window_)
            chunk_gemm(Op::None, Op::None, c, dp_, span, dscores_.at(0), span, c * span, k_.at(-back * dp_), dp_,
                       c * dp_, 0, dq_.at(0), dp_, c * dp_);
        else
            dq_.clear(stream_);
        back_through_map(du_q_, wq_, dq_);
        store_rows(dq_, head, grid_.first_row, slots_->dq);
    }
    if (slots_->dk && window_) span_transposed(dscores_, q_, dp_, dk_);
    if (slots_->dv) span_transposed(weights_, dn_, dp_, dv_);
    if (!want_keys_) return;
    if (grid_.mixed) span_transposed(dlinear_, phi_q_, ep_, dphi_k_);
    const bool add = shared_maps_ && g > 0;  // the heads of a group share T, t
    chunk_gemm(Op::Transpose, Op::None, ep_, dp_, c, phi_q_.at(0), ep_, c * ep_, dn_.at(0), dp_, c * dp_,
               add ? 1.0f : 0.0f, t_parts_.at(0), dp_, ep_ * dp_);
    chunk_sums(phi_q_, ep_, dz_row_.as<float>(), add, tz_parts_);
}

void HybridChunked::handed_on_gradient(const HeadOf& head) {
    const int64_t keys = grid_.far_out() - grid_.begin - grid_.full_chunks() * grid_.chunk;
    if (keys <= 0 || (!slots_->ds_out && !slots_->dz_out)) return;
    dispatch_cuda(operand_, "hybrid_attention", [&](auto type) {
        using T = typename decltype(type)::type;
        handed_on_kernel<T><<<grid_x(grid_.items() * keys), 128, 0, cuda::handle_of(stream_)>>>(
            grid_, keys, phi_k_.as<T>(), static_cast<int>(ep_), v_.as<T>(), static_cast<int>(dp_),
            static_cast<int>(features_), static_cast<int>(d_), Operand(slots_->ds_out), Operand(slots_->dz_out), head,
            args_.wk.size(0), dphi_k_.as<float>(), slots_->dv ? dv_.as<float>() : nullptr);
    });
    LC_LAUNCHED("hybrid_attention", cuda::handle_of(stream_));
}

// What the keys get through the state, and from phi_k back to k and the map.
void HybridChunked::backward_keys(int64_t g) {
    if (!want_keys_) return;
    const cudaStream_t queue = cuda::handle_of(stream_);
    const HeadOf head = shared_maps_ ? HeadOf{} : HeadOf{group_, g};
    const int64_t c = grid_.chunk, size = ep_ * dp_, states = args_.wk.size(0);
    const int ep = static_cast<int>(ep_), features = static_cast<int>(features_);
    dispatch_cuda(operand_, "hybrid_attention", [&](auto type) {
        using T = typename decltype(type)::type;
        state_gradient_kernel<T><<<grid_x(grid_.items() * ceil_div(size, kStateThreads)), kStateThreads, 0, queue>>>(
            grid_, t_parts_.as<float>(), ep, static_cast<int>(dp_), features, static_cast<int>(d_),
            Operand(slots_->ds_out), head, states, Operand(slots_->ds_in), t_.as<T>());
        LC_LAUNCHED("hybrid_attention", queue);
        state_gradient_kernel<float><<<grid_x(grid_.items() * ceil_div(ep_, kStateThreads)), kStateThreads, 0, queue>>>(
            grid_, tz_parts_.as<float>(), ep, 1, features, 1, Operand(slots_->dz_out), head, states,
            Operand(slots_->dz_in), tz_.as<float>());
        LC_LAUNCHED("hybrid_attention", queue);
        chunk_gemm(Op::None, Op::Transpose, c, ep_, dp_, v_.at(0), dp_, c * dp_, t_.at(0), dp_, size, 1, dphi_k_.at(0),
                   ep_, c * ep_);
        if (slots_->dv)
            chunk_gemm(Op::None, Op::None, c, dp_, ep_, phi_k_.at(0), ep_, c * ep_, t_.at(0), dp_, size, 1, dv_.at(0),
                       dp_, c * dp_);
        handed_on_gradient(head);
        if (!slots_->dk && !slots_->dwk && !slots_->dbk) return;
        map_backward_kernel<T><<<grid_x(ceil_div(grid_.rows(), kRowsPerBlock)), kRowThreads, 0, queue>>>(
            grid_, uk_.as<float>(), static_cast<int>(f_), static_cast<int>(fp_), phi_k_.as<T>(), dphi_k_.as<float>(),
            tz_.as<float>(), ep, nullptr, head, Operand(), false, nullptr, du_k_.as<T>());
        LC_LAUNCHED("hybrid_attention", queue);
        parameter_sums(k_, du_k_, head, sums_k_);
        if (slots_->dk) back_through_map(du_k_, wk_, dk_);
    });
}

void HybridChunked::store_keys() {
    if (slots_->dk) store_rows(dk_, {}, grid_.first_key, slots_->dk);
    if (slots_->dv) store_rows(dv_, {}, grid_.first_key, slots_->dv);
}

void HybridChunked::store_parameters() {
    store_sums(sums_q_.dw, slots_->dwq, stream_), store_sums(sums_q_.db, slots_->dbq, stream_);
    store_sums(sums_k_.dw, slots_->dwk, stream_), store_sums(sums_k_.db, slots_->dbk, stream_);
    store_sums(dmix_, slots_->dmix_logit, stream_);
}

}  // namespace lc::kernels
