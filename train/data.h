// From a data file to packed chunks for training and validation.
//
//   instruction data   ids = encode(prompt, with special tokens) ++ encode(completion + EOS, without); prompt masked
//   text               ids = encode(document, with special tokens) ++ EOS; everything labelled
//
// The two parts of an instruction are tokenized separately: no merge crosses the seam. Validation is held out:
//   instruction data   rows 0..199 in file order (the authors' split of Alpaca); of fewer than 2000 rows the first tenth
//   text               the end of the file: 5 % of its tokens, at most 64 chunks, cut between documents where one ends near
#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "io/dataset/dataset.h"
#include "io/tokenizer/tokenizer.h"
#include "train/packing.h"

namespace lc::train {

struct DataOptions {
    std::filesystem::path file;
    io::DataFormat format = io::DataFormat::automatic;
    int64_t seq_len = 1024;
    int64_t limit = 0;              // records used; 0: all
    int64_t validation_chunks = 0;  // at most; 0: all
    int64_t bad_lines = 0;          // tolerated
};

struct TrainingData {
    PackedChunks train, validation;
    int64_t train_samples = 0, validation_samples = 0;  // of text: documents, the one that is cut counted twice
    int64_t train_tokens = 0, validation_tokens = 0;    // before packing
    std::string hash;                                   // XXH3-128 of the file
    std::string description;                            // the split in words
};

// The samples of a file, tokenized, in file order. Throws BadInput for bad files and for ids that a model of `vocab_size`
// has no embedding for; Usage when the tokenizer knows no EOS.
std::vector<TokenSample> tokenize(const io::Dataset& dataset, const io::Tokenizer& tokenizer, int64_t vocab_size);

TrainingData load_training_data(const DataOptions& options, const io::Tokenizer& tokenizer, int64_t vocab_size);

// How many of n instruction rows are validation.
int64_t validation_rows(int64_t rows);

// The first `count` samples as text, what is masked in [[brackets]], or dimmed with `colour`.
std::string preview(const std::vector<TokenSample>& samples, int64_t count, const io::Tokenizer& tokenizer,
                    bool colour);

}  // namespace lc::train
