// Weights out of a GGUF file, dequantized while they are read.
#include <set>

#include "io/gguf.h"
#include "io/gguf_config.h"
#include "models/decoder/decoder.h"
#include "models/decoder/parameter.h"

namespace lc::models {
namespace {

// "model.layers.3.mlp.up_proj.weight" -> "blk.3.ffn_up.weight"
std::string gguf_name_of(const std::string& name) {
    constexpr std::pair<std::string_view, std::string_view> kWhole[] = {
        {"model.embed_tokens.weight", "token_embd.weight"},
        {"model.norm.weight", "output_norm.weight"},
        {"lm_head.weight", "output.weight"}};
    for (const auto& [ours, theirs] : kWhole)
        if (name == ours) return std::string(theirs);
    constexpr std::pair<std::string_view, std::string_view> kOfLayer[] = {
        {"input_layernorm", "attn_norm"}, {"self_attn.q_proj", "attn_q"},      {"self_attn.k_proj", "attn_k"},
        {"self_attn.v_proj", "attn_v"},   {"self_attn.o_proj", "attn_output"}, {"post_attention_layernorm", "ffn_norm"},
        {"mlp.gate_proj", "ffn_gate"},    {"mlp.up_proj", "ffn_up"},           {"mlp.down_proj", "ffn_down"}};
    constexpr std::string_view kPrefix = "model.layers.";
    const size_t dot = name.find('.', kPrefix.size());
    const std::string_view layer = std::string_view(name).substr(kPrefix.size(), dot - kPrefix.size());
    for (const auto& [ours, theirs] : kOfLayer)
        if (std::string_view(name).substr(dot + 1) == std::string(ours) + ".weight")
            return fmt::format("blk.{}.{}.weight", layer, theirs);
    fail(ErrorKind::Internal, "tensor '{}' has no name in GGUF files", name);
}

// llama.cpp turns neighbouring pairs of a head, Hugging Face those half a head apart; the converter reorders the rows of
// q and k for the former. Rows of a head back from a0 b0 a1 b1 ... to a0 a1 ... b0 b1 ...
Tensor halves_of_pairs(const Tensor& weight, int64_t heads) {
    const int64_t half = weight.size(0) / heads / 2, in = weight.size(1);
    return weight.reshaped({heads, half, 2, in}).permuted({0, 2, 1, 3}).contiguous().reshaped(weight.shape());
}

}  // namespace

Decoder Decoder::load_gguf(const io::GgufFile& file, const LoadOptions& options) {
    const std::string source = file.path().string();
    const DecoderConfig config = decoder_config_from(io::hf_config_of(file));
    Decoder decoder(config, options.layers, options.placement);
    std::set<std::string> known{"rope_freqs.weight"};
    for (const auto& [name, shape] : base_weights(config)) {
        const std::string theirs = gguf_name_of(name);
        known.insert(theirs);
        const io::GgufTensor* tensor = file.find(theirs);
        LC_REQUIRE(BadInput, tensor != nullptr, "{}: tensor '{}' is missing", source, theirs);
        LC_REQUIRE(BadInput, Shape(std::span(tensor->shape)) == shape,
                   "{}: tensor '{}' must be {} by its metadata, got [{}]", source, theirs, shape,
                   fmt::join(tensor->shape, ","));
    }
    for (const io::GgufTensor& tensor : file.tensors())
        LC_REQUIRE(BadInput, known.contains(tensor.name),
                   "{}: tensor '{}' is no part of the model that its metadata describe", source, tensor.name);
    decoder.make_rope_table();
    decoder.weight_code_ = options.weight_code;
    decoder.read_slots([&](std::span<const WeightSlot> slots) {
        decoder.make_room(slots);
        for (const WeightSlot& slot : slots) {
            Tensor weight = file.read(*file.find(gguf_name_of(slot.name)));
            if (slot.name.ends_with("q_proj.weight")) weight = halves_of_pairs(weight, config.num_heads);
            if (slot.name.ends_with("k_proj.weight")) weight = halves_of_pairs(weight, config.num_kv_heads);
            slot.tensor->copy_from(weight);
        }
    });
    return decoder;
}

}  // namespace lc::models
