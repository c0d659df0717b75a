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

}  // namespace

// --- parameters ---

Rehearsal::Rehearsal(const PlanInput& input, Ledger& ledger)
    : input_(input),
      dtype_(input.placement.dtype),
      device_(input.placement.device.type),
      multiprocessors_(multiprocessors_of(input.placement.device)),
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

// --- autograd/ops ---

// Workspace of the products of a linear layer, and what it rounds of f32 parameters to the activations' dtype.
Buffers Rehearsal::products(int64_t in, int64_t out, int64_t rounded_weight) const {
    Buffers buffers = product_workspace({rows_, std::max(in, out), std::max(in, out)}, device_);
    if (dtype_ != DType::f32) buffers.push_back(size_of(dtype_) * rounded_weight);
    return buffers;
}

Ghost Rehearsal::embedding(int64_t rows) {
    Ghost out = tape_.make(rows * input_.config.hidden_size, dtype_);
    tape_.run(
        {.inputs = {embedding_},
         .outputs = {&out},
         .backward = {{Owner::transient, embedding_backward_workspace(input_.config.vocab_size, rows, device_)}}});
    return out;
}

Ghost Rehearsal::rms_norm(const Ghost& x, const Ghost& weight) {
    const int64_t rows = x.numel / weight.numel;
    const Ghost rstd = tape_.make(rows, DType::f32);
    Ghost y = tape_.make(x.numel, x.dtype);
    const Buffers dweight = weight.gradient ? norm_weight_workspace(rows, weight.numel, device_) : Buffers{};
    tape_.run({.inputs = {x, weight}, .saved = {x, rstd}, .outputs = {&y}, .backward = {{Owner::transient, dweight}}});
    return y;
}

std::pair<Ghost, Ghost> Rehearsal::add_rms_norm(const Ghost& x, const Ghost& residual, const Ghost& weight) {
    const Ghost rstd = tape_.make(rows_, DType::f32);
    Ghost y = tape_.make(x.numel, x.dtype), sum = tape_.make(x.numel, x.dtype);
    const Buffers dweight = weight.gradient ? norm_weight_workspace(rows_, weight.numel, device_) : Buffers{};
    tape_.run({.inputs = {x, residual, weight},
               .saved = {sum, rstd},
               .outputs = {&y, &sum},
               .backward = {{Owner::transient, dweight}}});
    return {y, sum};
}

Ghost Rehearsal::layer_norm(const Ghost& x, const Norm& norm) {
    const Ghost mean = tape_.make(rows_, DType::f32), rstd = tape_.make(rows_, DType::f32);
    Ghost y = tape_.make(x.numel, x.dtype);
    const Buffers dweight = norm.weight.gradient ? norm_weight_workspace(rows_, norm.weight.numel, device_) : Buffers{};
    tape_.run({.inputs = {x, norm.weight, norm.bias},
               .saved = {x, mean, rstd},
               .outputs = {&y},
               .backward = {{Owner::transient, dweight}}});
    return y;
}

Ghost Rehearsal::add(const Ghost& a, const Ghost& b) {
    Ghost c = tape_.make(a.numel, a.dtype);
    tape_.run({.inputs = {a, b}, .outputs = {&c}, .passes = true});
    return c;
}

Ghost Rehearsal::scale(const Ghost& x) {
    Ghost y = tape_.make(x.numel, x.dtype);
    tape_.run({.inputs = {x}, .outputs = {&y}});
    return y;
}

Ghost Rehearsal::linear(const Projection& p, const Ghost& x, const Ghost& residual) {
    Ghost y = tape_.make(rows_ * p.out, x.dtype);
    const Workspace work{Owner::products, products(p.in, p.out, p.weight.dtype == x.dtype ? 0 : p.weight.numel)};
    const Workspace dbias{Owner::transient, p.bias.gradient ? column_sum_workspace(rows_, p.out, device_) : Buffers{}};
    tape_.run({.inputs = {x, p.weight, p.bias, residual},
               .saved = p.weight.gradient ? std::vector<Ghost>{x} : std::vector<Ghost>{},
               .outputs = {&y},
               .forward = {work},
               .backward = {work, dbias},
               .passes = residual.gradient != nullptr});
    return y;
}

Ghost Rehearsal::lora_linear(const Projection& p, const Ghost& x) {
    Ghost y = tape_.make(rows_ * p.out, x.dtype);
    const Ghost low = tape_.make(rows_ * p.rank, x.dtype);
    const Workspace forward{Owner::products, products(p.in, p.out, p.rank * (p.in + p.out))};
    Workspace backward{Owner::products, products(p.in, p.out, p.rank * std::max(p.in, p.out))};
    backward.buffers.push_back(low.bytes());
    tape_.run({.inputs = {x, p.lora_a, p.lora_b},
               .saved = {x, low},
               .outputs = {&y},
               .forward = {forward},
               .backward = {backward}});
    return y;
}

Ghost Rehearsal::forward(const Projection& p, const Ghost& x) {
    return p.lora_a.defined() ? lora_linear(p, x) : linear(p, x);
}

Ghost Rehearsal::rope(const Ghost& x) {
    Ghost y = tape_.make(x.numel, x.dtype);
    tape_.run({.inputs = {x}, .outputs = {&y}});
    return y;
}

Ghost Rehearsal::gated(const Ghost& gate, const Ghost& up) {
    Ghost y = tape_.make(gate.numel, gate.dtype);
    tape_.run({.inputs = {gate, up}, .saved = {gate, up}, .outputs = {&y}});
    return y;
}

Ghost Rehearsal::gelu(const Ghost& x) {
    Ghost y = tape_.make(x.numel, x.dtype);
    tape_.run({.inputs = {x}, .saved = {x}, .outputs = {&y}});
    return y;
}

Ghost Rehearsal::softmax_attention(const Qkv& x) {
    Ghost y = tape_.make(x.q.numel, x.q.dtype);
    const int64_t lse_rows = rows_ * input_.config.num_heads;
    const bool taped = tape_.should_record({x.q, x.k, x.v});
    const Ghost lse = taped ? tape_.make(lse_rows, DType::f32) : Ghost{};
    tape_.run({.inputs = {x.q, x.k, x.v},
               .saved = {x.q, x.k, x.v, y, lse},
               .outputs = {&y},
               .backward = {{Owner::attention, softmax_backward_workspace(lse_rows, device_)}}});
    return y;
}

AttentionCall Rehearsal::call_of(const Ghost& q) const {
    const models::DecoderConfig& c = input_.config;
    const models::AttentionSpec& spec = input_.attention;
    const int64_t f = spec.feature_dim_for(c.head_dim);
    return {.batch = batch_,
            .heads = c.num_heads,
            .kv_heads = c.num_kv_heads,
            .length = rows_ / batch_,
            .head_dim = c.head_dim,
            .key_maps = spec.heads == models::FeatureHeads::kv ? c.num_kv_heads : c.num_heads,
            .features = f,
            .spec = spec.kernel_spec(),
            .dtype = q.dtype,
            .bias_width = spec.bias == models::FeatureBias::none     ? 0
                          : spec.bias == models::FeatureBias::vector ? f
                                                                     : 1,
            .multiprocessors = multiprocessors_};
}

std::vector<Workspace> Rehearsal::attention_workspace(const AttentionCall& call, const Buffers& cuda,
                                                      bool fused) const {
    const int64_t block = std::min<int64_t>(call.length, 64);
    const Workspace gemm{Owner::products, product_workspace({block, 2 * block, call.head_dim, true}, device_)};
    if (device_ == DeviceType::cpu) return {gemm};
    const Workspace attention{Owner::attention, cuda};
    return fused ? std::vector<Workspace>{attention} : std::vector<Workspace>{attention, gemm};
}

Ghost Rehearsal::linearized_attention(const Layer& layer, const Qkv& x) {
    Ghost y = tape_.make(x.q.numel, x.q.dtype);
    AttentionCall call = call_of(x.q);
    const auto workspace = [&] {
        return attention_workspace(call, cuda_linearized_attention_workspace(call), is_fused(call));
    };
    const auto forward = workspace();
    call.dq = x.q.gradient != nullptr, call.dk = x.k.gradient != nullptr, call.dv = x.v.gradient != nullptr;
    call.dmaps = layer.maps[0].gradient != nullptr;
    std::vector<Ghost> inputs{x.q, x.k, x.v};
    inputs.insert(inputs.end(), layer.maps.begin(), layer.maps.end());
    tape_.run(
        {.inputs = inputs, .saved = {x.q, x.k, x.v, y}, .outputs = {&y}, .forward = forward, .backward = workspace()});
    return y;
}

Ghost Rehearsal::linear_cross_entropy(const Ghost& hidden) {
    Ghost loss = tape_.make(1, DType::f32);
    const auto unit = [&](const Ghost& input, DType dtype) {
        return tape_.recording() && input.gradient ? tape_.make(input.numel, dtype, Owner::loss) : Ghost{};
    };
    const Ghost dhidden = unit(hidden, hidden.dtype), dweight = unit(lm_head_, DType::f32);
    const Ghost dbias = unit(head_bias_, DType::f32);
    const int64_t rows = hidden.numel / input_.config.hidden_size;
    const LossCall call{.rows = rows,
                        .labelled = rows - rows / input_.seq_len,
                        .vocabulary = input_.config.vocab_size,
                        .hidden = input_.config.hidden_size,
                        .dtype = hidden.dtype,
                        .weight_dtype = lm_head_.dtype};
    tape_.run({.inputs = {hidden, lm_head_, head_bias_},
               .saved = {dhidden, dweight, dbias},
               .outputs = {&loss},
               .forward = {{Owner::loss, loss_workspace(call, device_)},
                           {Owner::products, product_workspace({1024, call.vocabulary, call.hidden}, device_)}}});
    return loss;
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
    const Ghost x = norm(h, layer.input_norm);
    const auto heads = [&](const Projection& projection, const Ghost& head_norm) {
        Ghost rows = forward(projection, x);
        if (head_norm.defined()) rows = rms_norm(rows, head_norm);
        return rows;
    };
    return {heads(layer.q, layer.q_norm), heads(layer.k, layer.k_norm), heads(layer.v, {})};
}

Rehearsal::Qkv Rehearsal::project(const Layer& layer, const Ghost& h) {
    const Qkv x = project_only(layer, h);
    return {rope(x.q), rope(x.k), x.v};
}

Ghost Rehearsal::attend(const Layer& layer, const Qkv& qkv, bool linearized) {
    return linearized && !layer.maps.empty() ? linearized_attention(layer, qkv) : softmax_attention(qkv);
}

Ghost Rehearsal::finish(const Layer& layer, const Ghost& h, const Ghost& y) {
    if (input_.config.block.parallel) {
        const Ghost sum = add(forward(layer.o, y), h);
        return linear(layer.down, mlp_inner(layer, norm(h, layer.input_norm)), sum);
    }
    const auto [x, sum] = add_norm(forward(layer.o, y), h, layer.post_attention_norm);
    return linear(layer.down, mlp_inner(layer, x), sum);
}

Ghost Rehearsal::mlp_inner(const Layer& layer, const Ghost& x) {
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

void Rehearsal::transfer_loss(const Layer& layer, const Qkv& x, bool train) {
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
}

void Rehearsal::walk(int64_t batch, bool train) {
    const GhostTape::Recording frozen(tape_, false);
    batch_ = batch, rows_ = batch * input_.seq_len;
    const auto is_converted = [](const Layer& layer) { return !layer.maps.empty(); };
    auto left = std::ranges::count_if(layers_, is_converted);
    Ghost h = embed(rows_);
    for (size_t l = 0; left > 0; ++l) {
        const Layer& layer = layers_[l];
        const Qkv qkv = project(layer, h);
        const Ghost target = attend(layer, qkv, false);
        if (is_converted(layer)) transfer_loss(layer, qkv, train), --left;
        if (left > 0) h = finish(layer, h, target);
    }
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
