// Makes a byte-level BPE tokenizer from a text: the most frequent adjacent pair of symbols becomes a new piece, again
// and again (Sennrich et al., arXiv 1508.07909). The same text and options give the same file, byte for byte.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "io/tokenizer/pre_tokenizer.h"

namespace lc::io {

struct BpeTrainerOptions {
    int32_t vocab_size = 8192;  // special tokens, 256 bytes, and merged pieces
    std::vector<std::string> special_tokens = {"<|begin_of_text|>", "<|end_of_text|>", "<|pad|>"};  // ids 0, 1, ...
    std::string bos_token = "<|begin_of_text|>";  // put before a text by add_special_tokens; empty: none
    std::string split_pattern{kLlama3Pattern};
    int64_t min_frequency = 1;  // a pair seen less often is not merged
};

// Returns the content of a tokenizer.json that this library and HF tokenizers read. The vocabulary stays smaller than
// vocab_size when the text has no more pairs. Ill-formed UTF-8 in `text` counts as U+FFFD. Throws Usage for options
// that do not fit together, BadInput for a pattern that does not compile. Takes seconds for megabytes: counts are kept
// up to date word by word, never taken anew.
std::string train_byte_level_bpe(std::string_view text, const BpeTrainerOptions& options);

}  // namespace lc::io
