// autograd/ops over ghosts: what each op allocates and its node keeps.
#include <algorithm>

#include "core/parallel.h"
#include "kernels/frozen_linear/frozen_linear.h"
#include "kernels/lora_linear/lora_linear.h"
#include "train/memory_rehearsal.h"

namespace lc::train::memory {

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
               .backward = {{Owner::transient, dweight}},
               .twins = true});
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

// Layers of one input: kernels/lora_linear.
std::vector<Ghost> Rehearsal::lora_linear(const std::vector<const Projection*>& projections, const Ghost& x) {
    LoraCall call{.rows = rows_,
                  .in = projections[0]->in,
                  .rank = projections[0]->rank,
                  .outs = {},
                  .dtype = x.dtype,
                  .dx = x.gradient != nullptr,
                  .multiprocessors = multiprocessors_};
    std::vector<Ghost> y, inputs{x};
    for (const Projection* p : projections) {
        y.push_back(tape_.make(rows_ * p->out, x.dtype));
        call.outs.push_back(p->out);
        inputs.insert(inputs.end(), {p->lora_a, p->lora_b});
    }
    const int64_t width = static_cast<int64_t>(projections.size()) * kernels::lora_columns(call.rank);
    const Ghost low = tape_.make(rows_ * width, x.dtype);
    const int64_t out = *std::max_element(call.outs.begin(), call.outs.end());
    const Workspace product{Owner::products, products(call.in, out, 0), true};
    const Workspace gradients{Owner::products, lora_gradients_workspace(call, device_), true};
    const Buffers forward = lora_factors_workspace(call, device_);
    Buffers backward = forward;
    backward.push_back(device_ == DeviceType::cpu ? rows_ * call.rank * size_of(x.dtype) : low.bytes());  // q
    std::vector<Ghost*> outputs;
    for (Ghost& i : y) outputs.push_back(&i);
    tape_.run({.inputs = inputs,
               .saved = {x, low},
               .outputs = outputs,
               .forward = {{Owner::products, forward}, product},
               .backward = {{Owner::products, backward}, product, gradients}});
    return y;
}

Ghost Rehearsal::forward(const Projection& p, const Ghost& x) {
    return p.lora_a.defined() ? lora_linear({&p}, x)[0] : linear(p, x);
}

// project_together in models/decoder/decoder.cpp.
std::vector<Ghost> Rehearsal::forward(const std::vector<const Projection*>& projections, const Ghost& x) {
    std::vector<const Projection*> adapted;
    for (const Projection* p : projections)
        if (p->lora_a.defined()) adapted.push_back(p);
    const std::vector<Ghost> with_lora = adapted.empty() ? std::vector<Ghost>() : lora_linear(adapted, x);
    std::vector<Ghost> y;
    size_t next = 0;
    for (const Projection* p : projections) y.push_back(p->lora_a.defined() ? with_lora[next++] : linear(*p, x));
    return y;
}

// kernels/frozen_linear with coded rows: the norm, codes of its rows and, gated, both products are workspace; so is what
// codes stand for, where a device cannot multiply them.
std::vector<Ghost> Rehearsal::multiply_codes(const std::vector<const Projection*>& projections, const Ghost& x,
                                             bool norm, bool gated) {
    std::vector<Ghost> y;
    for (const Projection* p : projections)
        if (y.empty() || !gated) y.push_back(tape_.make(rows_ * p->out, x.dtype));
    const int64_t in = projections[0]->in, out = projections[0]->out;
    Buffers held{rows_ * in, rows_ * size_of(DType::f32)};
    if (norm) held.push_back(rows_ * in * size_of(x.dtype)), held.push_back(rows_ * size_of(DType::f32));
    for (int side = 0; side < 2 && gated; ++side) held.push_back(rows_ * out * size_of(x.dtype));
    if (!hopper_) held.push_back(rows_ * in * size_of(x.dtype));
    std::vector<Workspace> forward{{Owner::transient, held}};
    for (const Projection* p : projections) {
        Workspace product{Owner::products, products(p->in, p->out, 0), true};
        if (device_ == DeviceType::cpu)  // a block of rows of the matrix for each thread
            for (int64_t i = 0; i < std::min<int64_t>(num_threads(), (p->out + 63) / 64); ++i)
                product.buffers.push_back(64 * p->in * size_of(x.dtype));
        else if (!hopper_)
            product.buffers.push_back(p->in * p->out * size_of(x.dtype));
        forward.push_back(product);
    }
    tape_.run({.forward = forward});
    return y;
}

// kernels/frozen_linear of gate and up: one kernel without workspace, or products into it.
Ghost Rehearsal::gated_product(const Layer& layer, const Ghost& x) {
    Ghost y = tape_.make(rows_ * layer.up.out, x.dtype);
    const bool aligned = layer.up.in % 8 == 0 && layer.up.out % 8 == 0;
    if (hopper_ && aligned && !layer.up.bias.defined() && rows_ >= kernels::kGatedRows) return y;
    tape_.run({.forward = {{Owner::transient, {y.bytes(), y.bytes()}},
                           {Owner::products, products(layer.up.in, layer.up.out, 0), true}}});
    return y;
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
                        .weight_dtype = lm_head_.dtype,
                        .is_frozen = !dweight.defined() && !head_bias_.defined(),
                        .dhidden = dhidden.defined()};
    tape_.run({.inputs = {hidden, lm_head_, head_bias_},
               .saved = {dhidden, dweight, dbias},
               .outputs = {&loss},
               .forward = {{Owner::loss, loss_workspace(call, device_)},
                           {Owner::products, product_workspace({1024, call.vocabulary, call.hidden}, device_)}}});
    return loss;
}

}  // namespace lc::train::memory
