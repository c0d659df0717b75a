// Tiny random decoders and ids for tests that need no assets.
#pragma once
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <string>
#include <vector>

#include "core/rng.h"
#include "models/decoder/decoder.h"

namespace lc::test {

// Hidden size 24, four query heads of six dimensions, two KV heads: r = 2. Windows of 4 leave far keys in 20 tokens.
inline models::DecoderConfig tiny_config(bool tied = true, int64_t layers = 2) {
    models::DecoderConfig config;
    config.vocab_size = 40, config.hidden_size = 24, config.intermediate_size = 32, config.num_layers = layers;
    config.num_heads = 4, config.num_kv_heads = 2, config.head_dim = 6, config.max_positions = 256;
    config.tie_embeddings = tied;
    config.rope.theta = 100;
    config.bos_token_ids = {0}, config.eos_token_ids = {1};
    return config;
}

// Weights ten times as large as for training: attention that has preferences, logits that differ.
inline models::Decoder tiny_decoder(const models::DecoderConfig& config, const models::Placement& placement,
                                    uint64_t seed = 3) {
    models::Decoder decoder = models::Decoder::random(config, seed, placement);
    for (models::NamedTensor parameter : decoder.base_parameters()) {
        if (parameter.tensor.rank() == 1) continue;
        std::vector<double> values = parameter.tensor.to_vector<double>();
        for (double& value : values) value *= 10;
        parameter.tensor.copy_from(Tensor::from(values, parameter.tensor.shape()));
    }
    return decoder;
}

inline models::Decoder tiny_decoder(const models::DecoderConfig& config, DType dtype, uint64_t seed = 3) {
    return tiny_decoder(config, models::Placement{.device = {}, .dtype = dtype}, seed);
}

inline models::AttentionSpec tiny_spec() {
    models::AttentionSpec spec;
    spec.window_size = 4;
    return spec;
}

// Moves every feature map and factor away from its start, so that heads, q and k differ.
inline void disturb(const std::vector<models::NamedTensor>& parameters, double scale, uint64_t seed = 11) {
    uint64_t stream = 0;
    for (models::NamedTensor parameter : parameters) {
        const Random random(seed, stream++);
        std::vector<double> values = parameter.tensor.to_vector<double>();
        for (size_t i = 0; i < values.size(); ++i) values[i] += static_cast<float>(scale * random.normal(i));
        parameter.tensor.copy_from(Tensor::from(values, parameter.tensor.shape()));
    }
}

inline Tensor tiny_ids(int64_t batch, int64_t length, int64_t vocab = 40, uint64_t seed = 5) {
    std::vector<int32_t> ids(static_cast<size_t>(batch * length));
    const Random random(seed);
    for (size_t i = 0; i < ids.size(); ++i)
        ids[i] = static_cast<int32_t>(random.below(static_cast<uint64_t>(vocab), i));
    return Tensor::from(ids, {batch, length});
}

// max |a - b| / max |b|
inline double relative_error(const Tensor& a, const Tensor& b) {
    const auto x = a.to_vector<double>(), y = b.to_vector<double>();
    double difference = 0, largest = 0;
    for (size_t i = 0; i < x.size(); ++i) {
        difference = std::max(difference, std::abs(x[i] - y[i]));
        largest = std::max(largest, std::abs(y[i]));
    }
    return difference / largest;
}

// A fresh directory that goes away with the object.
class TemporaryDirectory {
  public:
    TemporaryDirectory() {
        const auto* info = testing::UnitTest::GetInstance()->current_test_info();
        static int count = 0;
        std::string name = fmt::format("lolcats-{}-{}-{}-{}", info->test_suite_name(), info->name(), getpid(), count++);
        std::replace(name.begin(), name.end(), '/', '-');  // names of parametrized tests
        path_ = std::filesystem::path(testing::TempDir()) / name;
        std::filesystem::remove_all(path_);
        std::filesystem::create_directories(path_);
    }
    ~TemporaryDirectory() {
        std::error_code ignored;
        std::filesystem::remove_all(path_, ignored);
    }
    TemporaryDirectory(const TemporaryDirectory&) = delete;
    TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
    const std::filesystem::path& path() const { return path_; }

  private:
    std::filesystem::path path_;
};

// The message of the Error of this kind that `body` throws.
template <class F>
std::string error_of(ErrorKind kind, F&& body) {
    try {
        body();
    } catch (const Error& error) {
        EXPECT_EQ(static_cast<int>(error.kind()), static_cast<int>(kind)) << error.what();
        return error.what();
    }
    ADD_FAILURE() << "no error was thrown";
    return {};
}

}  // namespace lc::test
