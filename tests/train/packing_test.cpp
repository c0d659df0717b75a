#include "train/packing.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>

#include "core/check.h"
#include "train/chunk_stream.h"

namespace lc::train {
namespace {

TokenSample sample(int32_t first, int32_t count, bool labelled = true) {
    TokenSample result;
    for (int32_t i = 0; i < count; ++i) {
        result.ids.push_back(first + i);
        result.labels.push_back(labelled ? first + i : kIgnoreLabel);
    }
    return result;
}

PackedChunks pack(int64_t seq_len, const std::vector<TokenSample>& samples) {
    Packer packer(seq_len);
    for (const TokenSample& s : samples) packer.add(s);
    return packer.finish();
}

// Strictly longer: a buffer of exactly T tokens makes no chunk, so n tokens make ceil(n/T) - 1.
TEST(Packing, ChunkCountIsCeilMinusOne) {
    for (int64_t length : {2, 3, 7, 16})
        for (int32_t tokens = 1; tokens <= 70; ++tokens) {
            const PackedChunks chunks = pack(length, {sample(0, tokens)});
            const int64_t expected = (tokens + length - 1) / length - 1;
            EXPECT_EQ(chunks.size(), expected) << tokens << " tokens, T " << length;
            EXPECT_EQ(chunks.dropped_tokens, tokens - expected * length);
        }
}

TEST(Packing, DoesNotDependOnHowTokensCame) {
    const PackedChunks whole = pack(5, {sample(0, 43)});
    std::vector<TokenSample> pieces;
    for (int32_t i = 0, n = 1; i < 43; i += n, n = std::min(n + 1, 43 - i)) pieces.push_back(sample(i, n));
    const PackedChunks many = pack(5, pieces);
    EXPECT_EQ(whole.ids, many.ids);
    EXPECT_EQ(whole.labels, many.labels);
    for (size_t i = 0; i < whole.ids.size(); ++i) EXPECT_EQ(whole.ids[i], static_cast<int32_t>(i));
}

TEST(Packing, MaskedChunksAreRemovedAndOthersKeepTheirPlace) {
    // chunks of 4: [masked x4] [masked x2, 2 labels] [masked x4], and a remainder of 1
    const PackedChunks chunks = pack(4, {sample(0, 6, false), sample(6, 2), sample(8, 5, false)});
    ASSERT_EQ(chunks.size(), 1);
    EXPECT_EQ(chunks.masked_chunks, 2);
    EXPECT_EQ(chunks.dropped_tokens, 1);
    EXPECT_EQ(std::vector<int32_t>(chunks.ids_of(0).begin(), chunks.ids_of(0).end()),
              (std::vector<int32_t>{4, 5, 6, 7}));
    EXPECT_EQ(chunks.labels, (std::vector<int32_t>{kIgnoreLabel, kIgnoreLabel, 6, 7}));
}

TEST(Packing, SampleLongerThanTheSequenceIsCutNotDropped) {
    const PackedChunks chunks = pack(8, {sample(0, 3), sample(100, 40), sample(0, 3)});
    EXPECT_EQ(chunks.size(), 5);
    EXPECT_EQ(chunks.ids_of(1)[0], 105);
}

TEST(Packing, RefusesASequenceWithNothingToPredict) {
    EXPECT_THROW(Packer(1), Error);
    EXPECT_THROW(Packer(0), Error);
    EXPECT_THROW(Packer(-4), Error);
}

TEST(Packing, FirstLabelOfAChunkCannotBePredicted) {
    EXPECT_EQ(predicted_tokens(std::vector<int32_t>{1, 2, 3}), 2);
    EXPECT_EQ(predicted_tokens(std::vector<int32_t>{1, kIgnoreLabel, kIgnoreLabel}), 0);
    EXPECT_EQ(predicted_tokens(std::vector<int32_t>{kIgnoreLabel, 2, kIgnoreLabel}), 1);
}

TEST(Packing, ShiftedLabelsAskForTheNextToken) {
    const Tensor labels = Tensor::from(std::vector<int32_t>{1, -100, 3, 4, 5, 6}, {2, 3});
    EXPECT_EQ(shifted_labels(labels).to_vector<int32_t>(), (std::vector<int32_t>{-100, 3, -100, 5, 6, -100}));
}

class Stream : public ::testing::Test {
  protected:
    const PackedChunks data_ = pack(4, {sample(0, 4 * 23 + 1)});
};

TEST_F(Stream, EveryEpochIsAPermutationOfItsOwn) {
    ChunkStream stream(data_, 7, true);
    std::set<std::vector<int64_t>> orders;
    for (int64_t epoch = 0; epoch < 5; ++epoch) {
        std::vector<int64_t> order;
        for (int64_t i = 0; i < 23; ++i) order.push_back(stream.chunk_at(epoch * 23 + i));
        orders.insert(order);
        std::ranges::sort(order);
        std::vector<int64_t> all(23);
        std::iota(all.begin(), all.end(), int64_t{0});
        EXPECT_EQ(order, all);
    }
    EXPECT_EQ(orders.size(), 5u);
}

TEST_F(Stream, DependsOnSeedAndPositionOnly) {
    ChunkStream a(data_, 7, true), b(data_, 7, true), other(data_, 8, true);
    for (int i = 0; i < 9; ++i) a.next(5);
    b.seek(45);
    const Batch from_a = a.next(5), from_b = b.next(5);
    EXPECT_EQ(from_a.ids.to_vector<int32_t>(), from_b.ids.to_vector<int32_t>());
    EXPECT_EQ(a.position(), 50);
    EXPECT_EQ(a.epoch(), 2);
    bool differs = false;
    for (int64_t i = 0; i < 23; ++i) differs = differs || other.chunk_at(i) != b.chunk_at(i);
    EXPECT_TRUE(differs);
}

TEST_F(Stream, UnshuffledIsFileOrder) {
    ChunkStream stream(data_, 7, false);
    const Batch batch = stream.next(3);
    EXPECT_EQ(batch.ids.shape(), (Shape{3, 4}));
    EXPECT_EQ(batch.ids.to_vector<int32_t>(), (std::vector<int32_t>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}));
    EXPECT_EQ(batch.predicted, (std::vector<int64_t>{3, 3, 3}));
    EXPECT_EQ(batch.predicted_total(), 9);
}

TEST_F(Stream, RefusesDataWithoutAChunk) {
    const PackedChunks empty = pack(4, {sample(0, 4)});
    EXPECT_THROW(ChunkStream(empty, 1, true), Error);
}

}  // namespace
}  // namespace lc::train
