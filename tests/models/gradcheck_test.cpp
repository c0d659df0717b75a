// Gradients of whole tiny models, element by element, in f64: both stages as training computes them.
#include <gtest/gtest.h>

#include "autograd/engine.h"
#include "autograd/gradcheck.h"
#include "autograd/ops/add.h"
#include "autograd/ops/linear_cross_entropy.h"
#include "autograd/ops/mse.h"
#include "autograd/ops/transfer_loss.h"
#include "autograd/ops/views.h"
#include "tests/models/tiny.h"

namespace lc::models {
namespace {

using kernels::FeatureActivation;
using kernels::WindowKind;
using test::tiny_ids;

struct Variant {
    const char* name;
    bool tied = true;
    AttentionSpec spec;
};

// Printed in test names.
std::ostream& operator<<(std::ostream& out, const Variant& variant) {
    return out << variant.name;
}

Variant variant(const char* name, bool tied, void (*change)(AttentionSpec&)) {
    Variant result{name, tied, {}};
    result.spec.window_size = 3;
    result.spec.feature_dim = 4;
    change(result.spec);
    return result;
}

const Variant kVariants[] = {
    variant("terraced", true, [](AttentionSpec&) {}),
    variant("terraced_untied_kv_maps", false, [](AttentionSpec& s) { s.heads = FeatureHeads::kv; }),
    variant("sliding_affine", true, [](AttentionSpec& s) { s.window = WindowKind::sliding, s.affine = true; }),
    variant("linear_t2r", false,
            [](AttentionSpec& s) {
                s.kind = AttentionKind::linear, s.activation = FeatureActivation::relu,
                s.bias = FeatureBias::head_scalar;
            }),
    variant("one_kept_softmax_layer", true, [](AttentionSpec& s) { s.softmax_layers = {0}; }),
};

// The places in the model where the tensors of feature_map_parameters() or lora_parameters() lie, in that order.
std::vector<Tensor*> map_slots(Decoder& decoder) {
    std::vector<Tensor*> slots;
    for (int64_t i = 0; i < decoder.num_layers(); ++i) {
        DecoderLayer& layer = decoder.layer(i);
        for (Tensor* tensor : {&layer.maps.wq, &layer.maps.bq, &layer.maps.wk, &layer.maps.bk, &layer.mix_logit})
            if (tensor->defined()) slots.push_back(tensor);
    }
    return slots;
}
std::vector<Tensor*> lora_slots(Decoder& decoder) {
    std::vector<Tensor*> slots;
    for (int64_t i = 0; i < decoder.num_layers(); ++i)
        for (const std::string_view name : kProjectionNames) {
            Projection& projection = *find_projection(decoder.layer(i), name);
            if (projection.lora_a.defined()) slots.insert(slots.end(), {&projection.lora_a, &projection.lora_b});
        }
    return slots;
}

// Differentiates loss(decoder) by what lies in the slots.
void check(Decoder& decoder, const std::vector<Tensor*>& slots, const std::function<Tensor()>& loss) {
    std::vector<Tensor> inputs;
    for (Tensor* slot : slots) {
        inputs.push_back(slot->clone());
        set_requires_grad(inputs.back());
    }
    ASSERT_FALSE(inputs.empty());
    decoder.set_trainable({});
    const auto fn = [&](const std::vector<Tensor>& values) {
        for (size_t i = 0; i < slots.size(); ++i) *slots[i] = values[i];
        return std::vector<Tensor>{loss()};
    };
    const GradcheckReport report = gradcheck(fn, inputs, {.tolerance = 1e-6});
    EXPECT_TRUE(report.ok) << report.detail;
    int64_t elements = 0;
    for (const Tensor& input : inputs) elements += input.numel();
    EXPECT_EQ(report.elements, elements);
}

class WholeModel : public testing::TestWithParam<Variant> {
  protected:
    WholeModel() : decoder_(test::tiny_decoder(test::tiny_config(GetParam().tied), DType::f64)) {
        decoder_.linearize(GetParam().spec, 1);
        test::disturb(decoder_.feature_map_parameters(), 0.4);
    }
    Decoder decoder_;
    Tensor ids_ = tiny_ids(2, 11);
};

// Stage 1: each layer on the teacher's hidden states, against the teacher's attention outputs.
TEST_P(WholeModel, TransferLossByMapsAndFactors) {
    for (const bool fused : {false, true}) {
        SCOPED_TRACE(fused ? "fused" : "composed");
        check(decoder_, map_slots(decoder_), [&] {
            Tensor h, loss;
            {
                const NoGrad no_grad;
                h = decoder_.embed(ids_);
            }
            for (int64_t i = 0; i < decoder_.num_layers(); ++i) {
                Qkv qkv;
                Tensor target;
                {
                    const NoGrad no_grad;
                    qkv = decoder_.project(i, h);
                    target = decoder_.attend(i, qkv, AttentionMode::Softmax);
                    h = decoder_.finish(i, h, target);
                }
                const DecoderLayer& layer = decoder_.layer(i);
                if (!layer.linearized) continue;
                const Tensor term = fused ? transfer_loss(qkv.q, qkv.k, qkv.v, target, layer.maps, layer.mix_logit,
                                                          decoder_.attention()->kernel_spec())
                                          : mse(decoder_.attend(i, qkv, AttentionMode::Linearized), target);
                loss = loss.defined() ? add(loss, term) : term;
            }
            return loss;
        });
    }
}

// Stage 2: next-token loss through all layers.
TEST_P(WholeModel, CrossEntropyByLoraAndMaps) {
    decoder_.add_lora({.rank = 2, .alpha = 4}, 3);
    test::disturb(decoder_.lora_parameters(), 0.2);
    std::vector<Tensor*> slots = lora_slots(decoder_);
    const std::vector<Tensor*> maps = map_slots(decoder_);
    slots.insert(slots.end(), maps.begin(), maps.end());
    std::vector<int32_t> labels = tiny_ids(2, 11, 40, 6).reshaped({22}).to_vector<int32_t>();
    labels[0] = labels[7] = -100;
    const Tensor wanted = Tensor::from(labels, {22});
    check(decoder_, slots, [&] {
        const Tensor hidden = decoder_.hidden(ids_, {.mode = AttentionMode::Linearized});
        return linear_cross_entropy(reshape(hidden, {22, decoder_.config().hidden_size}), decoder_.lm_head(), wanted);
    });
}

INSTANTIATE_TEST_SUITE_P(Gradients, WholeModel, testing::ValuesIn(kVariants),
                         [](const auto& p) { return std::string(p.param.name); });

// Pretraining: every weight of the softmax model, the tied embedding with its two uses. The parameters are moved in place;
// nothing here has kinks, so one step size does.
TEST(Pretraining, CrossEntropyByBaseWeights) {
    for (const bool tied : {true, false}) {
        const Decoder decoder = test::tiny_decoder(test::tiny_config(tied, 1), DType::f64);
        const Tensor ids = tiny_ids(2, 11), labels = tiny_ids(2, 11, 40, 6).reshaped({22});
        const auto loss = [&] {
            const Tensor rows = reshape(decoder.hidden(ids, {}), {22, decoder.config().hidden_size});
            return linear_cross_entropy(rows, decoder.lm_head(), labels);
        };
        backward(loss());
        const NoGrad no_grad;
        for (const NamedTensor& parameter : decoder.base_parameters()) {
            const std::vector<double> analytic = grad_of(parameter.tensor).to_vector<double>();
            auto* values = parameter.tensor.data<double>();
            for (size_t i = 0; i < analytic.size(); i += 1 + analytic.size() / 60) {
                const double kept = values[i], h = 1e-3;
                const auto at = [&](double shift) {
                    values[i] = kept + shift;
                    return loss().item();
                };
                const double numeric = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h);
                values[i] = kept;
                ASSERT_NEAR(analytic[i], numeric, 1e-7) << parameter.name << "[" << i << "], tied " << tied;
            }
        }
    }
}

}  // namespace
}  // namespace lc::models
