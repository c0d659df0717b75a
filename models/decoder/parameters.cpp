// The parameters of a decoder by group, with the names they have in files.
#include <set>

#include "models/decoder/decoder.h"
#include "models/decoder/parameter.h"

namespace lc::models {

std::vector<NamedTensor> Decoder::base_parameters() const {
    LC_CHECK(weight_code_ == WeightCode::none, "decoder: weights in {} are no base weights any more",
             kernels::name_of(weight_code_));
    Decoder handles = *this;  // the slots point to where weights may be put; these handles share the weights themselves
    std::vector<NamedTensor> parameters;
    for (const WeightSlot& slot : handles.weight_slots()) parameters.push_back({slot.name, *slot.tensor});
    return parameters;
}

std::vector<NamedTensor> Decoder::feature_map_parameters(int64_t index) const {
    const DecoderLayer& layer = checked_layer(index);
    if (!layer.linearized) return {};
    const std::string name = layer_name(index) + "self_attn.";
    std::vector<NamedTensor> parameters;
    const auto add = [&](const char* suffix, const Tensor& tensor) {
        if (tensor.defined()) parameters.push_back({name + suffix, tensor});
    };
    add("feature_map_q.mlp.layer", layer.maps.wq);
    add("feature_map_q.mlp.bias", layer.maps.bq);
    add("feature_map_k.mlp.layer", layer.maps.wk);
    add("feature_map_k.mlp.bias", layer.maps.bk);
    add("window_factors", layer.mix_logit);
    return parameters;
}

std::vector<NamedTensor> Decoder::feature_map_parameters() const {
    std::vector<NamedTensor> parameters;
    for (int64_t i = 0; i < num_layers(); ++i)
        for (NamedTensor& parameter : feature_map_parameters(i)) parameters.push_back(std::move(parameter));
    return parameters;
}

std::vector<NamedTensor> Decoder::lora_parameters() const {
    std::vector<NamedTensor> parameters;
    for (int64_t i = 0; i < num_layers(); ++i) {
        DecoderLayer layer = this->layer(i);
        for (const std::string_view name : kProjectionNames) {
            const Projection& projection = *find_projection(layer, name);
            if (!projection.lora_a.defined()) continue;
            const std::string prefix =
                fmt::format("base_model.model.{}self_attn.{}.", layer_name(i), file_name_of(config_, name));
            parameters.push_back({prefix + "lora_A.weight", projection.lora_a});
            parameters.push_back({prefix + "lora_B.weight", projection.lora_b});
        }
    }
    return parameters;
}

void Decoder::set_trainable(const std::vector<NamedTensor>& parameters) {
    std::set<const void*> own;
    for (const auto& group : {base_parameters(), feature_map_parameters(), lora_parameters()})
        for (NamedTensor parameter : group) {
            set_requires_grad(parameter.tensor, false);
            own.insert(parameter.tensor.autograd().get());
        }
    for (NamedTensor parameter : parameters) {
        LC_CHECK(own.contains(parameter.tensor.autograd().get()),
                 "set_trainable: '{}' is no parameter of this decoder (any more)", parameter.name);
        set_requires_grad(parameter.tensor, true);
    }
}

Projection* find_projection(DecoderLayer& layer, std::string_view name) {
    if (name == "q_proj") return &layer.q;
    if (name == "k_proj") return &layer.k;
    if (name == "v_proj") return &layer.v;
    if (name == "o_proj") return &layer.o;
    return nullptr;
}

std::string file_name_of(const DecoderConfig& config, std::string_view projection) {
    return config.block.phi_names && projection == "o_proj" ? "dense" : std::string(projection);
}

std::string projection_of(const DecoderConfig& config, std::string_view file_name) {
    return config.block.phi_names && file_name == "dense" ? "o_proj" : std::string(file_name);
}

}  // namespace lc::models
