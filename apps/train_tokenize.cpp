#include <memory>

#include "apps/train_verbs.h"
#include "core/log.h"
#include "io/file.h"
#include "io/json.h"
#include "io/tokenizer/bpe_trainer.h"
#include "io/tokenizer/load_tokenizer.h"
#include "train/metrics.h"

namespace lc::apps {
namespace {

constexpr int64_t kLargestText = int64_t{4} << 30;

struct TokenizeFlags {
    std::string tokenizer, jsonl, out;
};

int tokenize(const TokenizeFlags& flags) {
    const io::Tokenizer tokenizer = io::load_tokenizer(flags.tokenizer);
    const std::string text = io::read_file(flags.jsonl, kLargestText);
    io::AtomicFile out(flags.out);
    int64_t line = 0;
    for (size_t begin = 0, end; begin < text.size(); begin = end + 1) {
        end = std::min(text.find('\n', begin), text.size());
        const std::string source = fmt::format("{}:{}", flags.jsonl, ++line);
        const std::string_view content = std::string_view(text).substr(begin, end - begin);
        if (content.find_first_not_of(" \t\r") == std::string_view::npos) continue;
        const io::Json json = io::parse_json(content, source);
        const std::string value = io::JsonObject(json, source).get_string("text");
        const std::vector<int32_t> ids = tokenizer.encode(value, true);
        const train::Record record = {
            {"ids", ids}, {"ids_no_special", tokenizer.encode(value, false)}, {"decoded", tokenizer.decode(ids, true)}};
        out.write(record.dump() + "\n");
    }
    out.commit();
    return 0;
}

struct TrainerFlags {
    std::string text, out;
    io::BpeTrainerOptions options;
};

int train_tokenizer(const TrainerFlags& flags) {
    const std::string text = io::read_file(flags.text, kLargestText);
    io::write_file_atomic(flags.out, io::train_byte_level_bpe(text, flags.options));
    const io::Tokenizer tokenizer = io::Tokenizer::load(flags.out);
    const size_t tokens = tokenizer.encode(text, false).size();
    log_info("{}: {} ids; {} bytes of text are {} tokens, {:.2f} bytes a token", flags.out, tokenizer.vocab_size(),
             text.size(), tokens, static_cast<double>(text.size()) / static_cast<double>(std::max<size_t>(tokens, 1)));
    return 0;
}

}  // namespace

Verb add_tokenize(CLI::App& program) {
    CLI::App* verb = program.add_subcommand("tokenize", "text to ids: JSONL {text} -> {ids, ids_no_special, decoded}");
    const auto flags = std::make_shared<TokenizeFlags>();
    verb->add_option("--tokenizer", flags->tokenizer, "tokenizer.json or .model, a model directory or a GGUF file")
        ->required();
    verb->add_option("--jsonl", flags->jsonl, "one {\"text\": ...} a line")->required();
    verb->add_option("--out", flags->out, "JSONL file to write")->required();
    return {verb, [flags](const Settings&) { return tokenize(*flags); }};
}

Verb add_train_tokenizer(CLI::App& program) {
    CLI::App* verb = program.add_subcommand("train-tokenizer", "make a byte-level BPE tokenizer.json from a text");
    const auto flags = std::make_shared<TrainerFlags>();
    verb->add_option("--text", flags->text, "UTF-8 text file")->required();
    verb->add_option("--out", flags->out, "tokenizer.json to write")->required();
    verb->add_option("--vocab-size", flags->options.vocab_size, "ids, special tokens and bytes included");
    verb->add_option("--min-frequency", flags->options.min_frequency, "pairs seen less often are not merged")
        ->check(CLI::PositiveNumber);
    return {verb, [flags](const Settings&) { return train_tokenizer(*flags); }};
}

}  // namespace lc::apps
