// bench report: docs/performance.md from lines of results.
#pragma once
#include <filesystem>
#include <string>
#include <vector>

#include "io/json.h"

namespace lc::bench {

// One table a device of the ops, one of whole steps. The newest line counts for each device, op, variant, phase and dtype (whole
// steps: model, stage, attention and shape). Lines of another kind are skipped. `made_with` is the command that makes the file
// again; `before` comes before the tables. Throws BadInput for lines that lack what a table needs.
std::string performance_report(const std::vector<io::Json>& lines, const std::string& made_with,
                               const std::string& before = {});

// The lines of files of results, in order; empty ones left out. Throws BadInput naming file and line.
std::vector<io::Json> read_lines(const std::vector<std::filesystem::path>& files);

}  // namespace lc::bench
