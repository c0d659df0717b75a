// Tiny models of every family as tests/parity/families.py makes them, and what transformers computes with them
// (tests/golden/families/): weights are a formula, so the files hold results only.
#pragma once
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <string>
#include <vector>

#include "io/hf_config.h"
#include "io/json.h"
#include "models/decoder/decoder.h"

namespace lc::test {

struct Family {
    std::string name;
    models::DecoderConfig config;
    std::vector<int32_t> ids;
    std::vector<double> norms;        // of the logits at each position
    std::vector<double> last_logits;  // the first of the last position
    std::vector<int32_t> greedy;      // continuation
};

inline std::vector<std::string> family_names() {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(LC_SOURCE_DIR "/tests/golden/families"))
        if (entry.path().extension() == ".json") names.push_back(entry.path().stem().string());
    std::sort(names.begin(), names.end());
    return names;
}

inline Family read_family(const std::string& name) {
    const std::string path = LC_SOURCE_DIR "/tests/golden/families/" + name + ".json";
    const io::Json json = io::read_json_file(path);
    return {.name = name,
            .config = models::decoder_config_from(io::parse_hf_config(json["config"], path)),
            .ids = json["ids"].get<std::vector<int32_t>>(),
            .norms = json["norms"].get<std::vector<double>>(),
            .last_logits = json["last_logits"].get<std::vector<double>>(),
            .greedy = json["greedy"].get<std::vector<int32_t>>()};
}

// Element i of the parameter `name`, in [-1, 1) and exact in f32.
inline double family_uniform(const std::string& name, uint32_t i) {
    uint32_t h = 2166136261u;
    for (const char byte : name) h = (h ^ static_cast<uint8_t>(byte)) * 16777619u;
    uint32_t x = h + i;
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    x ^= x >> 16;
    return static_cast<double>(x >> 9) / (1 << 22) - 1;
}

inline models::Decoder family_decoder(const Family& family, const models::Placement& placement,
                                      models::Decoder::Weights weights = models::Decoder::Weights::Frozen) {
    models::Decoder decoder = models::Decoder::random(family.config, 0, placement, weights);
    for (models::NamedTensor parameter : decoder.base_parameters()) {
        const std::string& name = parameter.name;
        const Shape& shape = parameter.tensor.shape();
        double scale = 0.25, shift = 0;
        if (name == "model.embed_tokens.weight")
            scale = family.config.tie_embeddings ? 0.125 : 1;
        else if (shape.rank() == 2)
            scale = std::exp2(std::nearbyint(std::log2(2 / std::sqrt(static_cast<double>(shape[1])))));
        else if (!name.ends_with("bias"))
            shift = 1 - family.config.block.norm_offset;
        std::vector<double> values(static_cast<size_t>(numel_of(shape)));
        for (size_t i = 0; i < values.size(); ++i)
            values[i] = scale * family_uniform(name, static_cast<uint32_t>(i)) + shift;
        parameter.tensor.copy_from(Tensor::from(values, shape));
    }
    return decoder;
}

}  // namespace lc::test
