// The fast CPU form of one decode step.
//
// TILING: first, when keys leave the window, each (batch, state) maps them as one block and adds phi^T V by a product; then
// each (batch, query head) attends. The window lies in the ring as one or two runs of slots, read where they lie.
// COST a query head and step: F' D (S once through the cache) + window D * 2 + D F multiply-adds; the S read dominates, so
// a terraced step writes S only once in w steps.
// NUMERICS: f32 like the block form; the state is a running sum over at most length/w products.
#include "kernels/common/row.h"
#include "kernels/feature_map/feature_map_block.h"
#include "kernels/hybrid_attention/hybrid_mix.h"
#include "kernels/hybrid_decode/hybrid_decode.h"

namespace lc::kernels {
namespace {

// The positions [begin, end) as runs of contiguous ring slots: f(first slot, count, offset of the run).
template <class F>
void for_each_run(int64_t begin, int64_t end, int64_t slots, F&& f) {
    for (int64_t p = begin; p < end;) {
        const int64_t slot = p % slots, count = std::min(end - p, slots - slot);
        f(slot, count, p - begin);
        p += count;
    }
}

// The keys at `slot` and the count-1 slots behind it join state hs of batch entry b.
void fold(const HybridDecode& a, const TensorView& keys, const TensorView& values, int64_t slot, int64_t count,
          int64_t b, int64_t hs) {
    const auto k = keys.as<const float, 4>(), v = values.as<const float, 4>();
    const auto s = a.s.as<float, 4>();
    const int64_t hk = hs / (s.size(1) / k.size(1)), d = k.size(3);
    const auto map = feature_map_head<float>(a.wk, a.bk, hs, a.spec.activation, a.spec.skip);
    const int64_t features = map.phi_size();
    std::vector<float> u(count * map.f), phi(count * features);
    const int64_t ldk = std::max(k.strides[2], d), ldv = std::max(v.strides[2], d);  // one row may have any stride
    feature_map_block(map, &k(b, hk, slot, 0), ldk, count, u.data(), phi.data(), features);
    gemm(Gemm<float>{.op_a = Op::Transpose,
                     .m = features,
                     .n = d,
                     .k = count,
                     .a = phi.data(),
                     .lda = features,
                     .b = &v(b, hk, slot, 0),
                     .ldb = ldv,
                     .beta = 1,
                     .c = &s(b, hs, 0, 0),
                     .ldc = s.strides[2]});
    float* z = &a.z.as<float, 3>()(b, hs, 0);
    for (int64_t j = 0; j < count; ++j) row_axpy(phi.data() + j * features, z, features, 1.0f);
}

void attend(const HybridDecode& a, int64_t position, int64_t b, int64_t h, std::vector<float>& room) {
    const auto q = a.q.as<const float, 4>();
    const auto s = a.s.as<const float, 4>();
    const int64_t d = q.size(3), hk = h / (q.size(1) / a.k.size(1)), hs = h / (q.size(1) / s.size(1));
    const int64_t begin = state_end(a.spec, position + 1), end = position + 1, window = end - begin;
    const HybridMix<float> mix = hybrid_mix<float>(a.mix_logit, a.spec, h);
    const auto map = feature_map_head<float>(a.wq, a.bq, h, a.spec.activation, a.spec.skip);
    const int64_t features = map.phi_size();
    room.resize(map.f + features + window);
    float *u = room.data(), *phi = u + map.f, *weights = phi + features, *y = &a.y.as<float, 4>()(b, h, 0, 0);
    const float* query = &q(b, h, 0, 0);
    std::fill_n(y, d, 0.0f);
    float total = a.spec.window == WindowKind::none ? static_cast<float>(kLinearEpsilon) : 0.0f;
    if (mix.lambda != 0) {
        feature_map_block(map, query, d, 1, u, phi, features);
        total += mix.lambda * row_dot(phi, &a.z.as<const float, 3>()(b, hs, 0), features);
        for (int64_t f = 0; f < features; ++f) row_axpy(&s(b, hs, f, 0), y, d, mix.lambda * phi[f]);
    }
    if (window > 0) {
        const auto k = a.ring_k.as<const float, 4>(), v = a.ring_v.as<const float, 4>();
        const float scale = 1 / std::sqrt(static_cast<float>(d));
        for_each_run(begin, end, k.size(2), [&](int64_t slot, int64_t count, int64_t offset) {
            for (int64_t j = 0; j < count; ++j) weights[offset + j] = scale * row_dot(query, &k(b, hk, slot + j, 0), d);
        });
        total += mix.gamma * row_exp_sum(weights, weights, window, 1.0f, row_max(weights, window));
        for_each_run(begin, end, v.size(2), [&](int64_t slot, int64_t count, int64_t offset) {
            for (int64_t j = 0; j < count; ++j) row_axpy(&v(b, hk, slot + j, 0), y, d, mix.gamma * weights[offset + j]);
        });
    }
    for (int64_t x = 0; x < d; ++x) y[x] /= total;
}

}  // namespace

void hybrid_decode_fast(const HybridDecode& a) {
    const int64_t states = a.s.size(1), heads = a.q.size(1), batch = a.q.size(0), d = a.q.size(3);
    const auto positions = a.positions.as<const int64_t, 1>();
    parallel_for(batch * states, 1, [&](int64_t first, int64_t last) {
        for (int64_t item = first; item < last; ++item) {
            const int64_t b = item / states, hs = item % states, position = positions(b);
            if (position < 0) continue;
            if (a.spec.window == WindowKind::none)
                fold(a, a.k, a.v, 0, 1, b, hs);
            else
                for_each_run(
                    state_end(a.spec, position), state_end(a.spec, position + 1), a.ring_k.size(2),
                    [&](int64_t slot, int64_t count, int64_t) { fold(a, a.ring_k, a.ring_v, slot, count, b, hs); });
        }
    });
    if (a.ring_k)
        for (int64_t b = 0; b < batch; ++b)
            for (int64_t h = 0; h < a.k.size(1) && positions(b) >= 0; ++h) {
                const int64_t slot = positions(b) % a.ring_k.size(2);
                std::copy_n(&a.k.as<const float, 4>()(b, h, 0, 0), d, &a.ring_k.as<float, 4>()(b, h, slot, 0));
                std::copy_n(&a.v.as<const float, 4>()(b, h, 0, 0), d, &a.ring_v.as<float, 4>()(b, h, slot, 0));
            }
    parallel_for(batch * heads, 4, [&](int64_t first, int64_t last) {
        std::vector<float> room;
        for (int64_t item = first; item < last; ++item) {
            const int64_t b = item / heads, h = item % heads;
            if (positions(b) >= 0)
                attend(a, positions(b), b, h, room);
            else
                std::fill_n(&a.y.as<float, 4>()(b, h, 0, 0), d, 0.0f);
        }
    });
}

}  // namespace lc::kernels
