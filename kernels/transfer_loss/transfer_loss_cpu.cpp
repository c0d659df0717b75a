// The block form of transfer_loss on the CPU, from the building stones of hybrid_attention_blocks.h.
// PARALLEL over batch x states; each task walks its rows twice and keeps phi_q, phi_k, dN, dZ of its heads: O(T) scratch.
#include <numeric>

#include "kernels/hybrid_attention/hybrid_attention_blocks.h"
#include "kernels/transfer_loss/transfer_loss.h"

namespace lc::kernels {
namespace {

// One state of one batch entry, with its query heads.
template <class T>
class TransferTask {
  public:
    TransferTask(const TransferLoss& args, const HybridAttentionForward& a, const HybridGeometry& geometry,
                 const std::vector<RowBlock>& blocks, int64_t b, int64_t hs, HybridMapSums<T>& sums,
                 HybridRoom<T>& room)
        : args_(args),
          a_(a),
          geometry_(geometry),
          blocks_(blocks),
          b_(b),
          hs_(hs),
          group_(a.q.size(1) / a.wk.size(0)),
          d_(a.q.size(3)),
          features_(feature_size(a.spec.activation, a.wq.size(2))),
          far_(blocks.back().next),
          want_gradients_(args.gradients.any()),
          keys_(a, b, hs),
          sums_(sums),
          room_(room) {}

    // Sum of squared differences of each head goes to losses[h].
    void run(double* losses) {
        if (a_.spec.window_only) far_ = 0;  // no linear branch: no key is ever mapped
        u_k_.resize(far_ * a_.wk.size(2)), phi_k_.resize(far_ * features_), dphi_k_.resize(far_ * features_);
        if (far_ > 0) feature_map_block(keys_.map, keys_.k, keys_.ldk, far_, u_k_.data(), phi_k_.data(), features_);
        phi_q_.resize(group_ * geometry_.rows * features_);
        dn_.resize(group_ * geometry_.rows * d_), dz_.resize(group_ * geometry_.rows), y_.resize(room_.rows * d_);
        HybridState<T> state(features_, d_);
        join(state, 0, blocks_[0].far0);
        for (const RowBlock& block : blocks_) {
            for (int64_t g = 0; g < group_; ++g) losses[hs_ * group_ + g] += rows(state, block, g);
            if (&block != &blocks_.back()) join(state, block.far0, block.next);
        }
        if (want_gradients_ && far_ > 0) keys();
    }

  private:
    void join(HybridState<T>& state, int64_t j0, int64_t j1) {
        if (far_ > 0) state.add(phi_k_.data() + j0 * features_, keys_.v + j0 * keys_.ldv, keys_.ldv, j1 - j0);
    }

    // Sweep 1. Returns the sum of squared differences.
    double rows(const HybridState<T>& state, const RowBlock& block, int64_t g) {
        const int64_t h = hs_ * group_ + g, first = g * geometry_.rows + block.row0;
        const HybridQueries<T> queries(a_, b_, h);
        const bool linear = has_linear_part(block, false, a_.spec.window_only);
        T *phi_q = phi_q_.data() + first * features_, *dn = &dn_[first * d_], *dz = &dz_[first];
        const T* phi_k = phi_k_.data() + block.far0 * features_;
        if (linear)
            feature_map_block(queries.map, queries.q + block.row0 * queries.ldq, queries.ldq, block.rows,
                              room_.u.data(), phi_q, features_);
        const HybridBlock<T> x{geometry_, block, queries, keys_, state, linear ? phi_q : nullptr, phi_k};
        hybrid_weights(x, room_);
        hybrid_output(x, room_, y_.data(), d_);
        const double sum = differences(block, h, dn, dz);
        if (!want_gradients_ || !linear) return sum;  // without far keys the row is softmax: nothing learns from it
        hybrid_weight_gradient(x, block.mixed(), dn, dz, room_);
        hybrid_linear_backward(x, dn, dz, block.mixed(), room_, dphi_k_.data() + block.far0 * features_);
        // sum_i D_i by the identity: the window's dc are never made here.
        if (T* da = sums_.dmix_logit(b_, h))
            *da -= queries.mix.dlogit * row_dot(phi_q, room_.dphi.data(), block.rows * features_);
        feature_map_block_backward(queries.map, x.q(), queries.ldq, block.rows, room_.u.data(), phi_q, features_,
                                   room_.dphi.data(), room_.du.data(),
                                   {.dw = sums_.dwq(b_, h), .db = sums_.dbq(b_, h)});
        return sum;
    }

    // The block's y against the target: dN and dZ of its rows, and the sum of squares.
    double differences(const RowBlock& block, int64_t h, T* dn, T* dz) {
        const auto target = args_.target.as<const T, 4>();
        const T scale = static_cast<T>(2 * args_.factor / static_cast<double>(a_.q.numel()));
        double sum = 0;
        for (int64_t i = 0; i < block.rows; ++i) {
            const T *y = &y_[i * d_], *wanted = &target(b_, h, block.row0 + i, 0);
            T* row = dn + i * d_;
            for (int64_t c = 0; c < d_; ++c) row[c] = y[c] - wanted[c * target.strides[3]];
            sum += static_cast<double>(row_dot(row, row, d_));
            const T factor = scale / room_.denominator[i];
            row_scale(row, d_, factor);
            dz[i] = -row_dot(row, y, d_);
        }
        return sum;
    }

    // Sweep 2.
    void keys() {
        HybridState<T> grad(features_, d_);
        const auto leave = [&](int64_t j0, int64_t j1) {
            hybrid_keys_backward(keys_, grad, j0, j1 - j0, u_k_.data() + j0 * a_.wk.size(2),
                                 phi_k_.data() + j0 * features_, dphi_k_.data() + j0 * features_,
                                 static_cast<T*>(nullptr), {.dw = sums_.dwk(b_, hs_), .db = sums_.dbk(b_, hs_)}, room_);
        };
        for (auto block = blocks_.rbegin(); block != blocks_.rend(); ++block) {
            leave(block->far0, block->next);
            if (!has_linear_part(*block, false, a_.spec.window_only)) continue;
            for (int64_t g = 0; g < group_; ++g) {
                const int64_t first = g * geometry_.rows + block->row0;
                const T lambda = HybridQueries<T>(a_, b_, hs_ * group_ + g).mix.lambda;
                grad.add(&phi_q_[first * features_], &dn_[first * d_], d_, block->rows, lambda, &dz_[first]);
            }
        }
        leave(0, blocks_[0].far0);
    }

    const TransferLoss& args_;
    const HybridAttentionForward& a_;
    const HybridGeometry& geometry_;
    const std::vector<RowBlock>& blocks_;
    int64_t b_, hs_, group_, d_, features_, far_;
    bool want_gradients_;
    HybridKeys<T> keys_;
    HybridMapSums<T>& sums_;
    HybridRoom<T>& room_;
    std::vector<T> u_k_, phi_k_, dphi_k_;  // keys that some row sees linearly
    std::vector<T> phi_q_, dn_, dz_;       // rows of all query heads of the state
    std::vector<T> y_;                     // one block of rows
};

template <class T>
void transfer_blocks(const TransferLoss& args) {
    const HybridAttentionForward a{.q = args.q,
                                   .k = args.k,
                                   .v = args.v,
                                   .wq = args.wq,
                                   .bq = args.bq,
                                   .wk = args.wk,
                                   .bk = args.bk,
                                   .mix_logit = args.mix_logit,
                                   .s_in = {},
                                   .z_in = {},
                                   .y = {},
                                   .s_out = {},
                                   .z_out = {},
                                   .spec = args.spec};
    const HybridGeometry geometry(a);
    const std::vector<RowBlock> blocks = geometry.blocks();
    const int64_t states = a.wk.size(0), heads = a.q.size(1);
    std::vector<double> losses(a.q.size(0) * heads);
    HybridMapSums<T> sums(a.q.size(0), args.gradients);
    parallel_for(a.q.size(0) * states, 1, [&](int64_t begin, int64_t end) {
        HybridRoom<T> room(blocks, feature_size(a.spec.activation, a.wq.size(2)));
        for (int64_t item = begin; item < end; ++item) {
            const int64_t b = item / states;
            TransferTask<T>(args, a, geometry, blocks, b, item % states, sums, room).run(&losses[b * heads]);
        }
    });
    const double sum = std::accumulate(losses.begin(), losses.end(), 0.0);
    *args.loss.data<T>() = static_cast<T>(args.factor * sum / static_cast<double>(a.q.numel()));
    sums.store();
}

}  // namespace

void transfer_loss_blocks(const TransferLoss& args) {
    dispatch_compute(args.q.dtype, "transfer_loss",
                     [&](auto type) { transfer_blocks<typename decltype(type)::type>(args); });
}

}  // namespace lc::kernels
