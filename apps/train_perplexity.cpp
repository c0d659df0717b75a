#include <cstdio>
#include <memory>

#include "apps/train_verbs.h"
#include "core/parallel.h"
#include "io/file.h"
#include "io/tokenizer/load_tokenizer.h"
#include "train/evaluate.h"
#include "train/metrics.h"

namespace lc::apps {
namespace {

struct Flags {
    ModelFlags model;
    PlacementFlags place;
    WeightFlags weights;
    std::string run, text, json, logits, terms = "both";
    int64_t seq_len = 1024, limit = 0, batch = 4, threads = 0;
};

// The first `count` code points; continuation bytes begin with the bits 10.
std::string_view first_code_points(std::string_view text, int64_t count) {
    for (size_t i = 0; i < text.size(); ++i)
        if ((static_cast<unsigned char>(text[i]) & 0xC0u) != 0x80u && count-- == 0) return text.substr(0, i);
    return text;
}

int run(const Flags& flags) {
    if (flags.threads > 0) set_num_threads(static_cast<int>(flags.threads));
    const std::string text = io::read_file(flags.text, int64_t{4} << 30);
    const io::Tokenizer tokenizer = io::load_tokenizer(flags.model.model);
    const std::vector<int32_t> ids =
        tokenizer.encode(flags.limit > 0 ? first_code_points(text, flags.limit) : std::string_view(text), false);
    models::Decoder decoder = models::load_model(
        flags.model.source(), flags.run, {.placement = flags.place.placement(), .weight_code = flags.weights.code()});
    if (decoder.lora() && flags.weights.code() != models::WeightCode::none) decoder.merge_lora();
    decoder.encode_projections(flags.weights.code());
    LC_REQUIRE(Usage, decoder.attention() || flags.terms == "both",
               "--attention-terms {} needs --run: the model itself is softmax", flags.terms);
    train::EvaluateOptions options{.forward = {.mode = models::mode_of(decoder)}, .batch = flags.batch, .stop = {}};
    if (flags.terms == "window") options.forward.terms = models::Terms::WindowOnly;
    if (flags.terms == "linear") options.forward.terms = models::Terms::LinearOnly;
    if (!flags.logits.empty()) {
        const size_t length = std::min(ids.size(), static_cast<size_t>(flags.seq_len));
        train::save_logits(decoder, std::span(ids).first(length), options.forward, flags.logits);
    }
    const train::ChunkLosses losses = train::text_losses(decoder, ids, flags.seq_len, options);

    train::Record record = {{"mean_nll", losses.mean_nll()},
                            {"perplexity", losses.perplexity()},
                            {"sequences", losses.nll.size()},
                            {"tokens", losses.total_tokens()}};
    const std::string line = record.dump() + "\n";
    std::fwrite(line.data(), 1, line.size(), stdout);
    if (flags.json.empty()) return 0;
    for (size_t i = 0; i < losses.nll.size(); ++i)
        record["per_sequence"].push_back(losses.nll[i] / static_cast<double>(losses.tokens[i]));
    io::write_file_atomic(flags.json, record.dump(1) + "\n");
    return 0;
}

}  // namespace

Verb add_perplexity(CLI::App& program) {
    CLI::App* verb = program.add_subcommand("perplexity", "perplexity of a text: whole sequences, no BOS, tokens 2..n");
    const auto flags = std::make_shared<Flags>();
    flags->model.add(*verb);
    flags->place.add(*verb);
    flags->weights.add(*verb);
    verb->add_option("--run", flags->run, "run directory of linearize; none: the model as it is");
    verb->add_option("--text", flags->text, "UTF-8 text file")->required();
    verb->add_option("--seq-len", flags->seq_len, "tokens of a sequence")->check(CLI::Range(2, 1 << 20));
    verb->add_option("--limit-chars", flags->limit, "only the first N code points; 0: all")
        ->check(CLI::NonNegativeNumber);
    verb->add_option("--batch-size", flags->batch, "sequences of a forward pass")->check(CLI::PositiveNumber);
    verb->add_option("--attention-terms", flags->terms, "of a hybrid: both, or one of its terms alone")
        ->check(CLI::IsMember({"both", "window", "linear"}));
    verb->add_option("--json", flags->json, "file for the result with the NLL of each sequence");
    verb->add_option("--logits", flags->logits,
                     "safetensors file for ids [T] and logits [T,V] of the first sequence, to compare with others");
    verb->add_option("--threads", flags->threads, "CPU threads; 0: all")->check(CLI::Range(0, 256));
    return {verb, [flags](const Settings&) { return run(*flags); }};
}

}  // namespace lc::apps
