// Where a decoder's weights come from: a Hugging Face directory, or random numbers.
#include <cmath>
#include <set>

#include "core/log.h"
#include "core/random_tensor.h"
#include "io/gguf.h"
#include "io/safetensors_model.h"
#include "io/weight_reader.h"
#include "models/decoder/decoder.h"
#include "models/decoder/parameter.h"
#include "models/decoder/rope_table.h"

namespace lc::models {
namespace {

void require_shape(const io::SafetensorsFile& file, const io::TensorInfo& info, const Shape& wanted) {
    const bool same = static_cast<int>(info.shape.size()) == wanted.rank() &&
                      std::equal(info.shape.begin(), info.shape.end(), wanted.begin());
    LC_REQUIRE(BadInput, same, "{}: tensor '{}' must be {} by config.json, got {}", file.path().string(), info.name,
               wanted, fmt::format("[{}]", fmt::join(info.shape, ",")));
    LC_REQUIRE(BadInput, is_floating(io::tensor_dtype(info, file.path().string())),
               "{}: tensor '{}' must hold floating-point numbers, got {}", file.path().string(), info.name, info.dtype);
}

// A tensor that is no part of the architecture means another model (a bias, a norm on q and k, more layers): computing
// without it would give wrong results. Old files carry the rotary frequencies, tied ones a copy of the embedding.
void refuse_strangers(const io::SafetensorsModel& model, const std::set<std::string>& known, bool tied) {
    for (const std::string& name : model.names()) {
        if (known.contains(name) || name.ends_with(".rotary_emb.inv_freq") || (tied && name == "lm_head.weight"))
            continue;
        fail(ErrorKind::BadInput, "{}: tensor '{}' is no part of the model that config.json describes",
             model.file_of(name).path().string(), name);
    }
}

// Whoever waits for gigabytes is told; programs stay silent about small models.
void log_read(const std::filesystem::path& directory, const io::ReadReport& report) {
    const double gigabytes = static_cast<double>(report.bytes) * 1e-9;
    log_line(gigabytes >= 1 ? LogLevel::Info : LogLevel::Debug,
             fmt::format("{}: read {:.3f} GB of weights in {:.2f} s, {:.1f} GB/s", directory.string(), gigabytes,
                         report.seconds, report.gigabytes_per_second()));
}

}  // namespace

Decoder::Decoder(const DecoderConfig& config, LayerRange layers, const Placement& placement)
    : config_(config), placement_(placement) {
    validate(config);
    validate(placement);
    const int64_t end = layers.end < 0 ? config.num_layers : layers.end;
    LC_REQUIRE(Usage, layers.begin >= 0 && layers.begin < end && end <= config.num_layers,
               "layers {}..{} do not exist: the model has {}", layers.begin, end, config.num_layers);
    first_layer_ = layers.begin;
    layers_.resize(static_cast<size_t>(end - layers.begin));
}

void Decoder::make_rope_table() {
    const RopeTable table = rope_table(config_.rope, config_.head_dim, config_.max_positions, placement_.wide());
    rope_cos_ = table.cos.to(device()), rope_sin_ = table.sin.to(device());
}

std::vector<Decoder::WeightSlot> Decoder::weight_slots() {
    const int64_t d = config_.hidden_size, inner = config_.intermediate_size;
    const int64_t q = config_.num_heads * config_.head_dim, kv = config_.num_kv_heads * config_.head_dim;
    const bool last = first_layer_ + num_layers() == config_.num_layers;
    std::vector<WeightSlot> slots;
    if (first_layer_ == 0 || (last && config_.tie_embeddings))
        slots.push_back({"model.embed_tokens.weight", &embedding_, {config_.vocab_size, d}});
    for (int64_t i = 0; i < num_layers(); ++i) {
        DecoderLayer& layer = this->layer(i);
        const std::string name = layer_name(i);
        slots.push_back({name + "input_layernorm.weight", &layer.input_norm, {d}});
        slots.push_back({name + "self_attn.q_proj.weight", &layer.q.weight, {q, d}});
        slots.push_back({name + "self_attn.k_proj.weight", &layer.k.weight, {kv, d}});
        slots.push_back({name + "self_attn.v_proj.weight", &layer.v.weight, {kv, d}});
        slots.push_back({name + "self_attn.o_proj.weight", &layer.o.weight, {d, q}});
        slots.push_back({name + "post_attention_layernorm.weight", &layer.post_attention_norm, {d}});
        slots.push_back({name + "mlp.gate_proj.weight", &layer.gate, {inner, d}});
        slots.push_back({name + "mlp.up_proj.weight", &layer.up, {inner, d}});
        slots.push_back({name + "mlp.down_proj.weight", &layer.down, {d, inner}});
    }
    if (last) slots.push_back({"model.norm.weight", &final_norm_, {d}});
    if (last && !config_.tie_embeddings) slots.push_back({"lm_head.weight", &lm_head_, {config_.vocab_size, d}});
    return slots;
}

Decoder Decoder::load(const std::filesystem::path& directory, const LoadOptions& options) {
    if (io::is_gguf(directory))
        return load_gguf(io::GgufFile(directory, {.follow_symlinks = options.follow_symlinks}), options);
    const DecoderConfig config = decoder_config_from(io::load_hf_config(directory));
    return load(io::SafetensorsModel(directory, {.follow_symlinks = options.follow_symlinks}), config, options);
}

std::vector<Decoder::WeightShape> Decoder::base_weights(const DecoderConfig& config) {
    std::vector<WeightShape> weights;
    for (const WeightSlot& slot : Decoder(config, {}, {}).weight_slots()) weights.push_back({slot.name, slot.shape});
    return weights;
}

Decoder Decoder::load(const io::SafetensorsModel& files, const DecoderConfig& config, const LoadOptions& options) {
    Decoder decoder(config, options.layers, options.placement);
    // All names and shapes first: a wrong model is refused before gigabytes are read.
    std::set<std::string> known;
    for (const auto& [name, shape] : base_weights(config)) {
        known.insert(name);
        require_shape(files.file_of(name), files.info(name), shape);
    }
    refuse_strangers(files, known, config.tie_embeddings);
    decoder.make_rope_table();
    std::vector<io::WeightRequest> requests;
    for (const WeightSlot& slot : decoder.weight_slots()) {
        *slot.tensor = frozen(Tensor::empty(slot.shape, decoder.dtype(), decoder.device()));
        requests.push_back({slot.name, *slot.tensor});
    }
    log_read(files.directory(), io::read_weights(files, requests));
    return decoder;
}

Decoder Decoder::unfilled(DecoderConfig config, LayerRange layers) {
    config.max_positions = 1;
    Decoder decoder(config, layers, {});
    for (const WeightSlot& slot : decoder.weight_slots())
        *slot.tensor = frozen(Tensor::empty(slot.shape, decoder.dtype()));
    return decoder;
}

Decoder Decoder::random(const DecoderConfig& config, uint64_t seed, const Placement& placement, Weights weights) {
    Decoder decoder(config, {}, placement);
    decoder.make_rope_table();
    const bool train = weights == Weights::Trainable;
    const DType dtype = train ? placement.wide() : placement.dtype;
    uint64_t stream = 0;
    for (const WeightSlot& slot : decoder.weight_slots()) {
        const bool residual = slot.name.ends_with("o_proj.weight") || slot.name.ends_with("down_proj.weight");
        const double deviation = residual ? 0.02 / std::sqrt(2.0 * static_cast<double>(config.num_layers)) : 0.02;
        Tensor weight = slot.shape.rank() == 1
                            ? Tensor::full(slot.shape, 1, dtype, placement.device)
                            : normal_tensor(slot.shape, deviation, Random(seed, stream), dtype, placement.device);
        *slot.tensor = train ? trainable(std::move(weight)) : frozen(std::move(weight));
        ++stream;
    }
    return decoder;
}

}  // namespace lc::models
