#include "models/attention/reference_attention.h"

#include "autograd/ops/concat.h"
#include "autograd/ops/hybrid_attention.h"
#include "autograd/ops/softmax_attention.h"
#include "autograd/ops/views.h"

namespace lc::models {
namespace {

using kernels::LinearizedSpec;
using kernels::WindowKind;

// What linear attention hands on; of pure linear attention, which knows no mixture.
LinearizedSpec linear_spec(LinearizedSpec spec) {
    spec.window = WindowKind::none, spec.affine = false;
    return spec;
}

// One row at a time: the window holds all keys up to the row, and so does the state.
Tensor counted_twice(const Tensor& q, const Tensor& k, const Tensor& v, const FeatureMaps& maps,
                     const Tensor& mix_logit, const LinearizedSpec& spec) {
    const LinearizedSpec linear = linear_spec(spec);
    LinearState state;
    Tensor rows;
    for (int64_t i = 0; i < q.size(2); ++i) {
        const Tensor q_row = slice(q, 2, i, 1);
        state = linear_attention(q_row, slice(k, 2, i, 1), slice(v, 2, i, 1), maps, linear, state, true).state;
        const Tensor row =
            hybrid_attention(q_row, slice(k, 2, 0, i + 1), slice(v, 2, 0, i + 1), maps, mix_logit, spec, {state, 0}).y;
        rows = concat(rows, row, 2);
    }
    return rows;
}

}  // namespace

Tensor reference_attention(const Tensor& q, const Tensor& k, const Tensor& v, const FeatureMaps& maps,
                           const Tensor& mix_logit, LinearizedSpec spec) {
    spec.window = WindowKind::terraced;
    const int64_t length = q.size(2), w = spec.window_size;
    if (length <= w) return counted_twice(q, k, v, maps, mix_logit, spec);
    const int64_t first = length % w;  // rows of the short block
    if (first == 0) return hybrid_attention(q, k, v, maps, mix_logit, spec).y;
    // Rows of the first two blocks have all keys in their window: softmax, from which the mixing factor cancels.
    const int64_t near = first + w;
    const Tensor y = softmax_attention(slice(q, 2, 0, near), slice(k, 2, 0, near), slice(v, 2, 0, near));
    if (near == length) return y;
    // The others see the short block by its state, and then whole blocks, the first of which is block 1.
    const LinearState state = linear_attention(slice(q, 2, 0, first), slice(k, 2, 0, first), slice(v, 2, 0, first),
                                               maps, linear_spec(spec), {}, true)
                                  .state;
    return concat(y,
                  hybrid_attention(slice(q, 2, near, length - near), slice(k, 2, first, length - first),
                                   slice(v, 2, first, length - first), maps, mix_logit, spec, {state, w})
                      .y,
                  2);
}

}  // namespace lc::models
