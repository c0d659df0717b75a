// Private to io/dataset: the pieces that detecting and reading share.
#pragma once
#include <string_view>

#include "io/file.h"

namespace lc::io {

std::string_view without_byte_order_mark(std::string_view text);

// Throws BadInput for what begins like a compressed, columnar or UTF-16 file, and says what to do.
void refuse_foreign_files(const InputFile& file);

// The first character that is no space is '[': a JSON array, in a format that may be one.
bool begins_with_bracket(const InputFile& file);

}  // namespace lc::io
