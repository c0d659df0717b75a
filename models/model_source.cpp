#include "models/model_source.h"

#include "io/file.h"
#include "io/gguf.h"
#include "io/hf_config.h"
#include "models/export.h"
#include "models/run.h"

namespace lc::models {

Decoder load_model(const ModelSource& source, const LoadOptions& options) {
    const std::optional<LinearizedInfo> linearized = linearized_info(source.directory);
    if (source.random_seed) {
        DecoderConfig config = decoder_config_from(io::load_hf_config(source.directory));
        config.ignore_sliding_window = source.ignore_sliding_window;
        Decoder decoder = Decoder::random(config, *source.random_seed, options.placement, Decoder::Weights::Frozen);
        if (linearized) decoder.linearize(linearized->attention, *source.random_seed);
        return decoder;
    }
    LoadOptions own = options;
    own.ignore_sliding_window = source.ignore_sliding_window;
    Decoder decoder = Decoder::load(source.directory, own);
    if (linearized) apply_linearized(decoder, *linearized);
    return decoder;
}

Decoder load_model(const ModelSource& source, const std::filesystem::path& run, const LoadOptions& options) {
    Decoder decoder = load_model(source, options);
    if (run.empty()) return decoder;
    LC_REQUIRE(BadInput, !decoder.attention(), "{}: is linearized already (config.json has 'lolcats'): needs no --run",
               source.directory.string());
    apply_run(decoder, run, hash_of(source));
    return decoder;
}

AttentionMode mode_of(const Decoder& decoder) {
    return decoder.attention() ? AttentionMode::Linearized : AttentionMode::Softmax;
}

std::string hash_of(const ModelSource& source) {
    if (!source.random_seed) return model_hash(source.directory);
    const bool gguf = io::is_gguf(source.directory);
    const std::string config = io::xxh3_128_hex_of_file(gguf ? source.directory : source.directory / "config.json");
    return io::xxh3_128_hex(fmt::format("random {} {}", *source.random_seed, config));
}

}  // namespace lc::models
