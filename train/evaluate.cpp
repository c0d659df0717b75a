#include "train/evaluate.h"

#include <cmath>
#include <numeric>

#include "autograd/grad_mode.h"
#include "autograd/ops/linear_cross_entropy.h"
#include "io/safetensors_writer.h"
#include "train/chunk_stream.h"

namespace lc::train {

double ChunkLosses::total_nll() const {
    return std::accumulate(nll.begin(), nll.end(), 0.0);
}
int64_t ChunkLosses::total_tokens() const {
    return std::accumulate(tokens.begin(), tokens.end(), int64_t{0});
}
double ChunkLosses::mean_nll() const {
    return total_nll() / static_cast<double>(total_tokens());
}
double ChunkLosses::perplexity() const {
    return std::exp(mean_nll());
}

double ChunkLosses::mean_chunk_loss() const {
    double sum = 0;
    for (size_t i = 0; i < nll.size(); ++i)
        if (tokens[i] > 0) sum += nll[i] / static_cast<double>(tokens[i]);
    return sum / static_cast<double>(nll.size());
}

ChunkLosses chunk_losses(const models::Decoder& decoder, const PackedChunks& data, const EvaluateOptions& options) {
    const NoGrad evaluation;
    ChunkLosses losses;
    const int64_t n = data.size(), length = data.seq_len;
    for (int64_t begin = 0; begin < n; begin += options.batch) {
        throw_if_stopped(options.stop);
        std::vector<int64_t> chunks(static_cast<size_t>(std::min(options.batch, n - begin)));
        std::iota(chunks.begin(), chunks.end(), begin);
        const Batch batch = make_batch(data, chunks);
        const Tensor hidden = decoder.hidden(batch.ids, options.forward);
        const Tensor rows = hidden.reshaped({hidden.size(0) * length, hidden.size(2)});
        const std::vector<double> nll =
            token_nll(rows, decoder.lm_head(), shifted_labels(batch.labels).to(decoder.device()), decoder.head_bias())
                .to_vector<double>();
        for (size_t b = 0; b < chunks.size(); ++b) {
            const auto row = nll.begin() + static_cast<std::ptrdiff_t>(static_cast<int64_t>(b) * length);
            losses.nll.push_back(std::accumulate(row, row + length, 0.0));
            losses.tokens.push_back(batch.predicted[b]);
        }
    }
    return losses;
}

ChunkLosses text_losses(const models::Decoder& decoder, std::span<const int32_t> ids, int64_t seq_len,
                        const EvaluateOptions& options) {
    LC_REQUIRE(Usage, seq_len >= 2, "seq-len must be at least 2, got {}", seq_len);
    PackedChunks data;
    data.seq_len = seq_len;
    const size_t used = ids.size() / static_cast<size_t>(seq_len) * static_cast<size_t>(seq_len);
    LC_REQUIRE(BadInput, used > 0, "the text has {} tokens, fewer than one sequence of {}", ids.size(), seq_len);
    data.ids.assign(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(used));
    data.labels = data.ids;
    return chunk_losses(decoder, data, options);
}

void save_logits(const models::Decoder& decoder, std::span<const int32_t> ids,
                 const models::Decoder::ForwardOptions& options, const std::filesystem::path& path) {
    LC_REQUIRE(Usage, !ids.empty(), "no tokens to make logits of");
    const NoGrad no_grad;
    const auto length = static_cast<int64_t>(ids.size());
    const Tensor row = Tensor::from(ids, {1, length});
    const Tensor logits = decoder.logits(row, options).to(statistics_dtype(decoder.dtype()));
    const Shape shape{length, decoder.config().vocab_size};
    io::SafetensorsWriter writer(path, {{"ids", DType::i32, {length}}, {"logits", logits.dtype(), shape}});
    writer.write("ids", row.reshaped({length}));
    writer.write("logits", logits.reshaped(shape));
    writer.commit();
}

}  // namespace lc::train
