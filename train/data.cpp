#include "train/data.h"

#include <algorithm>
#include <numeric>
#include <span>

#include "core/check.h"
#include "core/log.h"
#include "core/parallel.h"
#include "io/file.h"

namespace lc::train {
namespace {

constexpr int64_t kValidationRows = 200;
constexpr double kValidationShare = 0.05;
constexpr int64_t kTextValidationChunks = 64;

void check_ids(const TokenSample& sample, int64_t vocab_size) {
    for (int32_t id : sample.ids)
        LC_REQUIRE(BadInput, id >= 0 && id < vocab_size,
                   "the tokenizer makes id {}, the model's vocabulary has {} entries: they do not belong together", id,
                   vocab_size);
}

TokenSample tokenize_one(const io::Sample& sample, bool text, const io::Tokenizer& tokenizer, int32_t eos,
                         const std::string& eos_text) {
    TokenSample result;
    if (text) {
        result.ids = tokenizer.encode(sample.completion, true);
        result.ids.push_back(eos);
        result.labels = result.ids;
        return result;
    }
    result.ids = tokenizer.encode(sample.prompt, true);
    result.labels.assign(result.ids.size(), kIgnoreLabel);
    const std::vector<int32_t> answer = tokenizer.encode(sample.completion + eos_text, false);
    result.ids.insert(result.ids.end(), answer.begin(), answer.end());
    result.labels.insert(result.labels.end(), answer.begin(), answer.end());
    return result;
}

bool is_text(io::DataFormat format) {
    return format == io::DataFormat::text || format == io::DataFormat::jsonl;
}

int64_t count_tokens(std::span<const TokenSample> samples) {
    int64_t tokens = 0;
    for (const TokenSample& sample : samples) tokens += std::ssize(sample.ids);
    return tokens;
}

// Splits a sample at token `at` in two, in place, so that the second part becomes its own sample.
void split_sample(std::vector<TokenSample>& samples, size_t index, int64_t at) {
    TokenSample& first = samples[index];
    TokenSample second{{first.ids.begin() + at, first.ids.end()}, {first.labels.begin() + at, first.labels.end()}};
    first.ids.resize(static_cast<size_t>(at)), first.labels.resize(static_cast<size_t>(at));
    samples.insert(samples.begin() + static_cast<std::ptrdiff_t>(index) + 1, std::move(second));
}

// The first sample of the validation part. Cuts a document in two where none ends near.
size_t split_text(std::vector<TokenSample>& samples, int64_t seq_len) {
    const int64_t total = count_tokens(samples);
    const int64_t wanted = std::min(static_cast<int64_t>(kValidationShare * static_cast<double>(total)),
                                    kTextValidationChunks * seq_len + 1);
    const int64_t cut = total - wanted;
    int64_t start = 0;
    for (size_t i = 0; i < samples.size(); ++i) {
        const int64_t end = start + std::ssize(samples[i].ids);
        if (cut < end) {
            if (end - cut <= wanted / 2) return i + 1;
            if (cut - start <= wanted / 2 && i > 0) return i;
            split_sample(samples, i, cut - start);
            return i + 1;
        }
        start = end;
    }
    return samples.size();
}

PackedChunks pack(std::span<const TokenSample> samples, int64_t seq_len) {
    Packer packer(seq_len);
    for (const TokenSample& sample : samples) packer.add(sample);
    return packer.finish();
}

// One sample after the other, by what it shows: the text of runs of one kind, and the number of tokens.
std::string preview_one(const TokenSample& sample, const io::Tokenizer& tokenizer, bool colour) {
    std::string text;
    for (size_t begin = 0, end = 0; begin < sample.ids.size(); begin = end) {
        const bool masked = sample.labels[begin] == kIgnoreLabel;
        while (end < sample.ids.size() && (sample.labels[end] == kIgnoreLabel) == masked) ++end;
        const std::string run = tokenizer.decode(std::span(sample.ids).subspan(begin, end - begin), false);
        if (!masked) {
            text += run;
        } else {
            text += colour ? "\x1b[2;31m" + run + "\x1b[0m" : "[[" + run + "]]";
        }
    }
    return text;
}

}  // namespace

std::vector<TokenSample> tokenize(const io::Dataset& dataset, const io::Tokenizer& tokenizer, int64_t vocab_size) {
    LC_REQUIRE(
        Usage, tokenizer.eos_id().has_value(),
        "the tokenizer names no end-of-text token, so samples cannot be ended; set eos_token in tokenizer_config.json");
    const int32_t eos = *tokenizer.eos_id();
    const std::string eos_text = tokenizer.token_text(eos);
    std::vector<TokenSample> samples(dataset.samples.size());
    parallel_for(std::ssize(samples), 8, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const auto at = static_cast<size_t>(i);
            samples[at] = tokenize_one(dataset.samples[at], is_text(dataset.format), tokenizer, eos, eos_text);
            check_ids(samples[at], vocab_size);
        }
    });
    return samples;
}

int64_t validation_rows(int64_t rows) {
    return rows >= 10 * kValidationRows ? kValidationRows : std::max<int64_t>(1, rows / 10);
}

TrainingData load_training_data(const DataOptions& options, const io::Tokenizer& tokenizer, int64_t vocab_size) {
    TrainingData data;
    data.hash = io::xxh3_128_hex_of_file(options.file);
    io::Dataset dataset =
        io::read_dataset(options.file, {.format = options.format, .skip_bad_lines = options.bad_lines});
    if (options.limit > 0 && std::ssize(dataset.samples) > options.limit)
        dataset.samples.resize(static_cast<size_t>(options.limit));
    std::vector<TokenSample> samples = tokenize(dataset, tokenizer, vocab_size);

    std::span<const TokenSample> train, validation;
    if (is_text(dataset.format)) {
        const size_t first = split_text(samples, options.seq_len);
        train = std::span(samples).first(first), validation = std::span(samples).subspan(first);
        data.description = "validation is the end of the text";
    } else {
        const auto rows = static_cast<size_t>(validation_rows(std::ssize(samples)));
        validation = std::span(samples).first(rows), train = std::span(samples).subspan(rows);
        data.description = fmt::format("validation is rows 0..{}{}", rows - 1,
                                       rows < kValidationRows ? " (a tenth: the set has fewer than 2000 rows)" : "");
    }
    data.train_samples = std::ssize(train), data.validation_samples = std::ssize(validation);
    data.train_tokens = count_tokens(train), data.validation_tokens = count_tokens(validation);
    data.train = pack(train, options.seq_len);
    data.validation = pack(validation, options.seq_len);
    if (options.validation_chunks > 0) data.validation.truncate(options.validation_chunks);
    LC_REQUIRE(
        BadInput, data.train.size() > 0 && data.validation.size() > 0,
        "{}: {} training and {} validation tokens make {} and {} chunks of {}; give more data or a smaller --seq-len",
        options.file.string(), data.train_tokens, data.validation_tokens, data.train.size(), data.validation.size(),
        options.seq_len);
    log_info("data: {} training samples, {} tokens, {} chunks of {} ({} wholly masked, removed)", data.train_samples,
             data.train_tokens, data.train.size(), options.seq_len, data.train.masked_chunks);
    log_info("data: {} validation samples, {} tokens, {} chunks; {}", data.validation_samples, data.validation_tokens,
             data.validation.size(), data.description);
    return data;
}

std::string preview(const std::vector<TokenSample>& samples, int64_t count, const io::Tokenizer& tokenizer,
                    bool colour) {
    std::string text;
    for (int64_t i = 0; i < std::min(count, std::ssize(samples)); ++i) {
        const TokenSample& sample = samples[static_cast<size_t>(i)];
        const auto counted = std::ranges::count_if(sample.labels, [](int32_t l) { return l != kIgnoreLabel; });
        text += fmt::format("--- sample {}: {} tokens, {} in the loss; ids", i, sample.ids.size(), counted);
        constexpr size_t kShown = 12;
        for (size_t t = 0; t < std::min(kShown, sample.ids.size()); ++t) text += fmt::format(" {}", sample.ids[t]);
        text += sample.ids.size() > kShown ? " ... ---\n" : " ---\n";
        text += preview_one(sample, tokenizer, colour) + "\n";
    }
    return text;
}

}  // namespace lc::train
