// Conversion: feature maps and window factors (stage 1 learns them), LoRA pairs (stage 2 learns them).
#include <algorithm>
#include <cmath>

#include "autograd/grad_mode.h"
#include "autograd/ops/add.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/scale.h"
#include "core/rng.h"
#include "models/decoder/decoder.h"
#include "models/decoder/parameter.h"

namespace lc::models {
namespace {

// Streams of random numbers: one a tensor, by the layer's number in the whole model, so that a decoder of some layers
// draws what the decoder of all layers would.
enum class Draw : uint64_t { map, bias, lora_a, count = lora_a + 4 };
Random random_for(uint64_t seed, int64_t layer, Draw draw, size_t which = 0) {
    return Random(
        seed, static_cast<uint64_t>(layer) * static_cast<uint64_t>(Draw::count) + static_cast<uint64_t>(draw) + which);
}

// Values are rounded to f32 in either dtype, so that f64 models start from the same numbers.
template <class F>
Tensor filled(const Shape& shape, DType dtype, F&& value) {
    std::vector<float> values(static_cast<size_t>(numel_of(shape)));
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(value(i));
    return Tensor::from(values, shape).to(dtype);
}

Tensor uniform(const Shape& shape, DType dtype, double bound, const Random& random) {
    return filled(shape, dtype, [&](uint64_t i) { return bound * (2 * random.uniform(i) - 1); });
}

Tensor initial_map(const AttentionSpec& spec, int64_t heads, int64_t d, int64_t f, DType dtype, const Random& random) {
    const Shape shape{heads, d, f};
    switch (spec.init) {
        case FeatureInit::identity:
            return filled(shape, dtype, [&](uint64_t i) {
                const uint64_t row = i / static_cast<uint64_t>(f) % static_cast<uint64_t>(d);
                return !spec.skip && row == i % static_cast<uint64_t>(f) ? 1.0 : 0.0;
            });
        case FeatureInit::kaiming:
            return uniform(shape, dtype, std::sqrt(6.0 / static_cast<double>(d * f)), random);
        case FeatureInit::normal:
            return filled(shape, dtype, [&](uint64_t i) { return random.normal(i); });
    }
    fail(ErrorKind::Internal, "linearize: unknown init {}", static_cast<int>(spec.init));
}

// fan-in of a tensor [1,H,1,1] or [1,H,1,F] is all behind the first axis, as for the maps
Tensor initial_bias(const AttentionSpec& spec, int64_t heads, int64_t f, DType dtype, const Random& random) {
    if (spec.bias == FeatureBias::none) return {};
    const Shape shape{heads, spec.bias == FeatureBias::vector ? f : 1};
    if (spec.init != FeatureInit::kaiming) return Tensor::zeros(shape, dtype);
    return uniform(shape, dtype, std::sqrt(6.0 / static_cast<double>(numel_of(shape))), random);
}

// One row for each k-map: all of them, or those of the first query head of each group.
Tensor copy_for_keys(const Tensor& q_tensor, int64_t key_maps) {
    if (!q_tensor.defined()) return {};
    const int64_t group = q_tensor.size(0) / key_maps;
    Shape shape = q_tensor.shape();
    shape[0] = key_maps;
    Tensor copy = Tensor::empty(shape, q_tensor.dtype());
    for (int64_t h = 0; h < key_maps; ++h) copy.sliced(0, h, 1).copy_from(q_tensor.sliced(0, h * group, 1));
    return copy;
}

}  // namespace

void Decoder::linearize_layer(int64_t index, uint64_t seed) {
    DecoderLayer& layer = this->layer(index);
    const AttentionSpec& spec = *attention_;
    const int64_t number = first_layer_ + index, heads = config_.num_heads, f = spec.feature_dim;
    const int64_t key_maps = spec.heads == FeatureHeads::kv ? config_.num_kv_heads : heads;
    const DType wide = placement_.wide();
    const Tensor map = initial_map(spec, heads, config_.head_dim, f, wide, random_for(seed, number, Draw::map));
    const Tensor bias = initial_bias(spec, heads, f, wide, random_for(seed, number, Draw::bias));
    const auto place = [&](const Tensor& tensor) { return tensor.defined() ? frozen(tensor.to(device())) : Tensor(); };
    layer.maps = {.wq = place(map),
                  .bq = place(bias),
                  .wk = place(copy_for_keys(map, key_maps)),
                  .bk = place(copy_for_keys(bias, key_maps))};
    if (spec.kind == AttentionKind::hybrid)
        layer.mix_logit = frozen(Tensor::full({heads}, spec.mix_init, wide, device()));
    layer.linearized = true;
}

void Decoder::linearize(const AttentionSpec& spec, uint64_t seed) {
    validate(spec, config_.head_dim, config_.num_layers);
    attention_ = spec;
    attention_->feature_dim = spec.feature_dim_for(config_.head_dim);
    lora_.reset();
    for (int64_t i = 0; i < num_layers(); ++i) {
        DecoderLayer& layer = this->layer(i);
        layer.maps = {}, layer.mix_logit = {}, layer.linearized = false;
        for (const std::string_view name : kProjectionNames) find_projection(layer, name)->drop_lora();
        const auto& kept = spec.softmax_layers;
        if (std::find(kept.begin(), kept.end(), first_layer_ + i) == kept.end()) linearize_layer(i, seed);
    }
}

void Decoder::add_lora(const LoraSpec& spec, uint64_t seed) {
    LC_REQUIRE(Usage, spec.rank >= 1 && std::isfinite(spec.alpha),
               "LoRA: rank must be at least 1 and alpha finite, got {} and {}", spec.rank, spec.alpha);
    LC_REQUIRE(Usage, !spec.targets.empty(), "LoRA: no target projections");
    lora_ = spec;
    for (std::string& target : lora_->targets) target = projection_of(config_, target);
    for (const std::string& target : lora_->targets)
        LC_REQUIRE(Usage, std::count(kProjectionNames.begin(), kProjectionNames.end(), target) == 1,
                   "LoRA: unknown target '{}' — one of q_proj, k_proj, v_proj, o_proj", target);
    for (int64_t i = 0; i < num_layers(); ++i) {
        if (attention_ && !layer(i).linearized) continue;
        for (size_t p = 0; p < kProjectionNames.size(); ++p) {
            Projection& projection = *find_projection(layer(i), kProjectionNames[p]);
            projection.drop_lora();
            if (std::ranges::count(lora_->targets, kProjectionNames[p]) == 0) continue;
            const int64_t in = projection.weight.size(1), out = projection.weight.size(0);
            const Random random = random_for(seed, first_layer_ + i, Draw::lora_a, p);
            const double bound = 1 / std::sqrt(static_cast<double>(in));
            projection.lora_a = frozen(uniform({spec.rank, in}, placement_.wide(), bound, random).to(device()));
            projection.lora_b = frozen(Tensor::zeros({out, spec.rank}, placement_.wide(), device()));
            projection.lora_scale = spec.alpha / static_cast<double>(spec.rank);
        }
    }
}

void Decoder::merge_lora() {
    const NoGrad no_grad;
    for (DecoderLayer& layer : layers_)
        for (const std::string_view name : kProjectionNames) {
            Projection& projection = *find_projection(layer, name);
            if (!projection.lora_a.defined()) continue;
            LC_CHECK(projection.weight.dtype() != DType::u8, "decoder: adapters cannot be merged into codes");
            const Tensor change = scale(matmul(projection.lora_b, projection.lora_a), projection.lora_scale);
            projection.weight.copy_from(add(projection.weight.to(placement_.wide()), change));
            projection.drop_lora();
        }
    lora_.reset();
}

}  // namespace lc::models
