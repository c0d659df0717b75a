// Where a decoder's weights come from: a Hugging Face directory, or random numbers.
#include <algorithm>
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

// A tensor that is no part of the architecture means another model (a bias, a norm, more layers than it says): computing
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
    const RopeTable table = rope_table(config_.rope, config_.rotary_dim(), config_.max_positions, placement_.wide());
    rope_cos_ = table.cos.to(device()), rope_sin_ = table.sin.to(device());
}

void Decoder::add_layer_slots(int64_t index, std::vector<WeightSlot>& slots) {
    const io::BlockConfig& block = config_.block;
    const int64_t d = config_.hidden_size, inner = config_.intermediate_size, head = config_.head_dim;
    const int64_t q = config_.num_heads * head, kv = config_.num_kv_heads * head;
    DecoderLayer& layer = this->layer(index);
    const std::string name = layer_name(index), attention = name + "self_attn.", mlp = name + "mlp.";
    const auto matrix = [&](const std::string& what, Tensor& weight, Shape shape, Role role, Tensor* bias) {
        slots.push_back({what + ".weight", &weight, shape, role});
        if (bias) slots.push_back({what + ".bias", bias, {shape[0]}, Role::bias});
    };
    const auto projection = [&](const char* what, Projection& p, Shape shape, Role role, bool bias) {
        matrix(attention + file_name_of(config_, what), p.weight, shape, role, bias ? &p.bias : nullptr);
    };
    add_norm_slots(name + "input_layernorm", layer.input_norm, slots);
    projection("q_proj", layer.q, {q, d}, Role::matrix, block.qkv_bias);
    projection("k_proj", layer.k, {kv, d}, Role::matrix, block.qkv_bias);
    projection("v_proj", layer.v, {kv, d}, Role::matrix, block.qkv_bias);
    if (block.qk_norm) slots.push_back({attention + "q_norm.weight", &layer.q_norm, {head}, Role::norm});
    if (block.qk_norm) slots.push_back({attention + "k_norm.weight", &layer.k_norm, {head}, Role::norm});
    projection("o_proj", layer.o, {d, q}, Role::residual, block.o_bias);
    if (!block.parallel) add_norm_slots(name + "post_attention_layernorm", layer.post_attention_norm, slots);
    const bool bias = block.mlp_bias;
    if (block.gated) matrix(mlp + "gate_proj", layer.gate, {inner, d}, Role::matrix, bias ? &layer.gate_bias : nullptr);
    matrix(mlp + (block.phi_names ? "fc1" : "up_proj"), layer.up, {inner, d}, Role::matrix,
           bias ? &layer.up_bias : nullptr);
    matrix(mlp + (block.phi_names ? "fc2" : "down_proj"), layer.down, {d, inner}, Role::residual,
           bias ? &layer.down_bias : nullptr);
}

void Decoder::add_norm_slots(const std::string& name, Norm& norm, std::vector<WeightSlot>& slots) const {
    const Shape shape{config_.hidden_size};
    slots.push_back({name + ".weight", &norm.weight, shape, Role::norm});
    if (config_.block.norm == io::NormKind::layer) slots.push_back({name + ".bias", &norm.bias, shape, Role::bias});
}

std::vector<Decoder::WeightSlot> Decoder::weight_slots() {
    const Shape table{config_.vocab_size, config_.hidden_size};
    const bool last = first_layer_ + num_layers() == config_.num_layers;
    std::vector<WeightSlot> slots;
    if (first_layer_ == 0 || (last && config_.tie_embeddings))
        slots.push_back({"model.embed_tokens.weight", &embedding_, table});
    for (int64_t i = 0; i < num_layers(); ++i) add_layer_slots(i, slots);
    if (!last) return slots;
    add_norm_slots(config_.block.phi_names ? "model.final_layernorm" : "model.norm", final_norm_, slots);
    if (!config_.tie_embeddings) slots.push_back({"lm_head.weight", &lm_head_, table});
    if (config_.block.head_bias) slots.push_back({"lm_head.bias", &head_bias_, {config_.vocab_size}, Role::bias});
    return slots;
}

int64_t DecoderConfig::num_parameters() const {
    int64_t count = 0;
    for (const Decoder::WeightShape& weight : Decoder::base_weights(*this)) count += numel_of(weight.shape);
    return count;
}

Decoder Decoder::load(const std::filesystem::path& directory, const LoadOptions& options) {
    if (io::is_gguf(directory))
        return load_gguf(io::GgufFile(directory, {.follow_symlinks = options.follow_symlinks}), options);
    DecoderConfig config = decoder_config_from(io::load_hf_config(directory));
    config.ignore_sliding_window = options.ignore_sliding_window;
    return load(io::SafetensorsModel(directory, {.follow_symlinks = options.follow_symlinks}), config, options);
}

std::vector<Decoder::WeightShape> Decoder::base_weights(const DecoderConfig& config) {
    std::vector<WeightShape> weights;
    for (const WeightSlot& slot : Decoder(config, {}, {}).weight_slots()) weights.push_back({slot.name, slot.shape});
    return weights;
}

Decoder Decoder::load(const io::SafetensorsModel& files, const DecoderConfig& config, const LoadOptions& options) {
    Decoder decoder(config, options.layers, options.placement);
    decoder.weight_code_ = options.weight_code;
    // All names and shapes first: a wrong model is refused before gigabytes are read.
    std::set<std::string> known;
    for (const auto& [name, shape] : base_weights(config)) {
        known.insert(name);
        require_shape(files.file_of(name), files.info(name), shape);
    }
    refuse_strangers(files, known, config.tie_embeddings);
    decoder.make_rope_table();
    io::ReadReport total;
    decoder.read_slots([&](std::span<const WeightSlot> slots) {
        decoder.make_room(slots);
        std::vector<io::WeightRequest> requests;
        for (const WeightSlot& slot : slots) requests.push_back({slot.name, *slot.tensor});
        const io::ReadReport report = io::read_weights(files, requests);
        total.bytes += report.bytes, total.seconds += report.seconds;
    });
    log_read(files.directory(), total);
    return decoder;
}

void Decoder::make_room(std::span<const WeightSlot> slots) {
    for (const WeightSlot& slot : slots) {
        const auto layer = std::find_if(layers_.begin(), layers_.end(), [&](const DecoderLayer& l) {
            return slot.tensor == &l.q.weight || slot.tensor == &l.k.weight || slot.tensor == &l.v.weight;
        });
        if (layer == layers_.end()) {
            *slot.tensor = frozen(Tensor::empty(slot.shape, dtype(), device()));
            continue;
        }
        if (slot.tensor->defined()) continue;  // made with the first of the three
        const int64_t d = config_.head_dim, kv = config_.num_kv_heads * d;
        const int64_t rows[] = {config_.num_heads * d, kv, kv};
        const Tensor all = Tensor::empty({rows[0] + 2 * kv, config_.hidden_size}, dtype(), device());
        int64_t first = 0;
        for (int i = 0; i < 3; first += rows[i++])
            (i == 0 ? layer->q : i == 1 ? layer->k : layer->v).weight = frozen(all.sliced(0, first, rows[i]));
    }
}

void Decoder::read_slots(const std::function<void(std::span<const WeightSlot>)>& read) {
    const std::vector<WeightSlot> slots = weight_slots();
    const std::span<const WeightSlot> all(slots);
    if (weight_code_ == WeightCode::none) return read(all);
    size_t begin = 0;
    for (int64_t i = 0; i < num_layers();
         ++i) {  // what comes before the first layer is read with it, what comes after the last too
        const auto own = [&](const WeightSlot& slot) { return slot.name.starts_with(layer_name(i)); };
        const auto behind = std::find_if(slots.rbegin(), slots.rend(), own).base() - slots.begin();
        const size_t end = i + 1 == num_layers() ? slots.size() : static_cast<size_t>(behind);
        read(all.subspan(begin, end - begin));
        encode_mlp(layer(i));
        begin = end;
    }
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
        const bool vector = slot.role == Role::norm || slot.role == Role::bias;
        const double constant = slot.role == Role::norm ? 1 - config.block.norm_offset : 0;
        const double deviation =
            slot.role == Role::residual ? 0.02 / std::sqrt(2.0 * static_cast<double>(config.num_layers)) : 0.02;
        Tensor weight = vector ? Tensor::full(slot.shape, constant, dtype, placement.device)
                               : normal_tensor(slot.shape, deviation, Random(seed, stream), dtype, placement.device);
        ++stream;
        if (train) {
            *slot.tensor = trainable(std::move(weight));
        } else {
            decoder.make_room(std::span(&slot, 1));
            slot.tensor->copy_from(weight);
        }
    }
    return decoder;
}

}  // namespace lc::models
