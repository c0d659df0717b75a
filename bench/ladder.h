// bench ladder: attention forward from the formula to the library's kernels, a step at a time.
#pragma once
#include <string>

namespace lc::bench {

struct LadderOptions {
    std::string out, device = "cuda", dtype = "bf16", command;
    double min_seconds = 0.3;
};

// Checks every step by cases of its op (tests/ops), then times them at the shape of `bench ops`: a table on stdout, JSON lines of kind
// "ladder" in `out`. A step that is wrong is named and not timed. Returns how many were.
int run_ladder(const LadderOptions& options);

}  // namespace lc::bench
