#include "train/selection.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace lc::train {
namespace {
constexpr double kInfinity = std::numeric_limits<double>::infinity();
}

Scope scope_from(std::string_view name) {
    if (name == "global") return Scope::global;
    if (name == "layer") return Scope::layer;
    fail(ErrorKind::Usage, "unknown scope '{}'; known: global, layer", name);
}

std::string_view name_of(Scope scope) {
    return scope == Scope::global ? "global" : "layer";
}

Selection::Selection(const std::vector<ParameterGroup>& groups, Scope scope) : groups_(groups) {
    for (const ParameterGroup& group : groups_) {
        best_.emplace_back();
        for (const models::NamedTensor& parameter : group.parameters) best_.back().push_back(parameter.tensor.clone());
    }
    if (scope == Scope::global) units_.push_back({0, groups_.size(), kInfinity, 0});
    for (size_t g = 0; scope == Scope::layer && g < groups_.size(); ++g) units_.push_back({g, g + 1, kInfinity, 0});
}

bool Selection::observe(int64_t step, const Validation& validation) {
    const bool global = units_.size() == 1 && units_[0].end_group == groups_.size();
    LC_CHECK(global || validation.layer_losses.size() == units_.size(),
             "selection by layer: {} layers, {} layer losses", units_.size(), validation.layer_losses.size());
    bool gain = false;
    for (size_t u = 0; u < units_.size(); ++u) {
        Unit& unit = units_[u];
        const double loss = global ? validation.loss : validation.layer_losses[u];
        if (!(loss < unit.loss)) continue;
        gain = true;
        unit.loss = loss, unit.step = step;
        for (size_t g = unit.first_group; g < unit.end_group; ++g)
            for (size_t i = 0; i < best_[g].size(); ++i) best_[g][i].copy_from(groups_[g].parameters[i].tensor);
    }
    bad_ = gain ? 0 : bad_ + 1;
    return gain;
}

void Selection::load_best() const {
    for (size_t g = 0; g < groups_.size(); ++g)
        for (size_t i = 0; i < best_[g].size(); ++i) {
            Tensor parameter = groups_[g].parameters[i].tensor;
            parameter.copy_from(best_[g][i]);
        }
}

double Selection::best_loss() const {
    double sum = 0;
    for (const Unit& unit : units_) sum += unit.loss;
    return sum / static_cast<double>(units_.size());
}

int64_t Selection::best_step() const {
    return std::ranges::max(units_, {}, &Unit::step).step;
}

std::vector<std::pair<std::string, Tensor>> Selection::tensors() const {
    std::vector<std::pair<std::string, Tensor>> tensors;
    for (size_t g = 0; g < groups_.size(); ++g)
        for (size_t i = 0; i < best_[g].size(); ++i)
            tensors.emplace_back("best." + groups_[g].parameters[i].name, best_[g][i]);
    return tensors;
}

io::Json Selection::state() const {
    io::Json units = io::Json::array();
    for (const Unit& unit : units_)
        units.push_back({{"loss", std::isfinite(unit.loss) ? io::Json(unit.loss) : io::Json()}, {"step", unit.step}});
    return {{"units", units}, {"bad", bad_}};
}

void Selection::restore(const io::Json& state, const Checkpoint& checkpoint, const std::string& source) {
    const io::JsonObject object(state, source, "selection");
    const io::Json& units = object.get_array("units");
    LC_REQUIRE(Checkpoint, units.size() == units_.size(), "{}: selects {} units, this run {}", source, units.size(),
               units_.size());
    for (size_t u = 0; u < units_.size(); ++u) {
        const io::JsonObject unit(units[u], source, "selection.units");
        constexpr double kLargest = std::numeric_limits<double>::max();
        units_[u].loss = unit.find_double("loss", -kLargest, kLargest).value_or(kInfinity);
        units_[u].step = unit.get_int("step", 0, std::numeric_limits<int64_t>::max());
    }
    bad_ = object.get_int("bad", 0, std::numeric_limits<int64_t>::max());
    for (auto& [name, tensor] : tensors()) tensor.copy_from(checkpoint.tensor(name));
}

}  // namespace lc::train
