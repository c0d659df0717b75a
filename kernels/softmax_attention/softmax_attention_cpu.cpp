// Fast CPU softmax attention.
//
// MATHS     softmax_attention.h. Forward: online softmax, saved: lse. Backward: p recomputed from lse.
// TILING    Rows of a block are (position, head of the group) pairs, position major: the r = H/H_kv query heads that share
//           a KV head are stacked, so K and V are read once a group and a decode step is an r-row product.
//
//             forward    one work item = (batch, KV head, 64 rows)       backward   one work item = (batch, KV head)
//                        for each 128 keys:                                         for each 128 keys:
//                          S = Q K^T, online softmax, Y += P V                        for each 64 rows that see them:
//                                                                                       S, P, dP; dV += P^T dY
//                                                                                       dK += dS^T Q; dQ += dS K
//           All work on one KV head's dk and dv is done by one thread in one order: no atomics, repeatable bit by bit.
// COST      forward 4 D, backward 10 D FLOPs a visible (row, key) pair; memory O(T): the backward packs q, dy and dq of one
//           group a thread (12 T r D bytes) beside blocks of 64 x 128 scores.
// NUMERICS  f32 throughout; q is scaled by 1/sqrt(D) when it is packed; exp_approx (2 ulp) of non-positive numbers.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/parallel.h"
#include "kernels/common/gemm.h"
#include "kernels/common/row.h"
#include "kernels/softmax_attention/softmax_attention_cpu.h"

namespace lc::kernels {
namespace {

constexpr int64_t kRows = 64, kKeys = 128;
// Below this many rows a product is bound by reading K and V once; gemm would first copy them into its own order.
constexpr int64_t kFewRows = 4;

struct Shapes {
    int64_t batch, kv_heads, group, t, keys, d, cached, window;
    float scale;
    explicit Shapes(const SoftmaxAttentionForward& a)
        : batch(a.q.size(0)),
          kv_heads(a.k.size(1)),
          group(a.q.size(1) / a.k.size(1)),
          t(a.q.size(2)),
          keys(a.k.size(2)),
          d(a.q.size(3)),
          cached(a.k.size(2) - a.q.size(2)),
          window(a.window > 0 ? a.window : a.k.size(2)),
          scale(1 / std::sqrt(static_cast<float>(a.q.size(3)))) {}
    int64_t block_positions() const { return std::max<int64_t>(1, kRows / group); }
    // Of the keys [k0, k0+count) the row of position i sees those from k0 + begin to k0 + end.
    struct Seen {
        int64_t begin, end;
        bool none() const { return begin >= end; }
    };
    Seen seen(int64_t i, int64_t k0, int64_t count) const {
        const int64_t end = i + cached + 1 - k0;
        return {std::max<int64_t>(0, end - window), std::min(count, end)};
    }
    int64_t first_key(int64_t i) const { return std::max<int64_t>(0, i + cached + 1 - window); }
    // Positions from here on no longer see key j.
    int64_t end_of_view(int64_t j) const { return std::min(t, j + window - cached); }
};

// to[row][c] = factor * from(b, head, position, c) for the rows of positions [t0, t0+count).
void pack_rows(const TensorView& from, const Shapes& s, int64_t b, int64_t g, int64_t t0, int64_t count, float factor,
               float* to) {
    const auto x = from.as<const float, 4>();
    for (int64_t row = 0; row < count * s.group; ++row) {
        const float* source = &x(b, g * s.group + row % s.group, t0 + row / s.group, 0);
        for (int64_t c = 0; c < s.d; ++c) to[row * s.d + c] = factor * source[c * x.strides[3]];
    }
}

// scores [rows,cols] = q [rows,D] k [cols,D]^T
void block_scores(const float* q, int64_t rows, const float* k, int64_t ldk, int64_t cols, int64_t d, float* scores) {
    if (rows >= kFewRows)
        return gemm(Gemm<float>{.op_b = Op::Transpose,
                                .m = rows,
                                .n = cols,
                                .k = d,
                                .a = q,
                                .lda = d,
                                .b = k,
                                .ldb = ldk,
                                .c = scores,
                                .ldc = kKeys});
    for (int64_t j = 0; j < cols; ++j)
        for (int64_t r = 0; r < rows; ++r) scores[r * kKeys + j] = row_dot(q + r * d, k + j * ldk, d);
}

// y [rows,D] += p [rows,cols] v [cols,D]
void block_values(const float* p, int64_t rows, const float* v, int64_t ldv, int64_t cols, int64_t d, float* y) {
    if (rows >= kFewRows)
        return gemm(Gemm<float>{
            .m = rows, .n = d, .k = cols, .a = p, .lda = kKeys, .b = v, .ldb = ldv, .beta = 1, .c = y, .ldc = d});
    for (int64_t j = 0; j < cols; ++j)
        for (int64_t r = 0; r < rows; ++r) row_axpy(v + j * ldv, y + r * d, d, p[r * kKeys + j]);
}

struct ForwardRoom {
    std::vector<float> q, y, scores, max, sum;
    explicit ForwardRoom(const Shapes& s) {
        const int64_t rows = s.block_positions() * s.group;
        q.resize(rows * s.d), y.resize(rows * s.d), scores.resize(rows * kKeys), max.resize(rows), sum.resize(rows);
    }
};

// Online softmax of one block of scores: scores become weights relative to the running maximum, y is rescaled to it.
void online_softmax(const Shapes& s, int64_t t0, int64_t rows, int64_t k0, int64_t cols, ForwardRoom& room) {
    for (int64_t row = 0; row < rows; ++row) {
        float* p = &room.scores[row * kKeys];
        const auto seen = s.seen(t0 + row / s.group, k0, cols);
        if (seen.none()) {
            std::fill(p, p + cols, 0.0f);
            continue;
        }
        std::fill(p, p + seen.begin, 0.0f);
        std::fill(p + seen.end, p + cols, 0.0f);
        p += seen.begin;
        const int64_t count = seen.end - seen.begin;
        const float max = std::max(room.max[row], row_max(p, count));
        const float shrink = exp_approx(room.max[row] - max);  // 0 at the first block: exp(-inf)
        room.sum[row] = room.sum[row] * shrink + row_exp_sum(p, p, count, 1.0f, max);
        room.max[row] = max;
        if (shrink != 1) row_scale(&room.y[row * s.d], s.d, shrink);
    }
}

void forward_block(const SoftmaxAttentionForward& a, const Shapes& s, int64_t b, int64_t g, int64_t t0,
                   ForwardRoom& room) {
    const auto k = a.k.as<const float, 4>(), v = a.v.as<const float, 4>();
    const auto y = a.y.as<float, 4>();
    const int64_t positions = std::min(s.block_positions(), s.t - t0), rows = positions * s.group;
    pack_rows(a.q, s, b, g, t0, positions, s.scale, room.q.data());
    std::fill(room.y.begin(), room.y.end(), 0.0f);
    std::fill(room.sum.begin(), room.sum.end(), 0.0f);
    std::fill(room.max.begin(), room.max.end(), -std::numeric_limits<float>::infinity());
    const int64_t limit = t0 + positions + s.cached;
    for (int64_t k0 = s.first_key(t0) / kKeys * kKeys; k0 < limit; k0 += kKeys) {
        const int64_t cols = std::min(kKeys, limit - k0);
        block_scores(room.q.data(), rows, &k(b, g, k0, 0), k.strides[2], cols, s.d, room.scores.data());
        online_softmax(s, t0, rows, k0, cols, room);
        block_values(room.scores.data(), rows, &v(b, g, k0, 0), v.strides[2], cols, s.d, room.y.data());
    }
    for (int64_t row = 0; row < rows; ++row) {
        const int64_t h = g * s.group + row % s.group, i = t0 + row / s.group;
        const float factor = 1 / room.sum[row];
        for (int64_t c = 0; c < s.d; ++c) y(b, h, i, c) = room.y[row * s.d + c] * factor;
        if (a.lse) a.lse.as<float, 3>()(b, h, i) = room.max[row] + std::log(room.sum[row]);
    }
}

struct BackwardRoom {
    std::vector<float> q, dy, dq, lse, delta;  // all rows of a group
    std::vector<float> p, ds, dk, dv;          // one block
    explicit BackwardRoom(const Shapes& s) {
        const int64_t all = s.t * s.group, rows = s.block_positions() * s.group;
        q.resize(all * s.d), dy.resize(all * s.d), dq.resize(all * s.d), lse.resize(all), delta.resize(all);
        p.resize(rows * kKeys), ds.resize(rows * kKeys), dk.resize(kKeys * s.d), dv.resize(kKeys * s.d);
    }
};

void pack_group(const SoftmaxAttentionBackward& args, const Shapes& s, int64_t b, int64_t g, BackwardRoom& room) {
    const auto lse = args.forward.lse.as<const float, 3>();
    const auto y = args.forward.y.as<const float, 4>();
    pack_rows(args.forward.q, s, b, g, 0, s.t, s.scale, room.q.data());
    pack_rows(args.dy, s, b, g, 0, s.t, 1.0f, room.dy.data());
    std::fill(room.dq.begin(), room.dq.end(), 0.0f);
    for (int64_t row = 0; row < s.t * s.group; ++row) {
        const int64_t h = g * s.group + row % s.group, i = row / s.group;
        room.lse[row] = lse(b, h, i);
        const float *dy_row = &room.dy[row * s.d], *y_row = &y(b, h, i, 0);
        room.delta[row] = row_reduce<float>(
            s.d, 0.0f, [&](float lane, int64_t c) { return lane + dy_row[c] * y_row[c * y.strides[3]]; },
            [](float left, float right) { return left + right; });
    }
}

// One block of rows against one block of keys: adds to dk, dv and dq.
void backward_block(const SoftmaxAttentionBackward& args, const Shapes& s, int64_t b, int64_t g, int64_t t0, int64_t k0,
                    int64_t cols, BackwardRoom& room) {
    const auto k = args.forward.k.as<const float, 4>(), v = args.forward.v.as<const float, 4>();
    const int64_t rows = std::min(s.block_positions(), s.t - t0) * s.group, first = t0 * s.group;
    const float *q = &room.q[first * s.d], *dy = &room.dy[first * s.d];
    block_scores(q, rows, &k(b, g, k0, 0), k.strides[2], cols, s.d, room.p.data());
    for (int64_t row = 0; row < rows; ++row) {
        float* p = &room.p[row * kKeys];
        const auto seen = s.seen(t0 + row / s.group, k0, cols);
        if (seen.none()) {
            std::fill(p, p + cols, 0.0f);
            continue;
        }
        exp_array(p + seen.begin, p + seen.begin, seen.end - seen.begin, room.lse[first + row]);
        std::fill(p, p + seen.begin, 0.0f);
        std::fill(p + seen.end, p + cols, 0.0f);
    }
    if (args.dv)
        gemm(Gemm<float>{.op_a = Op::Transpose,
                         .m = cols,
                         .n = s.d,
                         .k = rows,
                         .a = room.p.data(),
                         .lda = kKeys,
                         .b = dy,
                         .ldb = s.d,
                         .beta = 1,
                         .c = room.dv.data(),
                         .ldc = s.d});
    if (!args.dq && !args.dk) return;
    block_scores(dy, rows, &v(b, g, k0, 0), v.strides[2], cols, s.d, room.ds.data());
    for (int64_t row = 0; row < rows; ++row) {
        const float delta = room.delta[first + row];
        const float* p = &room.p[row * kKeys];
        float* ds = &room.ds[row * kKeys];
        for (int64_t j = 0; j < cols; ++j) ds[j] = p[j] * (ds[j] - delta);
    }
    if (args.dk)
        gemm(Gemm<float>{.op_a = Op::Transpose,
                         .m = cols,
                         .n = s.d,
                         .k = rows,
                         .a = room.ds.data(),
                         .lda = kKeys,
                         .b = q,
                         .ldb = s.d,
                         .beta = 1,
                         .c = room.dk.data(),
                         .ldc = s.d});
    if (args.dq) block_values(room.ds.data(), rows, &k(b, g, k0, 0), k.strides[2], cols, s.d, &room.dq[first * s.d]);
}

// slot(b, g, k0 + j, c) = or += block[j][c]
void store_keys(const std::vector<float>& block, const GradSlot& slot, int64_t b, int64_t g, int64_t k0, int64_t cols) {
    if (!slot) return;
    const auto to = slot.view.as<float, 4>();
    const int64_t d = to.size(3);
    for (int64_t j = 0; j < cols; ++j)
        for (int64_t c = 0; c < d; ++c) {
            float& target = to(b, g, k0 + j, c);
            target = block[j * d + c] + (slot.accumulate() ? target : 0.0f);
        }
}

void store_queries(const std::vector<float>& rows, const GradSlot& slot, const Shapes& s, int64_t b, int64_t g) {
    if (!slot) return;
    const auto to = slot.view.as<float, 4>();
    for (int64_t row = 0; row < s.t * s.group; ++row)
        for (int64_t c = 0; c < s.d; ++c) {
            float& target = to(b, g * s.group + row % s.group, row / s.group, c);
            target = rows[row * s.d + c] * s.scale + (slot.accumulate() ? target : 0.0f);
        }
}

void backward_group(const SoftmaxAttentionBackward& args, const Shapes& s, int64_t b, int64_t g, BackwardRoom& room) {
    pack_group(args, s, b, g, room);
    const int64_t step = s.block_positions();
    for (int64_t k0 = 0; k0 < s.keys; k0 += kKeys) {
        const int64_t cols = std::min(kKeys, s.keys - k0);
        std::fill(room.dk.begin(), room.dk.end(), 0.0f);
        std::fill(room.dv.begin(), room.dv.end(), 0.0f);
        const int64_t first_position = std::max<int64_t>(0, k0 - s.cached);  // the first that sees key k0
        for (int64_t t0 = first_position / step * step; t0 < s.end_of_view(k0 + cols - 1); t0 += step)
            backward_block(args, s, b, g, t0, k0, cols, room);
        store_keys(room.dk, args.dk, b, g, k0, cols);
        store_keys(room.dv, args.dv, b, g, k0, cols);
    }
    store_queries(room.dq, args.dq, s, b, g);
}

}  // namespace

void softmax_attention_forward_cpu(const SoftmaxAttentionForward& a) {
    const Shapes s(a);
    const int64_t step = s.block_positions(), blocks = (s.t + step - 1) / step;
    parallel_for(s.batch * s.kv_heads * blocks, 1, [&](int64_t begin, int64_t end) {
        ForwardRoom room(s);
        for (int64_t item = begin; item < end; ++item) {
            const int64_t group = item / blocks, block = blocks - 1 - item % blocks;  // the longest first
            forward_block(a, s, group / s.kv_heads, group % s.kv_heads, block * step, room);
        }
    });
}

void softmax_attention_backward_cpu(const SoftmaxAttentionBackward& args) {
    const Shapes s(args.forward);
    parallel_for(s.batch * s.kv_heads, 1, [&](int64_t begin, int64_t end) {
        BackwardRoom room(s);
        for (int64_t item = begin; item < end; ++item)
            backward_group(args, s, item / s.kv_heads, item % s.kv_heads, room);
    });
}

}  // namespace lc::kernels
