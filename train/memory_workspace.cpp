#include "train/memory_workspace.h"

#include <algorithm>
#include <numeric>
#include <string_view>

#include "core/parallel.h"
#include "kernels/common/gemm.h"
#include "kernels/common/gemm_packed.h"
#include "kernels/hybrid_attention/hybrid_fused.h"
#include "kernels/lora_linear/lora_linear.h"

namespace lc::train::memory {
namespace {

constexpr int64_t kFloat = 4;

int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

// HybridChunked's grid and the part of it that is worked on at a time.
struct ChunkedGrid {
    int64_t chunk = 64, chunks = 1, lag = 0, span = 64;
    bool mixed = true;                            // far keys inside a span
    int64_t dp, fp, ep;                           // D, F and F' as they are padded
    int64_t segment = 8;                          // chunks that share a partial sum of dW
    int64_t heads = 1, rows = 0, all_chunks = 0;  // of a slice

    explicit ChunkedGrid(const AttentionCall& c) {
        const auto padded = [](int64_t n) { return ceil_div(n, 8) * 8; };
        dp = padded(c.head_dim), fp = padded(c.features);
        ep = padded(kernels::feature_size(c.spec.activation, c.features));
        const int64_t w = c.spec.window_size;
        const bool terraced = c.spec.window == kernels::WindowKind::terraced;
        if (terraced && w % 64 == 0 && w <= 256) chunk = w;
        mixed = !(terraced && chunk == w);
        chunks = std::max<int64_t>(1, ceil_div(c.length, chunk));
        int64_t reach = c.spec.window == kernels::WindowKind::sliding ? w - 1 : 0;
        if (terraced) reach = chunk % w == 0 ? w : 2 * w - 1;
        lag = std::min(ceil_div(reach, chunk), chunks - 1);
        span = (lag + 1) * chunk;
        while (chunks % segment != 0) segment /= 2;
        cut_into_slices(c);
    }

    void cut_into_slices(const AttentionCall& c) {
        constexpr int64_t kSliceBytes = int64_t{1} << 30;
        const int64_t state = ep * dp, item_rows = chunk * chunks;
        const int64_t floats = 2 * fp + 3 * span + 5 * dp + 2 * ep + (2 * state + dp * fp / segment) / chunk;
        const int64_t operands = 5 * dp + 2 * ep + 2 * fp + 3 * span + 2 * state / chunk;
        const int64_t item_bytes = item_rows * (kFloat * floats + size_of(c.dtype) * operands);
        const int64_t items = std::max<int64_t>(1, kSliceBytes / item_bytes);
        heads = std::min(c.kv_heads, items);
        const int64_t batch = std::clamp<int64_t>(items / c.kv_heads, 1, std::max<int64_t>(c.batch, 1));
        rows = heads * batch * item_rows, all_chunks = heads * batch * chunks;
    }
};

// What the fused kernels walk: every query head of every batch entry, in whole blocks, in segments.
struct FusedWalk {
    static constexpr int64_t kBlock = 64;
    int64_t items, blocks, rows, segments;

    explicit FusedWalk(const AttentionCall& c) : items(c.batch * c.heads), blocks(ceil_div(c.length, kBlock)) {
        rows = items * blocks * kBlock;
        segments = kernels::hybrid_fused_segments(items, blocks, c.multiprocessors);
    }
    int64_t parts() const { return items * segments; }
    // That all segments but the last sum up, one behind their walk.
    int64_t summed() const {
        return items * (blocks / segments * (segments - 1) + std::min(segments - 1, blocks % segments) - 1);
    }
};

// The states that segments begin with, and the parts that these are added up from on Hopper; of gradients dN and three numbers a row,
// and a dW a segment.
Buffers fused_buffers(const AttentionCall& c) {
    const FusedWalk walk(c);
    Buffers bytes;
    if (walk.segments > 1) {
        const int64_t state = kFloat * 2 * c.features * (c.head_dim + 1), states = walk.items * (walk.segments - 1);
        bytes.push_back(state * states);
        bytes.push_back(state * (states + std::min(c.multiprocessors, walk.summed())));
    }
    if (!c.backward()) return bytes;
    bytes.insert(bytes.end(), {size_of(c.dtype) * walk.rows * c.head_dim, 3 * kFloat * walk.rows});
    const int64_t map = kFloat * walk.parts() * c.head_dim * c.features;
    if (c.dmaps) bytes.insert(bytes.end(), {map, map});
    return bytes;
}

Buffers fused_workspace(const AttentionCall& c) {
    Buffers bytes = fused_buffers(c);
    if (!c.backward()) return bytes;
    const FusedWalk walk(c);
    bytes.push_back(8 * walk.parts());
    for (const bool wanted : {c.dk, c.dv})  // a part for each query head of a group
        if (wanted && c.heads != c.kv_heads) bytes.push_back(size_of(c.dtype) * walk.rows * c.head_dim);
    return bytes;
}

Buffers chunked_workspace(const AttentionCall& c) {
    const ChunkedGrid g(c);
    const int64_t narrow = size_of(c.dtype), state = g.ep * g.dp, front = g.lag * g.chunk;
    const bool window = c.spec.window != kernels::WindowKind::none;
    const int64_t kept = g.rows + front;  // rows of buffers that a span reaches back into
    Buffers bytes = {
        narrow * g.rows * g.dp,
        narrow * kept * g.dp,
        narrow * kept * g.dp,  // q, k, v
        narrow * 2 * g.heads * g.dp * g.fp,
        narrow * 2 * g.heads * g.dp * g.fp,  // wq, wk
        kFloat * g.rows * g.fp,
        kFloat * g.rows * g.fp,  // u of q and k
        narrow * g.rows * g.ep,
        narrow * kept * g.ep,  // phi of q and k
        kFloat * g.all_chunks * state,
        kFloat * g.all_chunks * g.ep,  // parts of S, z
        narrow * g.all_chunks * state,
        kFloat * g.all_chunks * g.ep,  // S, z
        window ? kFloat * g.rows * g.span : 0,
        g.mixed ? kFloat * g.rows * g.span : 0,  // scores, linear
        narrow * g.rows * g.span,
        kFloat * g.rows,
        kFloat * g.rows * g.dp,  // weights, Z, N
    };
    if (!c.backward()) return bytes;
    const auto add = [&bytes](bool wanted, std::initializer_list<int64_t> more) {
        if (wanted) bytes.insert(bytes.end(), more);
    };
    const bool scores = window && (c.dq || c.dk), rows = c.dq || c.dk || c.dmaps, keys = c.dk || c.dv || c.dmaps;
    add(true, {narrow * g.rows * g.dp, kFloat * g.rows});                                        // dN, dZ
    add(g.mixed || scores, {kFloat * g.rows * g.span});                                          // dC
    add(g.mixed, {narrow * g.rows * g.span});                                                    // dlinear
    add(scores, {narrow * g.rows * g.span});                                                     // dscores
    add(true, {kFloat * g.all_chunks / g.segment * g.dp * g.fp, kFloat * g.all_chunks * g.fp});  // parts of dW, db
    add(rows, {kFloat * g.rows * g.ep, kFloat * g.rows, narrow * g.rows * g.fp});                // dphi_q, D, du_q
    add(c.dq, {kFloat * g.rows * g.dp});
    add(keys, {kFloat * g.all_chunks * state, kFloat * g.all_chunks * g.ep,  // parts of T, t
               narrow * g.all_chunks * state, kFloat * g.all_chunks * g.ep,  // T, t
               kFloat * kept * g.ep, narrow * g.rows * g.fp});               // dphi_k, du_k
    add(c.dk, {kFloat * kept * g.dp});
    add(c.dv, {kFloat * kept * g.dp});
    const int64_t map = c.head_dim * c.features;
    add(c.dmaps, {kFloat * c.heads * map, kFloat * c.key_maps * map});
    add(c.dmaps && c.bias_width > 0, {kFloat * c.heads * c.features, kFloat * c.key_maps * c.features});
    add(c.dmaps && window, {kFloat * c.heads});
    return bytes;
}

// Of linear attention: two numbers a row; a dW an item; dk and dv of each query head of a group.
Buffers fused_linear_workspace(const AttentionCall& c) {
    if (!c.backward()) return {};
    const int64_t map = kFloat * c.batch * c.heads * c.head_dim * c.features;
    const int64_t part = c.heads == c.kv_heads ? 0 : size_of(c.dtype) * FusedWalk(c).rows * c.head_dim;
    return {2 * kFloat * FusedWalk(c).rows, c.dmaps ? map : 0, c.dmaps ? map : 0, c.dk ? part : 0, c.dv ? part : 0};
}

bool takes_fused_inputs(const AttentionCall& c) {
    return c.dtype == DType::bf16 && (c.head_dim == 64 || c.head_dim == 128) && c.features == 64 && c.bias_width == 0 &&
           !c.spec.skip && c.spec.activation == kernels::FeatureActivation::softmax_dim;
}

// kernels/linear_cross_entropy/linear_cross_entropy_sm90.cu
Buffers frozen_loss_workspace(const LossCall& c) {
    constexpr int64_t kMostRows = 2048, kMostBytes = int64_t{550} << 20, kTileRows = 256, kTileColumns = 256;
    const int64_t stride = ceil_div(c.vocabulary, 8) * 8, fitting = kMostBytes / (2 * stride) / kTileRows * kTileRows;
    const int64_t rows = std::min(std::clamp(fitting, kTileRows, kMostRows), c.rows);
    const int64_t partial = 8 * rows * ceil_div(c.vocabulary, kTileColumns);
    Buffers bytes{kFloat * c.rows, kFloat, 4 * c.rows, 4, kFloat * c.rows, kFloat * rows, partial, 8 * rows};
    if (c.dhidden) bytes.insert(bytes.end(), {2 * rows * stride, kFloat * rows * c.hidden});
    if (c.weight_dtype != c.dtype) bytes.push_back(size_of(c.dtype) * c.vocabulary * c.hidden);
    return bytes;
}

}  // namespace

bool is_fused(const AttentionCall& c) {
    return is_fused_transfer_loss(c) || (takes_fused_inputs(c) && c.spec.window == kernels::WindowKind::none);
}

bool is_fused_transfer_loss(const AttentionCall& c) {
    return takes_fused_inputs(c) && c.spec.window == kernels::WindowKind::terraced && c.spec.window_size == 64 &&
           !c.spec.affine;
}

Buffers cuda_linearized_attention_workspace(const AttentionCall& c) {
    if (!is_fused(c)) return chunked_workspace(c);
    return c.spec.window == kernels::WindowKind::none ? fused_linear_workspace(c) : fused_workspace(c);
}

Buffers cuda_transfer_loss_workspace(const AttentionCall& c) {
    if (is_fused_transfer_loss(c)) {
        Buffers bytes = fused_buffers(c);
        bytes.push_back(2 * 8 * FusedWalk(c).parts());
        return bytes;
    }
    Buffers bytes = chunked_workspace(c);
    bytes.insert(bytes.end(), {8 * c.batch * c.heads, kFloat * ChunkedGrid(c).rows});
    return bytes;
}

Buffers softmax_backward_workspace(int64_t rows, DeviceType device) {
    if (device == DeviceType::cpu) return {};
    return {2 * kFloat * rows};
}

Buffers product_workspace(const Product& p, DeviceType device) {
    if (device == DeviceType::cuda) return {int64_t{64} << 20};  // kernels/common/cuda/gemm.cpp
    constexpr int64_t kFewRows = 3;
    constexpr double kWorthSplitting = 1 << 20;
    if (kernels::gemm_backend() != std::string_view("portable") || p.m <= kFewRows) return {};
    using Tile = kernels::packed::Tile<float>;
    int64_t m = p.m, n = p.n, tasks = p.in_every_thread ? num_threads() : 1;
    if (!p.in_every_thread &&
        static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(p.k) >= kWorthSplitting) {
        int64_t& side = m >= n ? m : n;
        const int64_t piece = side >= 1536 ? 384 : 96;
        tasks = std::min<int64_t>(num_threads(), ceil_div(side, piece));
        side = std::min(side, piece);
    }
    const int64_t depth = std::min(Tile::kBlockK, p.k);
    const int64_t a = ceil_div(std::min(Tile::kBlockM, m), Tile::kTileM) * Tile::kTileM * depth;
    const int64_t b = ceil_div(std::min(Tile::kBlockN, n), Tile::kTileN) * Tile::kTileN * depth;
    Buffers bytes;
    for (int64_t task = 0; task < tasks; ++task) bytes.insert(bytes.end(), {kFloat * a, kFloat * b});
    return bytes;
}

Buffers lora_factors_workspace(const LoraCall& c, DeviceType device) {
    if (device == DeviceType::cpu) return {};
    const int64_t width = static_cast<int64_t>(c.outs.size()) * kernels::lora_columns(c.rank);
    const int64_t out = std::accumulate(c.outs.begin(), c.outs.end(), int64_t{});
    const int64_t counters = ceil_div(c.rows, 256) * 2 + 2;
    return {size_of(c.dtype) * width * (c.in + out) + 4 * counters};
}

namespace {

// Slices that dB of up to eight ranks comes in when it is made of the tiles of dx (lora_backward_sm90), which takes as many clusters of two
// multiprocessors for them as need no more waves than all but one would; 0: it is not.
int64_t lora_observed_slices(const LoraCall& c) {
    const int64_t pairs = ceil_div(c.rows, 256), columns = ceil_div(c.in, 256);
    int64_t steps = 0;
    for (const int64_t out : c.outs) steps += ceil_div(out, 64);
    const int64_t tiles = pairs * columns, waves = ceil_div(tiles, std::max<int64_t>(c.multiprocessors / 2 - 1, 1));
    const int64_t makers = ceil_div(tiles, waves);
    const bool even = makers % (4 * columns) == 0 && pairs % 4 == 0;
    return c.rank <= 8 && even && steps >= 4 && ceil_div(steps, columns) <= 8 ? makers / columns * 2 : 0;
}

// Beside dx on Hopper: slices of rows, or of what is observed.
Buffers lora_sums_workspace(const LoraCall& c) {
    const int64_t ranks = kernels::lora_columns(c.rank), slices = ceil_div(c.rows, c.rank <= 32 ? 512 : 1024);
    const int64_t observed = lora_observed_slices(c);
    const int64_t out = std::accumulate(c.outs.begin(), c.outs.end(), int64_t{});
    return {kFloat * (observed > 0 ? observed : slices) * ranks * out,
            kFloat * slices * ranks * static_cast<int64_t>(c.outs.size()) * c.in};
}

}  // namespace

// Without dx: all gradients in one launch of some 512 blocks: dB of each layer, and dA of all in jobs of up to 64 ranks.
Buffers lora_gradients_workspace(const LoraCall& c, DeviceType device) {
    constexpr int64_t kStrip = 128, kStepRows = 32, kBlocks = 512, kMostRanks = 64;
    if (device == DeviceType::cpu || c.dtype != DType::bf16 || c.rank > kMostRanks) return {};
    if (c.dx && c.rows >= 256 && c.in % 8 == 0 &&
        std::all_of(c.outs.begin(), c.outs.end(), [](int64_t out) { return out % 8 == 0; }))
        return lora_sums_workspace(c);
    const int64_t ranks = kernels::lora_columns(c.rank), count = static_cast<int64_t>(c.outs.size());
    const int64_t jobs = ceil_div(count, kMostRanks / ranks);  // of dA
    int64_t strips = jobs * ceil_div(c.in, kStrip);
    for (const int64_t out : c.outs) strips += ceil_div(out, kStrip);
    const int64_t wanted = std::clamp<int64_t>(kBlocks / strips, 1, ceil_div(c.rows, kStepRows));
    const int64_t slices = ceil_div(c.rows, ceil_div(ceil_div(c.rows, wanted), kStepRows) * kStepRows);
    Buffers buffers;
    for (const int64_t out : c.outs) buffers.push_back(kFloat * slices * ranks * out);
    for (int64_t job = 0, left = count; job < jobs; ++job, left -= kMostRanks / ranks)
        buffers.push_back(kFloat * slices * std::min(left, kMostRanks / ranks) * ranks * c.in);
    return buffers;
}

Buffers loss_workspace(const LossCall& c, DeviceType device) {
    if (device == DeviceType::cpu) {
        const int64_t most = std::clamp<int64_t>((int64_t{1} << 24) / std::max<int64_t>(c.vocabulary, 1), 16, 256);
        const int64_t rows = std::min(most, c.labelled);
        return {kFloat * rows * c.vocabulary, kFloat * rows * c.hidden, kFloat * rows * c.hidden};
    }
    if (c.is_frozen && c.dtype == DType::bf16 && c.rows >= 256 && c.hidden % 8 == 0) return frozen_loss_workspace(c);
    constexpr int64_t kMostRows = 1024, kMostBytes = int64_t{550} << 20;
    const int64_t stride = ceil_div(c.vocabulary, 8) * 8;
    const int64_t rows =
        std::clamp<int64_t>(kMostBytes / (kFloat * stride), 1, std::min(kMostRows, std::max<int64_t>(c.rows, 1)));
    const int64_t rounded = c.weight_dtype == c.dtype ? 0 : size_of(c.dtype) * c.vocabulary * c.hidden;
    return {kFloat * rows * stride, kFloat * c.rows, kFloat, rounded};
}

Buffers embedding_backward_workspace(int64_t vocabulary, int64_t ids, DeviceType device) {
    if (device == DeviceType::cpu) return {};
    return {4 * (2 * vocabulary + 1), 4 * (vocabulary + 2 * ids)};
}

Buffers norm_weight_workspace(int64_t rows, int64_t columns, DeviceType device) {
    if (device == DeviceType::cpu) return {};
    constexpr int64_t kRowsOfASlice = 64;  // and column_sum cuts those sums again
    return {kFloat * ceil_div(rows, kRowsOfASlice) * columns};
}

Buffers column_sum_workspace(int64_t rows, int64_t columns, DeviceType device) {
    if (device == DeviceType::cpu) return {};
    constexpr int64_t kRowsPerSlice = 256;
    return {kFloat * ceil_div(rows, kRowsPerSlice) * columns};
}

}  // namespace lc::train::memory
