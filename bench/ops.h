// bench ops: times the op cases of tests/ops that belong to the device.
#pragma once
#include <string>
#include <vector>

namespace lc::bench {

struct OpsOptions {
    std::vector<std::string> ops;  // none: all
    std::string variant, out, device = "cpu", dtype = "auto", command;
    double min_seconds = 0.5;
    bool list = false;
};

// A table on stdout, and one JSON line a result in `out`. A case that fails is reported and the others go on. Returns how many
// failed.
int run_ops(const OpsOptions& options);

}  // namespace lc::bench
