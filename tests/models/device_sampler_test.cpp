// What draws beside the model draws what the host would.
#include "models/generation/device_sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "tests/models/tiny.h"

namespace lc::models {
namespace {

constexpr int64_t kSlots = 3, kVocab = 50;

Tensor logits_of(uint64_t step) {
    std::vector<float> logits(static_cast<size_t>(kSlots * kVocab));
    const Random random(7, step);
    for (size_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<float>(2 * random.normal(i));
    return Tensor::from(logits, {kSlots, kVocab});
}

SamplingOptions options_of(int64_t slot) {
    SamplingOptions o{.logit_bias = {}, .seed = 4, .request = static_cast<uint64_t>(slot)};
    if (slot == 0) o.repetition_penalty = 1.5, o.frequency_penalty = 0.4;
    if (slot == 1) o.temperature = 0, o.logit_bias = {{3, 4.0}, {3, 2.0}, {5, -INFINITY}}, o.presence_penalty = 5;
    if (slot == 2) o.top_k = 7, o.top_p = 0.8;
    return o;
}

// Three sequences, one of which pauses; each goes on as if the host had drawn for it alone.
TEST(DeviceSampler, DrawsWhatTheHostWould) {
    DeviceSampler sampler(kSlots, kVocab, Device{});
    const std::vector<int32_t> prompt = {1, 2, 3, 3};
    std::vector<std::vector<int32_t>> generated(kSlots);
    const auto expected = [&](int64_t slot, const Tensor& logits, int64_t position) {
        return sample(logits.sliced(0, slot, 1).to_vector<float>(), {prompt, generated[static_cast<size_t>(slot)]},
                      options_of(slot), position);
    };
    std::vector<int64_t> positions;
    for (int64_t slot = 0; slot < kSlots; ++slot) {
        sampler.assign(slot, options_of(slot), {prompt, {}});
        const int32_t id = sampler.draw_first(slot, logits_of(0).sliced(0, slot, 1), 3);
        ASSERT_EQ(id, expected(slot, logits_of(0), 4));
        generated[static_cast<size_t>(slot)].push_back(id), positions.push_back(4);
    }
    for (uint64_t step = 1; step < 40; ++step) {
        std::vector<int64_t> now = positions;
        if (step % 5 == 0) now[step % 3] = -1;
        const std::vector<int32_t> before = sampler.ids().to_vector<int32_t>();
        sampler.draw(logits_of(step), Tensor::from(now, {kSlots}));
        sampler.post();
        const std::span<const kernels::SampleResult> results = sampler.collect();
        const std::vector<int32_t> ids = sampler.ids().to_vector<int32_t>();
        for (size_t slot = 0; slot < kSlots; ++slot) {
            if (now[slot] < 0) {
                EXPECT_EQ(ids[slot], before[slot]) << "a sequence that pauses keeps its token";
                continue;
            }
            const int64_t position = ++positions[slot];
            ASSERT_EQ(id_of(results[slot], position), expected(static_cast<int64_t>(slot), logits_of(step), position));
            ASSERT_EQ(ids[slot], results[slot].id);
            generated[slot].push_back(ids[slot]);
        }
    }
    EXPECT_EQ(std::count(generated[1].begin(), generated[1].end(), 5), 0) << "banned";
}

TEST(DeviceSampler, ResultsComeInOrderAndTablesCountAsANewVersion) {
    DeviceSampler sampler(kSlots, kVocab, Device{});
    const int64_t version = sampler.version();
    sampler.assign(2, {.temperature = 0, .logit_bias = {}}, {});
    EXPECT_EQ(sampler.version(), version);
    const Tensor positions = Tensor::full({kSlots}, 0, DType::i64);
    std::vector<int32_t> first, second;
    sampler.draw(logits_of(1), positions), first = sampler.ids().to_vector<int32_t>(), sampler.post();
    sampler.draw(logits_of(2), positions), second = sampler.ids().to_vector<int32_t>(), sampler.post();
    ASSERT_NE(first, second);
    EXPECT_THROW(sampler.post(), Error);
    EXPECT_EQ(sampler.posted(), 2);
    EXPECT_EQ(sampler.collect()[0].id, first[0]);
    EXPECT_EQ(sampler.collect()[0].id, second[0]);
    EXPECT_THROW(sampler.collect(), Error);
    sampler.assign(0, options_of(1), {});
    EXPECT_GT(sampler.version(), version);
    sampler.draw(logits_of(1), positions);
    EXPECT_EQ(sampler.ids().to_vector<int32_t>()[2], first[2]) << "tables of one slot are nothing to the others";
}

TEST(DeviceSampler, FaultsAreTheirOwn) {
    DeviceSampler sampler(2, 4, Device{});
    sampler.assign(1, {.logit_bias = {{0, -INFINITY}, {1, -INFINITY}, {2, -INFINITY}, {3, -INFINITY}}}, {});
    sampler.draw(Tensor::from(std::vector<float>{1, 2, NAN, 4, 1, 2, 3, 4}, {2, 4}), Tensor::full({2}, 5, DType::i64));
    sampler.post();
    const auto results = sampler.collect();
    EXPECT_THAT(test::error_of(ErrorKind::Numerics, [&] { id_of(results[0], 6); }),
                testing::HasSubstr("token 2 is NaN"));
    EXPECT_THAT(test::error_of(ErrorKind::Usage, [&] { id_of(results[1], 6); }), testing::HasSubstr("position 6"));
    EXPECT_EQ(sampler.ids().to_vector<int32_t>(), (std::vector<int32_t>{0, 0}));
}

}  // namespace
}  // namespace lc::models
