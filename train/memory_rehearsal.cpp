#include "train/memory_rehearsal.h"

#include <algorithm>

#include "core/cuda/runtime.h"

namespace lc::train::memory {

using models::AttentionKind;

namespace {

// Of a GPU that is not on this machine: an H100's.
int64_t multiprocessors_of(Device device) {
    const bool here = device.is_cuda() && device.index < cuda::device_count();
    return here ? cuda::device_info(device.index).multiprocessors : AttentionCall{}.multiprocessors;
}

// Where products of fp8 codes run as such (gemm_takes_codes), and gate and up as one (frozen_linear_gated).
bool is_hopper(Device device) {
    if (device.is_cpu()) return false;
    if (device.index >= cuda::device_count()) return true;
    const cuda::DeviceInfo info = cuda::device_info(device.index);
    return info.major == 9 && info.minor == 0;
}

}  // namespace

// --- parameters ---

Rehearsal::Rehearsal(const PlanInput& input, Ledger& ledger)
    : input_(input),
      dtype_(input.placement.dtype),
      device_(input.placement.device.type),
      multiprocessors_(multiprocessors_of(input.placement.device)),
      hopper_(dtype_ == DType::bf16 && is_hopper(input.placement.device)),
      ledger_(ledger),
      tape_(ledger) {
    const models::DecoderConfig& c = input.config;
    embedding_ = weight(c.vocab_size * c.hidden_size);
    for (int64_t i = 0; i < c.num_layers; ++i) layers_.push_back(layer(i));
    final_norm_ = norm_weights();
    lm_head_ = c.tie_embeddings ? embedding_ : weight(c.vocab_size * c.hidden_size);
    if (c.block.head_bias) head_bias_ = weight(c.vocab_size);
    const int64_t table = c.max_positions * c.rotary_dim() / 2;
    rope_cos_ = tape_.make(table, DType::f32, Owner::weights);
    rope_sin_ = tape_.make(table, DType::f32, Owner::weights);
}

Ghost Rehearsal::parameter(int64_t numel, DType dtype, Owner owner, bool trained) {
    Ghost ghost = tape_.make(numel, dtype, owner);
    if (trained) {
        tape_.require_gradient(ghost, DType::f32, Owner::gradients);
        parameter_gradients_.push_back(ghost.gradient);
        trained_sizes_.push_back(numel);
        trained_ += numel;
    }
    return ghost;
}

bool Rehearsal::converted(int64_t index) const {
    const models::AttentionSpec& spec = input_.attention;
    return input_.stage != PlanStage::pretrain && spec.kind != AttentionKind::softmax &&
           std::ranges::find(spec.softmax_layers, index) == spec.softmax_layers.end();
}

bool Rehearsal::has_lora(int64_t index, std::string_view target) const {
    if (input_.stage != PlanStage::finetune) return false;
    if (input_.attention.kind != AttentionKind::softmax && !converted(index)) return false;
    return std::ranges::find(input_.lora.targets, target) != input_.lora.targets.end();
}

// Of the base model.
Ghost Rehearsal::weight(int64_t numel) {
    const bool pretrain = input_.stage == PlanStage::pretrain;
    return parameter(numel, pretrain ? DType::f32 : dtype_, Owner::weights, pretrain);
}

Rehearsal::Norm Rehearsal::norm_weights() {
    const int64_t d = input_.config.hidden_size;
    Norm norm{.weight = weight(d)};
    if (input_.config.block.norm == io::NormKind::layer) norm.bias = weight(d);
    return norm;
}

Rehearsal::Projection Rehearsal::projection(int64_t in, int64_t out, bool bias, bool lora) {
    Projection p{.weight = weight(in * out), .in = in, .out = out};
    if (bias) p.bias = weight(out);
    if (has_codes())
        p.codes = tape_.make(in * out, DType::u8, Owner::weights),
        p.scale = tape_.make(out, DType::f32, Owner::weights);
    if (!lora) return p;
    p.rank = input_.lora.rank;
    p.lora_a = parameter(p.rank * in, DType::f32, Owner::trainables, true);
    p.lora_b = parameter(out * p.rank, DType::f32, Owner::trainables, true);
    return p;
}

Rehearsal::Layer Rehearsal::layer(int64_t index) {
    const models::DecoderConfig& c = input_.config;
    const io::BlockConfig& block = c.block;
    const int64_t d = c.hidden_size, inner = c.intermediate_size;
    const int64_t q = c.num_heads * c.head_dim, kv = c.num_kv_heads * c.head_dim;
    Layer layer{.input_norm = norm_weights(),
                .q = projection(d, q, block.qkv_bias, has_lora(index, "q_proj")),
                .k = projection(d, kv, block.qkv_bias, has_lora(index, "k_proj")),
                .v = projection(d, kv, block.qkv_bias, has_lora(index, "v_proj")),
                .o = projection(q, d, block.o_bias, has_lora(index, "o_proj")),
                .up = projection(d, inner, block.mlp_bias, false),
                .down = projection(inner, d, block.mlp_bias, false)};
    if (!block.parallel) layer.post_attention_norm = norm_weights();
    if (block.gated) layer.gate = projection(d, inner, block.mlp_bias, false);
    if (block.qk_norm) layer.q_norm = weight(c.head_dim), layer.k_norm = weight(c.head_dim);
    if (!converted(index)) return layer;
    const models::AttentionSpec& spec = input_.attention;
    const bool trained = input_.stage == PlanStage::transfer || input_.train_feature_maps;
    const int64_t f = spec.feature_dim_for(c.head_dim);
    const int64_t key_maps = spec.heads == models::FeatureHeads::kv ? c.num_kv_heads : c.num_heads;
    const int64_t bias = spec.bias == models::FeatureBias::none ? 0 : spec.bias == models::FeatureBias::vector ? f : 1;
    for (const int64_t heads : {c.num_heads, key_maps}) {
        layer.maps.push_back(parameter(heads * c.head_dim * f, DType::f32, Owner::trainables, trained));
        if (bias > 0) layer.maps.push_back(parameter(heads * bias, DType::f32, Owner::trainables, trained));
    }
    if (spec.kind == AttentionKind::hybrid)
        layer.maps.push_back(parameter(c.num_heads, DType::f32, Owner::trainables, trained));
    return layer;
}

// --- models/decoder/decoder.cpp ---

Ghost Rehearsal::embed(int64_t rows) {
    const Ghost h = embedding(rows);
    return input_.config.block.scaled_embedding ? scale(h) : h;
}

Ghost Rehearsal::norm(const Ghost& x, const Norm& norm) {
    return norm.bias.defined() ? layer_norm(x, norm) : rms_norm(x, norm.weight);
}

std::pair<Ghost, Ghost> Rehearsal::add_norm(const Ghost& x, const Ghost& residual, const Norm& norm) {
    if (!norm.bias.defined()) return add_rms_norm(x, residual, norm.weight);
    const Ghost sum = add(x, residual);
    return {this->norm(sum, norm), sum};
}

Rehearsal::Qkv Rehearsal::project_only(const Layer& layer, const Ghost& h) {
    const std::vector<const Projection*> projections{&layer.q, &layer.k, &layer.v};
    const std::vector<Ghost> y = multiplies_codes_ ? multiply_codes(projections, h, true, false)
                                                   : forward(projections, norm(h, layer.input_norm));
    const auto heads = [&](const Ghost& rows, const Ghost& head_norm) {
        return head_norm.defined() ? rms_norm(rows, head_norm) : rows;
    };
    return {heads(y[0], layer.q_norm), heads(y[1], layer.k_norm), heads(y[2], {})};
}

Rehearsal::Qkv Rehearsal::project(const Layer& layer, const Ghost& h) {
    const Qkv x = project_only(layer, h);
    return {rope(x.q), rope(x.k), x.v};
}

Ghost Rehearsal::attend(const Layer& layer, const Qkv& qkv, bool linearized) {
    return linearized && !layer.maps.empty() ? linearized_attention(layer, qkv) : softmax_attention(qkv);
}

// models/decoder/frozen_forward.cpp.
Ghost Rehearsal::finish_codes(const Layer& layer, const Ghost& h, const Ghost& y) {
    const Ghost sum = multiply_codes({&layer.o}, y, false, false)[0];
    const Ghost& x = input_.config.block.parallel ? h : sum;
    Ghost inner;
    if (!input_.config.block.gated) {
        inner = gelu(multiply_codes({&layer.up}, x, true, false)[0]);
    } else {
        const bool fused = input_.config.block.activation == io::Activation::silu;
        const std::vector<Ghost> sides = multiply_codes({&layer.gate, &layer.up}, x, true, fused);
        inner = fused ? sides[0] : gated(sides[0], sides[1]);
    }
    return multiply_codes({&layer.down}, inner, false, false)[0];
}

Ghost Rehearsal::finish(const Layer& layer, const Ghost& h, const Ghost& y) {
    if (multiplies_codes_) return finish_codes(layer, h, y);
    if (input_.config.block.parallel) {
        const Ghost sum = add(forward(layer.o, y), h);
        return linear(layer.down, mlp_inner(layer, norm(h, layer.input_norm)), sum);
    }
    const auto [x, sum] = add_norm(forward(layer.o, y), h, layer.post_attention_norm);
    return linear(layer.down, mlp_inner(layer, x), sum);
}

Ghost Rehearsal::mlp_inner(const Layer& layer, const Ghost& x) {
    if (fuses_gates_) return gated_product(layer, x);
    const Ghost up = linear(layer.up, x);
    if (!input_.config.block.gated) return gelu(up);
    const Ghost gate = linear(layer.gate, x);
    return gated(gate, up);
}

Ghost Rehearsal::block(const Layer& layer, const Ghost& h, bool linearized) {
    return finish(layer, h, attend(layer, project(layer, h), linearized));
}

Ghost Rehearsal::checkpoint(const Layer& layer, const Ghost& h, bool linearized) {
    if (!tape_.recording()) return block(layer, h, linearized);
    Ghost out;
    {
        const GhostTape::Recording off(tape_, false);
        out = block(layer, h, linearized);
    }
    const auto again = [this, &layer, h, linearized](GhostGradient& upstream) {
        Ghost input = h.detached(), output;
        if (h.gradient) tape_.require_gradient(input, input.dtype, Owner::transient);
        tape_.replay([&] { return output = block(layer, input, linearized); }, upstream);
        if (h.gradient) h.gradient->buffer = input.gradient->buffer;
    };
    tape_.run({.inputs = {h}, .saved = {h}, .outputs = {&out}, .replay = again});
    return out;
}

Ghost Rehearsal::hidden(int64_t batch, bool linearized, bool checkpoint_layers) {
    batch_ = batch, rows_ = batch * input_.seq_len;
    Ghost h = embed(rows_);
    for (const Layer& layer : layers_)
        h = checkpoint_layers ? checkpoint(layer, h, linearized) : block(layer, h, linearized);
    return norm(h, final_norm_);
}

// --- train/attention_transfer.cpp ---

void Rehearsal::student(const Layer& layer, const Qkv& x, bool train, int64_t converted, Ghost& losses) {
    const Ledger::Beside beside(ledger_, device_ == DeviceType::cuda);
    const GhostTape::Recording learning(tape_, train);
    Ghost loss = tape_.make(1, DType::f32);
    std::vector<Ghost> unit;  // the gradients that the forward makes
    for (const Ghost& map : layer.maps)
        if (train) unit.push_back(tape_.make(map.numel, DType::f32));
    AttentionCall call = call_of(x.q);
    call.dmaps = train;
    const auto workspace = attention_workspace(call, cuda_transfer_loss_workspace(call), is_fused_transfer_loss(call));
    tape_.run({.inputs = layer.maps, .saved = unit, .outputs = {&loss}, .forward = workspace});
    if (train) tape_.backward({loss});
    if (!losses.defined()) losses = tape_.make(converted, DType::f32);
}

void Rehearsal::walk(int64_t batch, bool train) {
    const GhostTape::Recording frozen(tape_, false);
    batch_ = batch, rows_ = batch * input_.seq_len, multiplies_codes_ = has_codes();
    const io::BlockConfig& block = input_.config.block;
    fuses_gates_ =
        device_ == DeviceType::cuda && dtype_ == DType::bf16 && block.gated && block.activation == io::Activation::silu;
    const auto is_converted = [](const Layer& layer) { return !layer.maps.empty(); };
    const int64_t converted = std::ranges::count_if(layers_, is_converted);
    int64_t left = converted;
    Ghost losses;
    Ghost h = embed(rows_);
    for (size_t l = 0; left > 0; ++l) {
        const Layer& layer = layers_[l];
        const Qkv qkv = project(layer, h);
        const Ghost target = attend(layer, qkv, false);
        if (is_converted(layer)) student(layer, qkv, train, converted, losses), --left;
        if (left > 0) h = finish(layer, h, target);
    }
    multiplies_codes_ = fuses_gates_ = false;
}

// --- train/next_token.cpp, train/evaluate.cpp ---

void Rehearsal::learn() {
    const bool linearized = input_.stage == PlanStage::finetune;
    const Ghost labels = tape_.make(input_.batch_size * input_.seq_len, DType::i32);
    const Ghost flat = hidden(input_.batch_size, linearized, input_.checkpoint_layers);
    std::vector<Ghost> roots;
    const int64_t parts = input_.unequal_labels ? input_.batch_size : 1;
    for (int64_t p = 0; p < parts; ++p) {
        Ghost piece = flat;
        piece.numel = flat.numel / parts;
        if (parts > 1)  // slice
            tape_.run({.inputs = {flat}, .outputs = {&piece}});
        roots.push_back(linear_cross_entropy(piece));
    }
    tape_.backward(roots);
}

void Rehearsal::chunk_losses(bool linearized) {
    const GhostTape::Recording evaluation(tape_, false);
    const Ghost rows = hidden(input_.eval_batch, linearized, false);
    const Ghost labels = tape_.make(rows_, DType::i32), nll = tape_.make(rows_, DType::f32);
    linear_cross_entropy(rows);
}

void Rehearsal::clear_gradients() {
    for (const auto& gradient : parameter_gradients_) gradient->buffer.reset();
}

void Rehearsal::begin_stage() {
    for (const int64_t numel : trained_sizes_) {
        for (int moment = 0; moment < 2; ++moment)
            optimizer_.push_back(ledger_.take(numel * size_of(DType::f32), Owner::moments));
        optimizer_.push_back(ledger_.take(numel * size_of(DType::f32), Owner::best));
    }
}

void Rehearsal::step() {
    // The second micro-batch finds the gradients of the first; further ones are like it.
    for (int64_t micro = 0; micro < std::min<int64_t>(2, input_.accumulate); ++micro) {
        if (input_.stage == PlanStage::transfer)
            walk(input_.batch_size, true);
        else
            learn();
    }
    clear_gradients();
}

void Rehearsal::evaluate() {
    if (input_.stage == PlanStage::transfer)
        walk(input_.eval_batch, false);
    else
        chunk_losses(input_.stage == PlanStage::finetune);
}

void Rehearsal::measure() {
    chunk_losses(false);
    chunk_losses(true);
}

}  // namespace lc::train::memory
