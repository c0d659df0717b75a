#include "tests/fuzz/targets.h"

#include <algorithm>

namespace lc::fuzz {
namespace {

constexpr Target kTargets[] = {{"safetensors", safetensors},
                               {"index", index},
                               {"gguf", gguf},
                               {"pickle", pickle},
                               {"torch_checkpoint", torch_checkpoint},
                               {"config", config},
                               {"adapter", adapter},
                               {"checkpoint", checkpoint},
                               {"tokenizer_json", tokenizer_json},
                               {"tokenizer_model", tokenizer_model},
                               {"encode", encode},
                               {"dataset", dataset},
                               {"batch", batch},
                               {"conversation", conversation}};

}  // namespace

std::span<const Target> targets() {
    return kTargets;
}

const Target* find_target(std::string_view name) {
    const auto* found = std::ranges::find(kTargets, name, &Target::name);
    return found == std::end(kTargets) ? nullptr : found;
}

}  // namespace lc::fuzz
