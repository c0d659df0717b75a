// One step for a whole batch is the step of each sequence, wherever it is.
#include "models/generation/decode_step.h"

#include <gtest/gtest.h>

#include "tests/models/generation_tools.h"

namespace lc::models {
namespace {

using test::decoder_with_text;
using test::DecodeVariant;
using test::prompt_of;
using test::relative_error;

class DecodeStepOf : public testing::TestWithParam<DecodeVariant> {};

// Rows of one state that have read prompts of different lengths, and one that has read nothing and stays idle.
TEST_P(DecodeStepOf, ServesRowsAtPositionsOfTheirOwn) {
    const Decoder decoder = decoder_with_text(GetParam().spec);
    const Generator generator(decoder);
    DecodeState all(decoder, GetParam().mode.mode, 4);
    const std::vector<int64_t> lengths = {5, 0, 17, 8};
    std::vector<DecodeState> rows, apart;
    for (int64_t i = 0; i < 4; ++i) {
        rows.push_back(all.row(i));
        apart.emplace_back(decoder, GetParam().mode.mode);
        const int64_t length = lengths[static_cast<size_t>(i)];
        if (length == 0) continue;
        const Tensor prompt = Tensor::from(prompt_of(length, 3), {1, length});
        generator.feed(rows.back(), prompt), generator.feed(apart.back(), prompt);
    }
    std::vector<int64_t> positions = {5, -1, 17, 8};
    for (int32_t token = 0; token < 20; ++token) {
        const Tensor logits =
            generator.step_rows(all, Tensor::from(std::vector<int32_t>{token, 0, 7, token}, {4, 1}), positions);
        for (const int64_t i : {0, 2, 3}) {
            const Tensor id = Tensor::from(std::vector<int32_t>{i == 2 ? 7 : token}, {1, 1});
            EXPECT_LT(relative_error(logits.sliced(0, i, 1), generator.advance(apart[static_cast<size_t>(i)], id)),
                      1e-5)
                << "row " << i << ", token " << token;
            ++positions[static_cast<size_t>(i)];
        }
    }
    for (const NamedTensor& tensor : rows[1].tensors())
        if (tensor.name.ends_with(".s")) {
            for (const float value : tensor.tensor.to_vector<float>())
                ASSERT_EQ(value, 0) << "an idle row's state stays";
        }
}

TEST_P(DecodeStepOf, RefusesPositionsBeyondTheModel) {
    const Decoder decoder = decoder_with_text(GetParam().spec);
    DecodeState state(decoder, GetParam().mode.mode);
    const std::vector<int64_t> beyond = {decoder.config().max_positions};
    EXPECT_THROW(Generator(decoder).step_rows(state, Tensor::from(std::vector<int32_t>{1}, {1, 1}), beyond), Error);
}

// Rows at positions far apart, over a growth of the memory that softmax layers need.
TEST_P(DecodeStepOf, GoesOnWhenKeysNeedMoreRoom) {
    const Decoder decoder = decoder_with_text(GetParam().spec);
    const Generator generator(decoder);
    DecodeState all(decoder, GetParam().mode.mode, 2), apart(decoder, GetParam().mode.mode);
    DecodeState far = all.row(1);
    all.reserve(10);
    const Tensor prompt = Tensor::from(prompt_of(250, 3), {1, 250});
    generator.feed(far, prompt), generator.feed(apart, prompt);
    for (int64_t position = 250; position < 262; ++position) {
        const Tensor logits = generator.step_rows(all, Tensor::from(std::vector<int32_t>{5, 7}, {2, 1}),
                                                  std::vector<int64_t>{position - 250, position});
        const Tensor id = Tensor::from(std::vector<int32_t>{7}, {1, 1});
        EXPECT_LT(relative_error(logits.sliced(0, 1, 1), generator.advance(apart, id)), 1e-5) << position;
    }
}

INSTANTIATE_TEST_SUITE_P(Kinds, DecodeStepOf, testing::ValuesIn(test::decode_variants()),
                         [](const auto& variant) { return std::string(variant.param.name); });

}  // namespace
}  // namespace lc::models
