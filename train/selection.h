// Keeps the best parameters seen at an evaluation: one best step for all (scope global), or one a layer (stage 1, where
// layers are independent problems).
#pragma once
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "io/json.h"
#include "train/checkpoint.h"
#include "train/stage.h"

namespace lc::train {

enum class Scope : uint8_t { global, layer };
Scope scope_from(std::string_view name);  // throws Error(Usage)
std::string_view name_of(Scope scope);

class Selection {
  public:
    // Starts with a copy of the parameters as they are.
    Selection(const std::vector<ParameterGroup>& groups, Scope scope);

    // Copies what improved; true when something did. NaN never improves.
    bool observe(int64_t step, const Validation& validation);
    void load_best() const;  // into the parameters

    double best_loss() const;   // the mean over layers under Scope::layer; infinity before the first evaluation
    int64_t best_step() const;  // the last one that improved anything
    int64_t evaluations_without_gain() const { return bad_; }

    std::vector<std::pair<std::string, Tensor>> tensors() const;  // "best.<name>"
    io::Json state() const;
    void restore(const io::Json& state, const Checkpoint& checkpoint, const std::string& source);

  private:
    struct Unit {
        size_t first_group = 0, end_group = 0;
        double loss;
        int64_t step = 0;
    };
    std::vector<ParameterGroup> groups_;
    std::vector<std::vector<Tensor>> best_;  // as groups_
    std::vector<Unit> units_;
    int64_t bad_ = 0;
};

}  // namespace lc::train
