// How far results are from what was aimed at: the first table of docs/performance.md.
//
// A file of targets holds one device's: {"device": "NVIDIA H200", "targets": [{"what": .., "limit": .., <what is measured>, <one bound>}]}
//   measured   "op", "variant", "phase": the case's median time;  or "model", "stage", "shape": tokens per second of whole steps
//   bound      "us": at most;  "roofline": at least that part of it;  "over": {"op": .., "variant": .., "phases": [..], "factor": ..}: at
//              most so many times these together (phases: the same, if left out);  "reference": {"name": .., "factor": ..}: at most so many times what
//              bench/compare_pytorch.py timed beside it;  "tokens_per_second": at least
// `limit` says what is in the way.
#pragma once
#include <string>
#include <vector>

#include "io/json.h"

namespace lc::bench {

// The table; the newest line of each kind counts. What has not been measured is said. `source` names `targets` in messages. Throws
// BadInput for a target without a bound, or with something unknown in it.
std::string targets_table(const io::Json& targets, const std::string& source, const std::vector<io::Json>& lines);

}  // namespace lc::bench
