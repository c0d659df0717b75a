// AdamW over the trainable parameters of a stage, with gradient clipping and the rule that a non-finite step is no
// step. Parameters are their own f32 masters on one device; moments have the parameters' dtype. A step reads all gradients for
// their norms, waits for those, and updates all parameters, each in one call whatever the number of groups.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/tensor.h"
#include "models/decoder/decoder.h"

namespace lc::train {

enum class ClipScope : uint8_t { off, layer, block, global };
ClipScope clip_scope_from(std::string_view name);  // throws Error(Usage)
std::string_view name_of(ClipScope scope);

struct OptimizerOptions {
    double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
    double weight_decay = 0;  // on matrices only
    ClipScope clip = ClipScope::off;
    double max_norm = 1.0;
    int64_t block_layers = 9;  // layers of a block, for ClipScope::block; set by the user, never by the machine
};

// Parameters whose gradients are clipped together under ClipScope::layer: those of one layer.
struct ParameterGroup {
    std::string name;
    std::vector<models::NamedTensor> parameters;
};

// Groups by the N of "layers.N." in the names, in order; what belongs to no layer gets groups of its own, named after
// the parameter.
std::vector<ParameterGroup> group_by_layer(const std::vector<models::NamedTensor>& parameters);

struct StepReport {
    double grad_norm = 0;  // over all parameters, before clipping
    bool skipped = false;  // non-finite: parameters and moments are untouched, bytewise
};

class Optimizer {
  public:
    Optimizer(std::vector<ParameterGroup> groups, const OptimizerOptions& options);

    const std::vector<ParameterGroup>& groups() const { return groups_; }
    int64_t parameter_count() const;
    int64_t updates() const { return updates_; }  // steps taken, skipped ones not counted
    void zero_grad();
    // One update from the gradients that hang on the parameters. rates[g] is the learning rate of group g.
    // `loss_finite` false skips the step like a non-finite gradient.
    StepReport step(std::span<const double> rates, bool loss_finite = true);

    // For checkpoints: "<kind>.<parameter name>" with kind param, m, v. The tensors share memory with the optimizer's.
    std::vector<std::pair<std::string, Tensor>> state() const;
    void set_updates(int64_t updates) { updates_ = updates; }

  private:
    // Factor on the gradients of each group; a non-finite entry means that the step must be skipped.
    std::vector<double> clip_factors(double& total_norm) const;

    std::vector<ParameterGroup> groups_;
    std::vector<std::vector<Tensor>> m_, v_;  // as groups_
    OptimizerOptions options_;
    Device device_;
    int64_t updates_ = 0;
};

}  // namespace lc::train
