#include "models/generation/identity.h"

#include "io/feature_maps.h"
#include "io/file.h"

namespace lc::models {

ModelIdentity identify(const ModelSource& source, const std::filesystem::path& run) {
    ModelIdentity identity{.model_hash = hash_of(source), .run_hash = {}};
    if (source.ignore_sliding_window)  // the same weights, another model
        identity.model_hash = io::xxh3_128_hex(identity.model_hash + " without sliding window");
    if (run.empty()) return identity;
    std::string files;
    for (const std::string_view name : {std::string_view(io::kFeatureMapsName), std::string_view("adapter_config.json"),
                                        std::string_view("adapter_model.safetensors")})
        if (std::filesystem::exists(run / name))
            files += fmt::format("{} {}\n", name, io::xxh3_128_hex_of_file(run / name));
    identity.run_hash = io::xxh3_128_hex(files);
    return identity;
}

}  // namespace lc::models
