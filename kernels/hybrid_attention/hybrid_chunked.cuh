// The chunked form of linearized attention on the GPU, in steps that hybrid_attention, linear_attention and transfer_loss put
// together. Heads and batch entries are processed in slices, and within a slice one query head of every group at a time, so that
// workspace stays bounded: O(T) for any T.
//
// GRID. Positions are cut into chunks of C (the window block w where that is a multiple of 64, else 64), anchored at position 0.
// Queries and keys share one grid of rows; the rows of all items (KV head, batch entry) lie one after the other:
//
//   chunk c of an item:   [ .. S: all of chunks < c-lag .. ][ c-lag | ... | c ]     span = (lag+1) C keys
//
// `lag` is the smallest for which every key left of the span is far for all rows of the chunk. Inside the span each row has its
// own far end: left of it phi_q.phi_k, from there to itself gamma exp(s-m), beyond it 0. One mask serves every window kind; for
// terraced windows with C = w no span has far keys at all (`mixed` is false) and the products with them are not made.
// Since a span is a run of rows of the grid, every product is one batched GEMM of uniform stride over all chunks; the span of an
// item's first chunks reaches into the item before (or `lag` chunks of padding), where all weights are 0.
#pragma once
#include "kernels/common/cuda/gemm.h"
#include "kernels/common/cuda/launch.h"
#include "kernels/common/cuda/pack.cuh"
#include "kernels/common/cuda/reduce.cuh"
#include "kernels/hybrid_attention/hybrid_attention.h"
#include "kernels/hybrid_attention/hybrid_mix.cuh"

namespace lc::kernels {

struct ChunkGrid {
    LinearizedSpec spec;
    int64_t begin = 0, first_row = 0, first_key = 0,
            end = 0;  // absolute positions: grid, queries, keys; one past the last
    int64_t chunk = 64, chunks = 1, lag = 0;
    bool mixed = true;
    int64_t heads0 = 0, heads = 0, batch0 = 0, batch = 0;  // the slice: KV heads and batch entries

    __host__ __device__ int64_t items() const { return heads * batch; }
    __host__ __device__ int64_t item_rows() const { return chunk * chunks; }
    __host__ __device__ int64_t rows() const { return items() * item_rows(); }
    __host__ __device__ int64_t span() const { return (lag + 1) * chunk; }
    // Keys [first_key, far_out()) are in the state handed on.
    __host__ __device__ int64_t far_out() const { return state_end(spec, end); }
    __host__ __device__ int64_t full_chunks() const { return far_out() > begin ? (far_out() - begin) / chunk : 0; }
};

// A row of the grid.
struct GridRow {
    int64_t item, chunk, position, kv_head, batch;  // `chunk` counts over all items
    bool query, key;                                // does it hold one?

    __device__ GridRow(const ChunkGrid& g, int64_t row) {
        item = row / g.item_rows(), chunk = row / g.chunk;
        position = g.begin + row % g.item_rows();
        kv_head = g.heads0 + item / g.batch, batch = g.batch0 + item % g.batch;
        key = position >= g.first_key && position < g.end;
        query = position >= g.first_row && position < g.end;
    }
};

// Columns of a row's span: [first, far) far keys, [far, end) the window.
struct SpanColumns {
    int64_t first, far, end;

    __device__ SpanColumns(const ChunkGrid& g, const GridRow& row) {
        const int64_t origin = row.position - row.position % g.chunk - g.lag * g.chunk;  // position of column 0
        end = row.position + 1 - origin;
        first = max(int64_t{0}, g.first_key - origin);
        far = min(end, max(first, state_end(g.spec, row.position + 1) - origin));
    }
};

// Head of a parameter or tensor that belongs to a KV head: the g-th of its group, or the KV head itself.
struct HeadOf {
    int64_t group = 1, member = 0;
    __host__ __device__ int64_t of(int64_t kv_head) const { return kv_head * group + member; }
};

// [B,H,T,D] of any strides.
struct StridedRows {
    void* data = nullptr;  // first element
    int64_t stride_b = 0, stride_h = 0, stride_t = 0, stride_d = 0;
    int64_t d = 0;
    DType dtype = DType::f32;

    StridedRows() = default;
    explicit StridedRows(const TensorView& view) {
        if (!view) return;
        data = view.base + view.layout.offset * size_of(view.dtype);
        stride_b = view.stride(0), stride_h = view.stride(1), stride_t = view.stride(2), stride_d = view.stride(3);
        d = view.size(3), dtype = view.dtype;
    }
    __host__ __device__ explicit operator bool() const { return data != nullptr; }
    __device__ int64_t row(int64_t b, int64_t h, int64_t t) const { return b * stride_b + h * stride_h + t * stride_t; }
};

inline constexpr int kRowThreads = 256, kRowsPerBlock = kRowThreads / kWarp;  // kernels with one warp a row

// Workspace of `elements` with `front` more before element 0.
struct ChunkBuffer {
    DeviceScratch<std::byte> memory;
    int64_t front = 0, elements = 0, element_bytes = 4;

    ChunkBuffer() = default;
    ChunkBuffer(DType dtype, int64_t count, Stream stream, int64_t front_ = 0)
        : memory((count + front_) * size_of(dtype), stream),
          front(front_),
          elements(count),
          element_bytes(size_of(dtype)) {}
    std::byte* at(int64_t element) const { return memory.data() + (front + element) * element_bytes; }
    template <class T>
    T* as() const {
        return reinterpret_cast<T*>(at(0));
    }
    void clear(Stream stream) const;        // all zero
    void clear_front(Stream stream) const;  // only the padding
};

// f32 sums over slices of the gradients of a map: [H,D,F] and [H,F].
struct ParameterSums {
    ChunkBuffer dw, db;
    void make(const GradSlot& dw_slot, const GradSlot& db_slot, int64_t heads, int64_t d, int64_t f, Stream stream);
};

struct HybridGradSlots {
    TensorView ds_out, dz_out;
    GradSlot dq, dk, dv, dwq, dbq, dwk, dbk, dmix_logit, ds_in, dz_in;
    bool any() const { return dq || dk || dv || dwq || dbq || dwk || dbk || dmix_logit || ds_in || dz_in; }
};

class HybridChunked {
  public:
    // `slots`: null for a forward alone.
    HybridChunked(const HybridAttentionForward& args, const HybridGradSlots* slots, Stream stream);

    // All slices in order; for each, attention of every query head and rows(), which reads numerator() and denominator().
    // With gradients: rows() has left dN and dZ in upstream() and upstream_z().
    template <class Rows>
    void run(Rows&& rows) {
        while (next_slice()) {
            load_keys();
            if (shared_maps_) map_keys(0);
            for (int64_t g = 0; g < group_; ++g) {
                if (!shared_maps_) map_keys(g);
                attend(g);
                rows(g);
                if (!slots_) continue;
                backward_rows(g);
                if (!shared_maps_) backward_keys(g);
            }
            if (!slots_) continue;
            if (shared_maps_) backward_keys(0);
            store_keys();
        }
        if (slots_) store_parameters();
    }

    const ChunkGrid& grid() const { return grid_; }
    HeadOf query_head(int64_t g) const { return {group_, g}; }
    int64_t slice_rows() const { return slice_heads_ * slice_batch_ * grid_.item_rows(); }  // at most
    int64_t padded_d() const { return dp_; }
    DType operand() const { return operand_; }
    const float* numerator() const { return n_.as<float>(); }        // N [rows, padded D]
    const float* denominator() const { return z_row_.as<float>(); }  // Z [rows]; 1 where there is no query
    void* upstream() const { return dn_.at(0); }               // dN [rows, padded D] in the operand dtype; zero padded
    float* upstream_z() const { return dz_row_.as<float>(); }  // dZ [rows]

  private:
    bool next_slice();
    void load_keys();
    void map_keys(int64_t g);
    void attend(int64_t g);
    void backward_rows(int64_t g);
    void backward_keys(int64_t g);
    void store_keys();
    void store_parameters();

    void load_rows(const TensorView& view, const HeadOf& head, int64_t origin, const ChunkBuffer& to);
    void project(const ChunkBuffer& x, const TensorView& w, const HeadOf& head, const ChunkBuffer& w_copy,
                 const ChunkBuffer& u);
    void chunk_gemm(Op op_a, Op op_b, int64_t m, int64_t n, int64_t k, const void* a, int64_t lda, int64_t stride_a,
                    const void* b, int64_t ldb, int64_t stride_b, float beta, void* c, int64_t ldc, int64_t stride_c,
                    float alpha = 1);
    void chunk_sums(const ChunkBuffer& rows, int64_t columns, const float* row_weights, bool accumulate,
                    const ChunkBuffer& sums);
    void span_transposed(const ChunkBuffer& weights, const ChunkBuffer& rows, int64_t columns, const ChunkBuffer& to);
    void parameter_sums(const ChunkBuffer& x, const ChunkBuffer& du, const HeadOf& head, const ParameterSums& sums);
    void back_through_map(const ChunkBuffer& du, const ChunkBuffer& w_copy, const ChunkBuffer& dx);
    void handed_on_gradient(const HeadOf& head);
    void store_rows(const ChunkBuffer& from, const HeadOf& head, int64_t origin, const GradSlot& to);

    HybridAttentionForward args_;
    const HybridGradSlots* slots_;
    Stream stream_;
    DType operand_;
    ChunkGrid grid_;
    int64_t batch_, kv_heads_, group_, d_, f_, features_, dp_, fp_, ep_;  // padded to multiples of 8: D, F, F'
    int64_t slice_heads_ = 1, slice_batch_ = 1, slice_ = -1;
    bool shared_maps_, window_, want_keys_ = false, want_rows_ = false, want_scores_ = false;

    ChunkBuffer q_, k_, v_, wq_, wk_, uq_, uk_, phi_q_, phi_k_;
    ChunkBuffer parts_, z_parts_, s_, z_;                // per chunk: its own phi^T v, and the state before its span
    ChunkBuffer scores_, linear_, weights_, z_row_, n_;  // [rows, span], Z [rows], N [rows, D]
    ChunkBuffer dn_, dz_row_, dc_, dlinear_, dscores_, dphi_q_, d_row_, du_q_, dq_;
    ChunkBuffer t_parts_, tz_parts_, t_, tz_, dphi_k_, du_k_, dk_, dv_, dw_parts_, db_parts_;
    ParameterSums sums_q_, sums_k_;
    ChunkBuffer dmix_;
    int64_t segment_ = 1;  // chunks that share one partial sum of dW
};

// dN = dy / Z, dZ = -dN.N / Z for the query heads g of the slice, from a gradient dy [B,H,T,D].
void hybrid_upstream_cuda(const HybridChunked& chunked, int64_t g, const TensorView& dy, Stream stream);

}  // namespace lc::kernels
