#include "apps/gen_session.h"

#include <fmt/format.h>

#include <cstdio>
#include <iostream>

#include "core/allocator.h"
#include "io/tokenizer/load_tokenizer.h"
#include "models/model_source.h"

namespace lc::apps {
namespace {

models::Terms terms_from(const std::string& name) {
    if (name == "window") return models::Terms::WindowOnly;
    return name == "linear" ? models::Terms::LinearOnly : models::Terms::Both;
}

std::vector<int64_t> eos_ids(const io::GenerationConfig& generation, const models::Decoder& decoder,
                             const io::Tokenizer& tokenizer) {
    if (!generation.eos_token_ids.empty()) return generation.eos_token_ids;
    if (!decoder.config().eos_token_ids.empty()) return decoder.config().eos_token_ids;
    if (const auto id = tokenizer.eos_id()) return {*id};
    return {};
}

models::DecodeMode decode_mode(const models::Decoder& decoder, const GenFlags& flags) {
    LC_REQUIRE(Usage, decoder.attention() || flags.terms == "both",
               "--attention-terms {} needs a linearized model — give --run", flags.terms);
    LC_REQUIRE(Usage, decoder.attention() || flags.state_dtype == "f32",
               "--state-dtype {} needs a linearized model — give --run", flags.state_dtype);
    const bool narrow = flags.state_dtype == "bf16";
    return {models::mode_of(decoder), terms_from(flags.terms),
            narrow ? models::StateStorage::Bf16 : models::StateStorage::Wide};
}

std::string number_or_dash(const std::optional<double>& value) {
    return value ? fmt::format("{:.1f}", *value) : "-";
}

}  // namespace

Session load_session(const GenFlags& flags, const Settings& settings, bool with_identity) {
    const models::ModelSource source = flags.model.source();
    const io::GenerationConfig defaults = io::load_generation_config(source.directory);
    models::GenerateOptions options = generate_options(flags, settings, defaults);
    io::Tokenizer tokenizer = io::load_tokenizer(source.directory);
    models::Decoder decoder = models::load_model(source, flags.run,
                                                 {.placement = flags.place.placement(),
                                                  .follow_symlinks = !flags.no_follow_symlinks,
                                                  .weight_code = flags.weights.code()});
    decoder.merge_lora();
    decoder.encode_projections(flags.weights.code());
    decoder.fuse_gates();
    LC_REQUIRE(BadInput, tokenizer.vocab_size() <= decoder.config().vocab_size,
               "{}: the tokenizer has {} ids, the model's embedding {}", source.directory.string(),
               tokenizer.vocab_size(), decoder.config().vocab_size);
    models::validate(options.sampling, decoder.config().vocab_size);
    models::ModelIdentity identity;
    if (with_identity) identity = models::identify(source, flags.run);
    if (!flags.ignore_eos) options.eos_ids = eos_ids(defaults, decoder, tokenizer);
    const models::DecodeMode mode = decode_mode(decoder, flags);
    return {std::move(tokenizer), std::move(decoder), mode, std::move(options), std::move(identity)};
}

void write_out(std::string_view text) {
    std::fwrite(text.data(), 1, text.size(), stdout);
    if (std::fflush(stdout) != 0) fail(ErrorKind::Resource, "standard output cannot be written");
}

Speeds speeds_of(const models::Generation& result, size_t prompt_tokens) {
    Speeds speeds;
    if (result.prefill_seconds > 0) speeds.prefill = static_cast<double>(prompt_tokens) / result.prefill_seconds;
    if (result.ids.size() > 1 && result.decode_seconds > 0)
        speeds.decode = static_cast<double>(result.ids.size() - 1) / result.decode_seconds;
    return speeds;
}

void print_stats(const Session& session, const models::Generation& result, size_t prompt_tokens) {
    const Speeds speeds = speeds_of(result, prompt_tokens);
    std::cerr << fmt::format(
        "prefill {} tok/s ({} tokens) | decode {} tok/s ({} tokens) | state {:.2f} MiB | peak memory {:.1f} MiB\n",
        number_or_dash(speeds.prefill), prompt_tokens, number_or_dash(speeds.decode), result.ids.size(),
        static_cast<double>(result.state_bytes) / (1 << 20),
        static_cast<double>(allocator(session.decoder.device()).stats().peak_bytes) / (1 << 20));
}

}  // namespace lc::apps
