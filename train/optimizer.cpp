#include "train/optimizer.h"

#include <charconv>
#include <cmath>

#include "autograd/node.h"
#include "kernels/adamw/adamw.h"
#include "kernels/grad_norm/grad_norm.h"

namespace lc::train {
namespace {

// "model.layers.3.mlp..." -> "layers.3"; empty when there is none.
std::string layer_of(std::string_view name) {
    constexpr std::string_view kKey = "layers.";
    const size_t at = name.find(kKey);
    if (at == std::string_view::npos) return {};
    size_t end = at + kKey.size();
    while (end < name.size() && name[end] >= '0' && name[end] <= '9') ++end;
    return std::string(name.substr(at, end - at));
}

}  // namespace

ClipScope clip_scope_from(std::string_view name) {
    for (ClipScope scope : {ClipScope::off, ClipScope::layer, ClipScope::block, ClipScope::global})
        if (name == name_of(scope)) return scope;
    fail(ErrorKind::Usage, "unknown clip scope '{}'; known: off, layer, block, global", name);
}

std::string_view name_of(ClipScope scope) {
    switch (scope) {
        case ClipScope::off:
            return "off";
        case ClipScope::layer:
            return "layer";
        case ClipScope::block:
            return "block";
        case ClipScope::global:
            return "global";
    }
    return "?";
}

std::vector<ParameterGroup> group_by_layer(const std::vector<models::NamedTensor>& parameters) {
    std::vector<ParameterGroup> groups;
    for (const models::NamedTensor& parameter : parameters) {
        const std::string layer = layer_of(parameter.name);
        const std::string name = layer.empty() ? parameter.name : layer;
        if (groups.empty() || groups.back().name != name) groups.push_back({name, {}});
        groups.back().parameters.push_back(parameter);
    }
    return groups;
}

Optimizer::Optimizer(std::vector<ParameterGroup> groups, const OptimizerOptions& options)
    : groups_(std::move(groups)), options_(options) {
    LC_REQUIRE(Usage, options.max_norm > 0 || options.clip == ClipScope::off, "clip norm must be > 0, got {}",
               options.max_norm);
    LC_REQUIRE(Usage, options.block_layers >= 1, "a clip block needs at least 1 layer, got {}", options.block_layers);
    const Tensor* first = nullptr;
    for (const ParameterGroup& group : groups_) {
        m_.emplace_back(), v_.emplace_back();
        for (const models::NamedTensor& parameter : group.parameters) {
            const Tensor& p = parameter.tensor;
            if (!first) first = &p, device_ = p.device();
            LC_CHECK(p.device() == device_ && p.dtype() == first->dtype(),
                     "optimizer: '{}' is {} on {}, others are {} on {}", parameter.name, name_of(p.dtype()),
                     p.device().str(), name_of(first->dtype()), device_.str());
            LC_CHECK(p.is_contiguous() && (p.dtype() == DType::f32 || p.dtype() == DType::f64),
                     "optimizer: '{}' must be contiguous f32 or f64, got {} {}", parameter.name, name_of(p.dtype()),
                     p.shape());
            m_.back().push_back(Tensor::zeros(p.shape(), p.dtype(), p.device()));
            v_.back().push_back(Tensor::zeros(p.shape(), p.dtype(), p.device()));
        }
    }
}

int64_t Optimizer::parameter_count() const {
    int64_t count = 0;
    for (const ParameterGroup& group : groups_)
        for (const models::NamedTensor& parameter : group.parameters) count += parameter.tensor.numel();
    return count;
}

void Optimizer::zero_grad() {
    for (ParameterGroup& group : groups_)
        for (models::NamedTensor& parameter : group.parameters) set_grad(parameter.tensor, {});
}

std::vector<double> Optimizer::clip_factors(double& total_norm) const {
    const size_t n = groups_.size();
    std::vector<TensorView> grads;
    std::vector<int64_t> group_of;
    for (size_t g = 0; g < n; ++g)
        for (const models::NamedTensor& parameter : groups_[g].parameters) {
            const Tensor grad = grad_of(parameter.tensor);
            LC_CHECK(grad.defined(), "optimizer: '{}' got no gradient", parameter.name);
            grads.push_back(grad.view()), group_of.push_back(static_cast<int64_t>(g));
        }
    const std::vector<double> norms = kernels::grad_norms(
        {.tensors = grads, .groups = group_of, .count = static_cast<int64_t>(n)}, current_stream(device_));
    std::vector<double> squares(n), factors(n, 1.0);
    double total = 0;
    for (size_t g = 0; g < n; ++g) {
        squares[g] = norms[g] * norms[g];
        total += squares[g];
    }
    total_norm = std::sqrt(total);
    if (options_.clip == ClipScope::off) return factors;
    const auto block = static_cast<size_t>(options_.block_layers);
    const size_t width = options_.clip == ClipScope::layer ? 1 : options_.clip == ClipScope::block ? block : n;
    for (size_t begin = 0; begin < n; begin += width) {
        const size_t end = std::min(n, begin + width);
        double sum = 0;
        for (size_t g = begin; g < end; ++g) sum += squares[g];
        // torch's clip_grad_norm_ adds 1e-6 to the norm; kept so that parity runs agree.
        const double factor = std::min(1.0, options_.max_norm / (std::sqrt(sum) + 1e-6));
        for (size_t g = begin; g < end; ++g) factors[g] = factor;
    }
    return factors;
}

StepReport Optimizer::step(std::span<const double> rates, bool loss_finite) {
    LC_CHECK(rates.size() == groups_.size(), "optimizer: {} groups, {} learning rates", groups_.size(), rates.size());
    StepReport report;
    const std::vector<double> factors = clip_factors(report.grad_norm);
    if (!loss_finite || !std::isfinite(report.grad_norm)) {
        report.skipped = true;
        return report;
    }
    ++updates_;
    std::vector<kernels::AdamwTensor> tensors;
    for (size_t g = 0; g < groups_.size(); ++g)
        for (size_t i = 0; i < groups_[g].parameters.size(); ++i) {
            const Tensor& p = groups_[g].parameters[i].tensor;
            tensors.push_back({.parameter = p.view(),
                               .grad = grad_of(p).view(),
                               .m = m_[g][i].view(),
                               .v = v_[g][i].view(),
                               .lr = rates[g],
                               .weight_decay = p.rank() >= 2 ? options_.weight_decay : 0,
                               .grad_scale = factors[g]});
            p.bump_version();
        }
    kernels::adamw_step(
        {.tensors = tensors, .beta1 = options_.beta1, .beta2 = options_.beta2, .eps = options_.eps, .step = updates_},
        current_stream(device_));
    return report;
}

std::vector<std::pair<std::string, Tensor>> Optimizer::state() const {
    std::vector<std::pair<std::string, Tensor>> tensors;
    for (size_t g = 0; g < groups_.size(); ++g)
        for (size_t i = 0; i < groups_[g].parameters.size(); ++i) {
            const models::NamedTensor& parameter = groups_[g].parameters[i];
            tensors.emplace_back("param." + parameter.name, parameter.tensor);
            tensors.emplace_back("m." + parameter.name, m_[g][i]);
            tensors.emplace_back("v." + parameter.name, v_[g][i]);
        }
    return tensors;
}

}  // namespace lc::train
