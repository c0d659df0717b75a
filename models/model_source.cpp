#include "models/model_source.h"

#include "io/file.h"
#include "io/hf_config.h"
#include "models/run.h"

namespace lc::models {

Decoder load_model(const ModelSource& source, const LoadOptions& options) {
    if (!source.random_seed) return Decoder::load(source.directory, options);
    const DecoderConfig config = decoder_config_from(io::load_hf_config(source.directory));
    return Decoder::random(config, *source.random_seed, options.placement, Decoder::Weights::Frozen);
}

std::string hash_of(const ModelSource& source) {
    if (!source.random_seed) return model_hash(source.directory);
    const std::string config = io::xxh3_128_hex_of_file(source.directory / "config.json");
    return io::xxh3_128_hex(fmt::format("random {} {}", *source.random_seed, config));
}

}  // namespace lc::models
