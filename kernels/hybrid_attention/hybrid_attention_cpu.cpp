// The block form on the CPU: one sweep forward, two sweeps backward, O(T) time and memory.
//
//   forward    for each block of rows: window and mixed keys by a [rows, <= 3w] weight matrix, older keys through S, z
//              (live in cache); then the keys that leave every later window join S, z.
//   backward   sweep 1, in order: S, z again; dN, dZ, dphi_q, D, the window's dq, dk, dv.  Sweep 2, in reverse: T, t over
//              the rows of later blocks; dphi_k, the far part of dv.
//
// PARALLEL: forward over batch x states, backward over batch x KV heads (dk, dv of a head are sums over its query heads).
// Gradients of maps and logits go to one buffer a (batch, head), summed in order of the batch: repeatable bit by bit.
// COST a row and query head, terraced: forward 2 D (2 F + 1.5 w) + 4 F' D FLOPs and about 8 D bytes; the products run at
// the GEMM's speed on [64, 64..128] tiles, the exponentials (window + 2F a row) are the rest.
// NUMERICS: all in T; exp through fast_exp. D_i is the row's own sum of p dc, not the identity with phi_q . dphi_q: then
// sum_j ds_ij = 0 holds to rounding, rows that one key dominates cancel as well as in the oracle, and so does the logit
// where the far keys dominate. Rows without far keys have D_i = 0 and add exactly nothing to the logit.
#include "kernels/hybrid_attention/hybrid_attention.h"
#include "kernels/hybrid_attention/hybrid_attention_blocks.h"
#include "kernels/hybrid_attention/hybrid_attention_sums.h"

namespace lc::kernels {
namespace {

template <class T>
void forward_state(const HybridAttentionForward& a, const HybridGeometry& geometry, const std::vector<RowBlock>& blocks,
                   int64_t b, int64_t hs, HybridRoom<T>& room) {
    const int64_t d = a.q.size(3), group = a.q.size(1) / a.wk.size(0);
    const HybridKeys<T> keys(a, b, hs);
    HybridState<T> state(keys.map.phi_size(), d);
    std::vector<T> out(room.rows * d), phi_q(room.rows * state.features);
    const auto y = a.y.as<T, 4>();
    state.load(a.s_in, a.z_in, b, hs);
    const auto map_keys = [&](int64_t j0, int64_t n) {
        if (n > 0)
            feature_map_block(keys.map, keys.k + j0 * keys.ldk, keys.ldk, n, room.u.data(), room.phi.data(),
                              state.features);
    };
    const bool state_used = a.s_out || !a.spec.window_only;
    for (int64_t j0 = 0; j0 < blocks[0].far0 && state_used; j0 += room.step) {
        const int64_t n = std::min(room.step, blocks[0].far0 - j0);
        map_keys(j0, n);
        state.add(room.phi.data(), keys.v + j0 * keys.ldv, keys.ldv, n);
    }
    for (const RowBlock& block : blocks) {
        const bool linear = has_linear_part(block, static_cast<bool>(a.s_in), a.spec.window_only);
        const bool last = &block == &blocks.back(), join = state_used && (!last || a.s_out);
        const int64_t leaving = block.next - block.far0;
        for (int64_t h = hs * group; h < (hs + 1) * group; ++h) {
            const HybridQueries<T> queries(a, b, h);
            if (linear)
                feature_map_block(queries.map, queries.q + block.row0 * queries.ldq, queries.ldq, block.rows,
                                  room.u.data(), phi_q.data(), state.features);
            if (h == hs * group && (join || (linear && block.mixed() > 0))) map_keys(block.far0, leaving);
            const HybridBlock<T> x{geometry,       block, queries, keys, state, linear ? phi_q.data() : nullptr,
                                   room.phi.data()};
            hybrid_weights(x, room);
            hybrid_output(x, room, out.data(), d);
            for (int64_t i = 0; i < block.rows; ++i)
                for (int64_t c = 0; c < d; ++c) y(b, h, block.row0 + i, c) = out[i * d + c];
        }
        if (join) state.add(room.phi.data(), keys.v + block.far0 * keys.ldv, keys.ldv, leaving);
    }
    state.store(a.s_out, a.z_out, b, hs);
}

template <class T>
void forward_blocks(const HybridAttentionForward& a) {
    const HybridGeometry geometry(a);
    const std::vector<RowBlock> blocks = geometry.blocks();
    const int64_t states = a.wk.size(0);
    parallel_for(a.q.size(0) * states, 1, [&](int64_t begin, int64_t end) {
        HybridRoom<T> room(blocks, feature_size(a.spec.activation, a.wq.size(2)));
        for (int64_t item = begin; item < end; ++item)
            forward_state(a, geometry, blocks, item / states, item % states, room);
    });
}

// Backward of one KV head of one batch entry.
template <class T>
class BackwardTask {
  public:
    BackwardTask(const HybridAttentionBackward& args, const HybridGeometry& geometry,
                 const std::vector<RowBlock>& blocks, int64_t b, int64_t hk, HybridMapSums<T>& sums,
                 HybridRoom<T>& room)
        : args_(args),
          a_(args.forward),
          geometry_(geometry),
          blocks_(blocks),
          b_(b),
          hk_(hk),
          sums_(sums),
          room_(room),
          d_(a_.q.size(3)),
          features_(feature_size(a_.spec.activation, a_.wq.size(2))) {
        if (args.dk) dk_.resize(geometry.keys * d_);
        if (args.dv) dv_.resize(geometry.keys * d_);
    }

    void run() {
        const int64_t states = a_.wk.size(0) / a_.k.size(1);
        for (int64_t hs = hk_ * states; hs < (hk_ + 1) * states; ++hs) run_state(hs);
        store_rows(dk_, args_.dk, hk_, 0, geometry_.keys);
        store_rows(dv_, args_.dv, hk_, 0, geometry_.keys);
    }

  private:
    void run_state(int64_t hs) {
        const int64_t group = a_.q.size(1) / a_.wk.size(0), far = blocks_.back().next, f = a_.wk.size(2);
        const HybridKeys<T> keys(a_, b_, hs);
        const bool state_in = static_cast<bool>(a_.s_in);
        const bool far_gradient =
            args_.ds_out || args_.dz_out || has_linear_part(blocks_.back(), state_in, a_.spec.window_only);
        if (far_gradient && far > 0) {
            u_k_.resize(far * f), phi_k_.resize(far * features_);
            dphi_k_.assign(far * features_, T{0});
            feature_map_block(keys.map, keys.k, keys.ldk, far, u_k_.data(), phi_k_.data(), features_);
        }
        phi_q_.resize(group * geometry_.rows * features_);
        dn_.resize(group * geometry_.rows * d_), dz_.resize(group * geometry_.rows);
        HybridState<T> state(features_, d_);
        state.load(a_.s_in, a_.z_in, b_, hs);
        if (far_gradient) state.add(phi_k_.data(), keys.v, keys.ldv, blocks_[0].far0);
        for (const RowBlock& block : blocks_) {
            for (int64_t h = hs * group; h < (hs + 1) * group; ++h)
                rows_backward(keys, state, block, h, h - hs * group);
            if (far_gradient && &block != &blocks_.back())
                state.add(phi_k_.data() + block.far0 * features_, keys.v + block.far0 * keys.ldv, keys.ldv,
                          block.next - block.far0);
        }
        HybridState<T> grad(features_, d_);
        grad.load(args_.ds_out, args_.dz_out, b_, hs);
        if (far_gradient) keys_backward(keys, grad, hs, group);
        grad.store(args_.ds_in.view, {}, b_, hs, args_.ds_in.accumulate());
        grad.store({}, args_.dz_in.view, b_, hs, args_.dz_in.accumulate());
    }

    // Sweep 1: one block of rows of query head h, the g-th of its state.
    void rows_backward(const HybridKeys<T>& keys, const HybridState<T>& state, const RowBlock& block, int64_t h,
                       int64_t g) {
        const HybridQueries<T> queries(a_, b_, h);
        const bool linear = has_linear_part(block, static_cast<bool>(a_.s_in), a_.spec.window_only);
        const int64_t n = block.keys(), first = g * geometry_.rows + block.row0;
        T *phi_q = &phi_q_[first * features_], *dn = &dn_[first * d_], *dz = &dz_[first];
        if (linear)
            feature_map_block(queries.map, queries.q + block.row0 * queries.ldq, queries.ldq, block.rows,
                              room_.u.data(), phi_q, features_);
        const HybridBlock<T> x{geometry_,
                               block,
                               queries,
                               keys,
                               state,
                               linear ? phi_q : nullptr,
                               block.mixed() > 0 && linear ? &phi_k_[block.far0 * features_] : nullptr};
        hybrid_weights(x, room_);
        const auto y = a_.y.as<const T, 4>(), dy = args_.dy.as<const T, 4>();
        for (int64_t i = 0; i < block.rows; ++i)
            dz[i] = hybrid_row_gradient(&dy(b_, h, block.row0 + i, 0), dy.strides[3], &y(b_, h, block.row0 + i, 0),
                                        y.strides[3], room_.denominator[i], d_, dn + i * d_);
        hybrid_weight_gradient(x, n, dn, dz, room_);
        if (linear)
            hybrid_linear_backward(x, dn, dz, n, room_, block.mixed() > 0 ? &dphi_k_[block.far0 * features_] : nullptr);
        if (!dv_.empty())
            gemm(Gemm<T>{.op_a = Op::Transpose,
                         .m = n,
                         .n = d_,
                         .k = block.rows,
                         .a = room_.weights.data(),
                         .lda = n,
                         .b = dn,
                         .ldb = d_,
                         .beta = 1,
                         .c = &dv_[block.far0 * d_],
                         .ldc = d_});
        window_backward(x, h);
    }

    // room.dc becomes ds; then da, dq, dk, and dphi_q back through the map.
    void window_backward(const HybridBlock<T>& x, int64_t h) {
        const int64_t n = x.block.keys(), rows = x.block.rows;
        T* da = sums_.dmix_logit(b_, h);
        for (int64_t i = 0; i < rows; ++i) {
            const int64_t far = x.far(i), end = x.end(i);
            T* ds = &room_.dc[i * n];
            const T *c = &room_.weights[i * n], *s = &room_.scores[i * n], max = room_.max[i];
            const T total = row_dot(c + far, ds + far, end - far);  // D_i, as NUMERICS says
            if (da && x.phi_q && (a_.s_in || x.block.far0 + far > 0)) *da += x.queries.mix.dlogit * total;
            const T part = total / std::max<T>(1, static_cast<T>(std::count(s + far, s + end, max)));
            std::fill_n(ds, far, T{0});
            for (int64_t j = far; j < end; ++j) ds[j] = c[j] * ds[j] - (s[j] == max ? part : T{0});
            std::fill(ds + end, ds + n, T{0});
        }
        if (!dk_.empty())
            gemm(Gemm<T>{.op_a = Op::Transpose,
                         .m = n,
                         .n = d_,
                         .k = rows,
                         .alpha = x.scale(),
                         .a = room_.dc.data(),
                         .lda = n,
                         .b = x.q(),
                         .ldb = x.queries.ldq,
                         .beta = 1,
                         .c = &dk_[x.block.far0 * d_],
                         .ldc = d_});
        dq_.resize(room_.rows * d_);
        if (args_.dq)
            gemm(Gemm<T>{.m = rows,
                         .n = d_,
                         .k = n,
                         .alpha = x.scale(),
                         .a = room_.dc.data(),
                         .lda = n,
                         .b = x.k(),
                         .ldb = x.keys.ldk,
                         .c = dq_.data(),
                         .ldc = d_});
        if (x.phi_q)
            feature_map_block_backward(x.queries.map, x.q(), x.queries.ldq, rows, room_.u.data(), x.phi_q, features_,
                                       room_.dphi.data(), room_.du.data(),
                                       {.dx = args_.dq ? dq_.data() : nullptr,
                                        .lddx = d_,
                                        .dx_beta = 1,
                                        .dw = sums_.dwq(b_, h),
                                        .db = sums_.dbq(b_, h)});
        store_rows(dq_, args_.dq, h, x.block.row0, rows);
    }

    // Sweep 2.
    void keys_backward(const HybridKeys<T>& keys, HybridState<T>& grad, int64_t hs, int64_t group) {
        const auto leave = [&](int64_t j0, int64_t j1) {
            hybrid_keys_backward(keys, grad, j0, j1 - j0, u_k_.data() + j0 * a_.wk.size(2),
                                 phi_k_.data() + j0 * features_, dphi_k_.data() + j0 * features_,
                                 dv_.empty() ? nullptr : &dv_[j0 * d_],
                                 {.dx = dk_.empty() ? nullptr : &dk_[j0 * d_],
                                  .lddx = d_,
                                  .dx_beta = 1,
                                  .dw = sums_.dwk(b_, hs),
                                  .db = sums_.dbk(b_, hs)},
                                 room_);
        };
        for (auto block = blocks_.rbegin(); block != blocks_.rend(); ++block) {
            if (block->next > block->far0) leave(block->far0, block->next);
            if (!has_linear_part(*block, static_cast<bool>(a_.s_in), a_.spec.window_only)) continue;
            for (int64_t g = 0; g < group; ++g) {
                const int64_t first = g * geometry_.rows + block->row0;
                const T lambda = HybridQueries<T>(a_, b_, hs * group + g).mix.lambda;
                grad.add(&phi_q_[first * features_], &dn_[first * d_], d_, block->rows, lambda, &dz_[first]);
            }
        }
        if (blocks_[0].far0 > 0) leave(0, blocks_[0].far0);
    }

    void store_rows(const std::vector<T>& rows, const GradSlot& slot, int64_t h, int64_t row0, int64_t n) const {
        if (!slot) return;
        const auto out = slot.view.as<T, 4>();
        for (int64_t i = 0; i < n; ++i)
            for (int64_t c = 0; c < d_; ++c) {
                T& to = out(b_, h, row0 + i, c);
                to = slot.accumulate() ? to + rows[i * d_ + c] : rows[i * d_ + c];
            }
    }

    const HybridAttentionBackward& args_;
    const HybridAttentionForward& a_;
    const HybridGeometry& geometry_;
    const std::vector<RowBlock>& blocks_;
    int64_t b_, hk_;
    HybridMapSums<T>& sums_;
    HybridRoom<T>& room_;
    int64_t d_, features_;
    std::vector<T> dk_, dv_, dq_;          // [Tk,D], [Tk,D], [rows,D]
    std::vector<T> u_k_, phi_k_, dphi_k_;  // keys that are in the state at the end
    std::vector<T> phi_q_, dn_, dz_;       // rows of all query heads of the state
};

template <class T>
void backward_blocks(const HybridAttentionBackward& args) {
    const HybridAttentionForward& a = args.forward;
    const HybridGeometry geometry(a);
    const std::vector<RowBlock> blocks = geometry.blocks();
    const int64_t kv_heads = a.k.size(1);
    HybridMapSums<T> sums(a.q.size(0), {args.dwq, args.dbq, args.dwk, args.dbk, args.dmix_logit});
    parallel_for(a.q.size(0) * kv_heads, 1, [&](int64_t begin, int64_t end) {
        HybridRoom<T> room(blocks, feature_size(a.spec.activation, a.wq.size(2)));
        for (int64_t item = begin; item < end; ++item)
            BackwardTask<T>(args, geometry, blocks, item / kv_heads, item % kv_heads, sums, room).run();
    });
    sums.store();
}

}  // namespace

void hybrid_attention_forward_blocks(const HybridAttentionForward& args) {
    LC_CHECK(hybrid_blocks_cover(args), "hybrid_attention: the block form needs contiguous rows");
    dispatch_compute(args.q.dtype, "hybrid_attention",
                     [&](auto type) { forward_blocks<typename decltype(type)::type>(args); });
}

void hybrid_attention_backward_blocks(const HybridAttentionBackward& args) {
    LC_CHECK(hybrid_blocks_cover(args.forward), "hybrid_attention: the block form needs contiguous rows");
    dispatch_compute(args.forward.q.dtype, "hybrid_attention",
                     [&](auto type) { backward_blocks<typename decltype(type)::type>(args); });
}

}  // namespace lc::kernels
