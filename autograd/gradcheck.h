// Checks analytic gradients against 4th-order central differences in f64, element by element, for a random cotangent.
// Where the step crosses a kink (relu, max) the difference quotient means nothing; such elements are tried again with
// steps down to 1e-3 of it. Each try is a full estimate, so a wrong gradient fails them all.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "autograd/node.h"

namespace lc {

struct GradcheckOptions {
    double step = 1e-3;            // h, relative to max(1, |x|); the formula's error is O(h^4)
    double tolerance = 1e-6;       // per element, relative to max(1, |numeric|)
    int64_t max_elements = 4096;   // per input; larger inputs are sampled with a fixed stride
    uint64_t seed = 1;
};

struct GradcheckReport {
    bool ok = true;
    double worst = 0;          // largest relative error
    int64_t elements = 0;      // how many were compared
    std::string detail;        // where the worst one is, with both values
};

// `fn` maps f64 inputs to outputs; inputs that require grad are checked, the others are constants. Each call must build
// a fresh tape. The scalar that is differentiated is sum_k <cotangent_k, output_k>.
GradcheckReport gradcheck(const std::function<std::vector<Tensor>(const std::vector<Tensor>&)>& fn,
                          const std::vector<Tensor>& inputs, GradcheckOptions options = {});

}  // namespace lc
