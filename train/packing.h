// Token sequences and their packing into chunks of one length, as the LoLCATs authors do it: samples follow each other
// in a buffer without padding; while the buffer is strictly longer than T a chunk of T is cut; what is left at the end
// is dropped. So n tokens give ceil(n/T) - 1 chunks. Chunks that ask for no token at all are removed.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace lc::train {

inline constexpr int32_t kIgnoreLabel = -100;

// One sample before packing. labels[i] is ids[i] where the loss counts it, else kIgnoreLabel.
struct TokenSample {
    std::vector<int32_t> ids, labels;
};

// `seq_len` tokens a chunk, chunk after chunk.
struct PackedChunks {
    int64_t seq_len = 0;
    std::vector<int32_t> ids, labels;
    int64_t masked_chunks = 0;   // removed: no label
    int64_t dropped_tokens = 0;  // the remainder

    int64_t size() const { return seq_len == 0 ? 0 : static_cast<int64_t>(ids.size()) / seq_len; }
    std::span<const int32_t> ids_of(int64_t chunk) const { return part(ids, chunk); }
    std::span<const int32_t> labels_of(int64_t chunk) const { return part(labels, chunk); }
    void truncate(int64_t chunks);  // keeps the first ones

  private:
    std::span<const int32_t> part(const std::vector<int32_t>& from, int64_t chunk) const {
        return std::span(from).subspan(static_cast<size_t>(chunk * seq_len), static_cast<size_t>(seq_len));
    }
};

class Packer {
  public:
    // seq_len >= 2: a chunk needs a token to predict.
    explicit Packer(int64_t seq_len);
    void add(const TokenSample& sample);
    void add(std::span<const int32_t> ids, std::span<const int32_t> labels);
    PackedChunks finish();  // the packer is empty afterwards

  private:
    void cut();
    PackedChunks chunks_;
    std::vector<int32_t> ids_, labels_;  // the buffer; its first `begin_` entries are cut already
    size_t begin_ = 0;
};

// How many labels a next-token loss over this chunk counts: the first one has nothing before it.
int64_t predicted_tokens(std::span<const int32_t> labels);

}  // namespace lc::train
