// Texts to train on, requests to answer, conversations to go on with.
#include "core/tensor.h"
#include "io/dataset/dataset.h"
#include "io/file.h"
#include "models/generation/batch.h"
#include "models/generation/state_file.h"
#include "tests/fuzz/support.h"
#include "tests/fuzz/targets.h"
#include "tests/io/tokenizer/small.h"

namespace lc::fuzz {

void dataset(std::string_view input) {
    if (input.empty()) return;
    const auto choice = static_cast<unsigned char>(input[0]);
    constexpr io::DataFormat kFormats[] = {io::DataFormat::automatic, io::DataFormat::alpaca,
                                           io::DataFormat::completions, io::DataFormat::jsonl, io::DataFormat::text};
    const MemoryFile file(input.substr(1));
    const io::DatasetOptions options = {.format = kFormats[choice % std::size(kFormats)], .skip_bad_lines = choice % 3};
    answer([&] {
        const io::Dataset data = io::read_dataset(file.path(), options);
        require(data.records == std::ssize(data.samples) + data.bad + data.empty, "records that nobody counted");
        require(data.bad <= options.skip_bad_lines, "more bad records than allowed");
        for (const io::Sample& sample : data.samples)
            require(!io::first_invalid_utf8(sample.prompt) && !io::first_invalid_utf8(sample.completion),
                    "text that is not UTF-8");
    });
}

void batch(std::string_view input) {
    const MemoryFile file(input);
    answer([&] {
        const models::BatchFile requests(file.path(), {}, 100, "model");
        std::vector<std::string> results;
        for (int64_t i = 0; i < requests.size(); ++i) {
            const models::BatchLine line = requests.line(i);
            models::SamplingOptions sampling = line.options.sampling;
            answer([&] { models::validate(sampling, 100); }, {ErrorKind::BadInput, ErrorKind::Usage});
            results.push_back(io::Json({{"id", line.id}, {"text", ""}, {"key", line.key}}).dump());
        }
        require(requests.count_done(results, "out.jsonl") == requests.size(),
                "results that do not stand for their lines");
    });
    // The same bytes as results of an earlier process.
    static const MemoryFile lines("{\"prompt\": \"a\"}\n{\"prompt\": \"b\", \"id\": \"x\"}\n");
    static const models::BatchFile known(lines.path(), {}, 100, "model");
    std::vector<std::string> results;
    for (size_t begin = 0, end; begin < input.size(); begin = end + 1) {
        end = std::min(input.find('\n', begin), input.size());
        results.emplace_back(input.substr(begin, end - begin));
    }
    answer([&] { known.count_done(results, "out.jsonl"); });
}

namespace {

const models::Decoder& small_decoder() {
    static const models::Decoder decoder = [] {
        models::DecoderConfig config;
        config.vocab_size = 300, config.hidden_size = 8, config.intermediate_size = 8, config.num_layers = 1;
        config.num_heads = 2, config.num_kv_heads = 1, config.head_dim = 4, config.max_positions = 32;
        models::Decoder made = models::Decoder::random(config, 1);
        made.linearize({.window_size = 2}, 1);
        return made;
    }();
    return decoder;
}
const io::Tokenizer& small_tokenizer() {
    static const io::Tokenizer tokenizer = io::test::make(io::test::byte_level());
    return tokenizer;
}
constexpr models::DecodeMode kMode{.mode = models::AttentionMode::Linearized};
const models::ModelIdentity kIdentity{.model_hash = "m", .run_hash = "r"};

}  // namespace

void conversation(std::string_view input) {
    const MemoryFile file(input);
    answer([&] {
        models::Conversation conversation(small_decoder(), small_tokenizer(), kMode);
        load_state(conversation, file.path(), kIdentity);
    });
}

std::string saved_conversation() {
    const Folder folder;
    models::Conversation conversation(small_decoder(), small_tokenizer(), kMode);
    conversation.reply(std::vector<int32_t>{1, 2, 3}, {.max_new_tokens = 2});
    save_state(conversation, folder.path() / "state", {.identity = kIdentity, .chat_template = "alpaca"});
    return io::read_file(folder.path() / "state", 1 << 20);
}

}  // namespace lc::fuzz
