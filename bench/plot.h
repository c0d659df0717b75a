// bench plot: decoding as a picture, from lines of results.
#pragma once
#include <string>
#include <vector>

#include "io/json.h"

namespace lc::bench {

// An SVG of two panels: tokens per second against the batch, a curve for each kind of attention and context; and the most memory
// in use against the context, a curve for each kind of attention and batch. Axes are logarithmic. Of lines that agree in all this the
// newest counts; lines of another kind or stage are skipped, as are those of other devices and models than most lines have. Throws
// BadInput where nothing is left, or a line lacks what it needs.
std::string decode_plot(const std::vector<io::Json>& lines);

}  // namespace lc::bench
