// The forward pass over weights that are only read: norm, product, activation and residual in one op (kernels/frozen_linear), and
// weights that may be codes.
#include "autograd/grad_mode.h"
#include "autograd/node.h"
#include "autograd/ops/gelu.h"
#include "kernels/common/rows.h"
#include "models/decoder/decoder.h"

namespace lc::models {

bool Decoder::reads_frozen(const Tensor& x, const Tensor& weight, int64_t most_rows) const {
    if (weight.dtype() == DType::u8) {
        LC_CHECK(!should_record({&x}), "decoder: weights in eight bits give no gradients");
        return true;
    }
    return x.device().is_cuda() && x.dtype() == DType::bf16 && weight.dtype() == DType::bf16 &&
           kernels::row_count(x.shape()) <= most_rows && !should_record({&x, &weight});
}

std::vector<Tensor> Decoder::frozen_products(const Tensor& x, const Norm* norm,
                                             const std::vector<FrozenWeight>& weights, const Tensor& residual,
                                             bool gated) const {
    std::vector<Tensor> results;
    for (const FrozenWeight& w : weights) {
        if (gated && !results.empty()) continue;
        Shape shape = x.shape();
        shape[-1] = w.weight.size(0);
        results.push_back(Tensor::empty(shape, x.dtype(), x.device()));
    }
    multiply_frozen(x, norm, weights, results, residual, gated);
    return results;
}

void Decoder::multiply_frozen(const Tensor& x, const Norm* norm, const std::vector<FrozenWeight>& weights,
                              const std::vector<Tensor>& results, const Tensor& residual, bool gated) const {
    const bool fused = norm && config_.block.norm == io::NormKind::rms;
    const Tensor input = norm && !fused ? this->norm(x, *norm) : x;
    std::vector<kernels::FrozenMatrix> matrices;
    std::vector<TensorView> y;
    for (const FrozenWeight& w : weights) matrices.push_back({w.weight.view(), w.scale.view(), w.bias.view()});
    for (const Tensor& result : results) y.push_back(result.view());
    const bool coded = weights[0].weight.dtype() == DType::u8;
    kernels::frozen_linear({.x = input.view(),
                            .norm_weight = fused ? norm->weight.view() : TensorView{},
                            .matrices = matrices,
                            .residual = residual.view(),
                            .y = y,
                            .code = coded ? weight_code_ : WeightCode::none,
                            .code_rows = coded && code_rows_,
                            .gated = gated,
                            .norm_eps = config_.norm_eps,
                            .norm_offset = config_.block.norm_offset},
                           current_stream(x.device()));
}

Tensor Decoder::frozen_qkv(const DecoderLayer& layer, const Tensor& h) const {
    const std::array<const Projection*, 3> projections{&layer.q, &layer.k, &layer.v};
    Shape shape = h.shape();
    shape[-1] = 0;
    for (const Projection* p : projections) shape[-1] += p->weight.size(0);
    const Tensor all = Tensor::empty(shape, h.dtype(), h.device());
    std::vector<FrozenWeight> weights;
    std::vector<Tensor> y;
    int64_t first = 0;
    for (const Projection* p : projections) {
        weights.push_back({p->weight, p->scale, p->bias});
        y.push_back(all.sliced(-1, first, p->weight.size(0)));
        first += p->weight.size(0);
    }
    multiply_frozen(h, &layer.input_norm, weights, y);
    return all;
}

std::array<Tensor, 3> Decoder::frozen_qkv_apart(const DecoderLayer& layer, const Tensor& h) const {
    std::vector<FrozenWeight> weights;
    for (const Projection* p : {&layer.q, &layer.k, &layer.v}) weights.push_back({p->weight, p->scale, p->bias});
    const std::vector<Tensor> y = frozen_products(h, &layer.input_norm, weights);
    return {y[0], y[1], y[2]};
}

Tensor Decoder::frozen_finish(const DecoderLayer& layer, const Tensor& h, const Tensor& rows) const {
    const io::BlockConfig& block = config_.block;
    const Tensor sum = frozen_products(rows, nullptr, {{layer.o.weight, layer.o.scale, layer.o.bias}}, h)[0];
    const Tensor& x = block.parallel ? h : sum;
    const Norm& norm = block.parallel ? layer.input_norm : layer.post_attention_norm;
    const FrozenWeight up{layer.up, layer.up_scale, layer.up_bias};
    Tensor inner;
    if (!block.gated) {
        inner = gelu(frozen_products(x, &norm, {up})[0]);
    } else {
        const bool fused = block.activation == io::Activation::silu;
        const FrozenWeight gate{layer.gate, layer.gate_scale, layer.gate_bias};
        const std::vector<Tensor> y = frozen_products(x, &norm, {gate, up}, {}, fused);
        inner = fused ? y[0] : activate(y[0], y[1]);
    }
    return frozen_products(inner, nullptr, {{layer.down, layer.down_scale, layer.down_bias}}, sum)[0];
}

void Decoder::encode(Tensor& weight, Tensor& scale) const {
    if (!weight.defined() || weight.dtype() == DType::u8) return;
    const NoGrad no_grad;
    const Tensor codes = Tensor::empty(weight.shape(), DType::u8, weight.device());
    scale = Tensor::empty({weight.size(0)}, DType::f32, weight.device());
    kernels::encode_weights({.w = weight.view(), .codes = codes.view(), .scale = scale.view(), .code = weight_code_},
                            current_stream(weight.device()));
    weight = codes;
}

void Decoder::encode_mlp(DecoderLayer& layer) const {
    encode(layer.gate, layer.gate_scale), encode(layer.up, layer.up_scale), encode(layer.down, layer.down_scale);
}

void Decoder::encode_projections(WeightCode code, bool code_rows) {
    LC_CHECK(weight_code_ == WeightCode::none || weight_code_ == code, "decoder: weights are {} already, not {}",
             kernels::name_of(weight_code_), kernels::name_of(code));
    if (code == WeightCode::none) return;
    weight_code_ = code, code_rows_ = code_rows;
    for (DecoderLayer& layer : layers_) {
        for (const std::string_view name : kProjectionNames) {
            Projection& projection = *find_projection(layer, name);
            LC_CHECK(!projection.lora_a.defined(), "decoder: adapters must be merged before weights become codes");
            encode(projection.weight, projection.scale);
        }
        encode_mlp(layer);
    }
}

}  // namespace lc::models
