// The ladder of a build without CUDA.
#include "bench/ladder/steps.h"

namespace lc::bench {

std::vector<Step> ladder_steps() {
    return {};
}

}  // namespace lc::bench
