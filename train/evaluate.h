// Perplexity: of packed validation chunks (labelled tokens only), and of a plain text.
#pragma once
#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

#include "models/decoder/decoder.h"
#include "train/interrupt.h"
#include "train/packing.h"

namespace lc::train {

struct EvaluateOptions {
    models::Decoder::ForwardOptions forward;
    int64_t batch = 1;  // chunks a forward pass
    StopCheck stop;     // Interrupted is thrown when it says so
};

// NLL of the labelled tokens, chunk by chunk. A chunk's first token has no prediction.
struct ChunkLosses {
    std::vector<double> nll;      // sums
    std::vector<int64_t> tokens;  // counted ones
    double total_nll() const;
    int64_t total_tokens() const;
    double mean_nll() const;         // over tokens
    double perplexity() const;       // exp(mean_nll)
    double mean_chunk_loss() const;  // mean over chunks of the chunk's mean; chunks without labels count as 0
};
ChunkLosses chunk_losses(const models::Decoder& decoder, const PackedChunks& data, const EvaluateOptions& options);

// `ids` cut into whole sequences of seq_len without overlap; what is left at the end is not used. Every token but a
// sequence's first is predicted. Throws Error(BadInput) when there is no whole sequence.
ChunkLosses text_losses(const models::Decoder& decoder, std::span<const int32_t> ids, int64_t seq_len,
                        const EvaluateOptions& options);

// For comparisons with other implementations: a safetensors file with the logits [T,V] of one sequence, f32 (f64 of an f64 model),
// and its `ids` [T], i32. Throws Usage for an empty sequence or one longer than the model allows; Resource when the disk fails.
void save_logits(const models::Decoder& decoder, std::span<const int32_t> ids,
                 const models::Decoder::ForwardOptions& options, const std::filesystem::path& path);

}  // namespace lc::train
