#include "models/generation/cached_attention.h"

#include "kernels/hybrid_decode/hybrid_decode.h"
#include "kernels/softmax_decode/softmax_decode.h"

namespace lc::models {

Tensor attention_output(const Tensor& q) {
    return Tensor::empty({q.size(0), q.size(2), q.size(1), q.size(3)}, q.dtype(), q.device()).permuted({0, 2, 1, 3});
}

void decode_linearized(const DecoderLayer& layer, const Qkv& qkv, const kernels::LinearizedSpec& spec,
                       const Tensor& positions, const LayerCache& cache, const Tensor& y) {
    const bool window = spec.window != kernels::WindowKind::none;
    kernels::hybrid_decode({.q = qkv.q.view(),
                            .k = qkv.k.view(),
                            .v = qkv.v.view(),
                            .wq = layer.maps.wq.view(),
                            .bq = layer.maps.bq.view(),
                            .wk = layer.maps.wk.view(),
                            .bk = layer.maps.bk.view(),
                            .mix_logit = window ? layer.mix_logit.view() : TensorView{},
                            .ring_k = cache.ring_k.view(),
                            .ring_v = cache.ring_v.view(),
                            .s = cache.s.view(),
                            .z = cache.z.view(),
                            .y = y.view(),
                            .positions = positions.view(),
                            .spec = spec},
                           current_stream(qkv.q.device()));
}

void decode_softmax(const Qkv& qkv, const Tensor& positions, const Tensor& keys, const Tensor& values, int64_t window,
                    const Tensor& y) {
    kernels::softmax_decode({.q = qkv.q.view(),
                             .k = qkv.k.view(),
                             .v = qkv.v.view(),
                             .keys = keys.view(),
                             .values = values.view(),
                             .y = y.view(),
                             .positions = positions.view(),
                             .window = window},
                            current_stream(qkv.q.device()));
}

}  // namespace lc::models
