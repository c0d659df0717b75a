#include "core/layout.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <vector>

namespace lc {
namespace {

// Offsets of all elements in row-major order of the index: what a layout means, by enumeration.
std::vector<int64_t> offsets(const Layout& layout) {
    std::vector<int64_t> result;
    std::vector<int64_t> index(static_cast<size_t>(layout.rank()), 0);
    const int64_t total = layout.numel();
    for (int64_t n = 0; n < total; ++n) {
        int64_t offset = layout.offset;
        for (int axis = 0; axis < layout.rank(); ++axis) offset += index[axis] * layout.strides[axis];
        result.push_back(offset);
        for (int axis = layout.rank() - 1; axis >= 0; --axis) {
            if (++index[axis] < layout.shape[axis]) break;
            index[axis] = 0;
        }
    }
    return result;
}

bool is_range(std::vector<int64_t> values) {  // the values are 0..n-1 shifted, in any order, each once
    std::sort(values.begin(), values.end());
    for (size_t i = 1; i < values.size(); ++i)
        if (values[i] != values[i - 1] + 1) return false;
    return true;
}

// Layouts of every kind: contiguous, permuted, sliced, broadcast, with axes of 1 and of 0.
std::vector<Layout> samples() {
    const Layout a = Layout::contiguous({2, 3, 4}), b = Layout::contiguous({4, 6}),
                 c = Layout::contiguous({2, 3, 2, 5});
    return {Layout::contiguous({}),
            Layout::contiguous({1}),
            Layout::contiguous({7}),
            a,
            b,
            c,
            Layout::contiguous({3, 1, 2, 1}),
            a.permute({2, 0, 1}),
            a.permute({0, 2, 1}),
            c.permute({0, 2, 1, 3}),
            b.permute({1, 0}),
            a.slice(2, 1, 2),
            a.slice(1, 0, 1),
            b.slice(0, 1, 3),
            c.slice(3, 0, 4).permute({1, 0, 2, 3}),
            Layout::contiguous({3, 1}).expand({3, 4}),
            Layout::contiguous({4}).expand({2, 3, 4}),
            Layout::contiguous({2, 0, 3}),
            a.slice(0, 1, 0)};
}

// All shapes of up to three axes with the given number of elements.
std::vector<Shape> shapes_of(int64_t count) {
    std::vector<Shape> shapes;
    for (int64_t i = 1; i <= count; ++i) {
        if (count % i) continue;
        shapes.push_back({i, count / i});
        for (int64_t j = 1; j <= count / i; ++j)
            if (count / i % j == 0) shapes.push_back({i, j, count / i / j});
    }
    shapes.push_back({count});
    return shapes;
}

TEST(Layout, ContiguousIsTheRowMajorEnumeration) {
    for (const Shape& shape : {Shape{}, Shape{5}, Shape{2, 3, 4}, Shape{1, 3, 1}}) {
        const Layout layout = Layout::contiguous(shape);
        const std::vector<int64_t> got = offsets(layout);
        for (size_t i = 0; i < got.size(); ++i) EXPECT_EQ(got[i], static_cast<int64_t>(i)) << shape.str();
        EXPECT_TRUE(layout.is_contiguous());
    }
}

TEST(Layout, PropertiesAgreeWithEnumeration) {
    for (const Layout& layout : samples()) {
        const std::vector<int64_t> all = offsets(layout);
        bool contiguous = true;
        for (size_t i = 0; i < all.size(); ++i)
            contiguous = contiguous && all[i] == layout.offset + static_cast<int64_t>(i);
        EXPECT_EQ(layout.is_contiguous(), contiguous) << layout.shape.str() << layout.strides.str();
        EXPECT_EQ(layout.is_dense(), is_range(all)) << layout.shape.str() << layout.strides.str();
    }
}

TEST(Layout, ReshapeKeepsTheEnumerationOrRefuses) {
    int views = 0, refusals = 0;
    for (const Layout& layout : samples()) {
        if (layout.numel() == 0) continue;
        for (const Shape& shape : shapes_of(layout.numel())) {
            const auto reshaped = layout.reshape(shape);
            if (reshaped) {
                views++;
                EXPECT_EQ(reshaped->shape, shape);
                EXPECT_EQ(offsets(*reshaped), offsets(layout))
                    << layout.shape.str() << layout.strides.str() << " to " << shape.str();
            } else {
                refusals++;
                EXPECT_FALSE(layout.is_contiguous());
            }
        }
        EXPECT_TRUE(layout.reshape(layout.shape)) << "its own shape can always be expressed";
    }
    EXPECT_GT(views, 50);
    EXPECT_GT(refusals, 10);
}

// A refusal is right only if no strides exist at all: try the only candidates, differences of neighbouring offsets.
TEST(Layout, ReshapeRefusesOnlyWhatNoStridesExpress) {
    for (const Layout& layout : samples()) {
        if (layout.numel() == 0) continue;
        const std::vector<int64_t> all = offsets(layout);
        for (const Shape& shape : shapes_of(layout.numel())) {
            if (layout.reshape(shape)) continue;
            Layout candidate = Layout::contiguous(shape);
            for (int axis = 0; axis < shape.rank(); ++axis)
                if (shape[axis] > 1) {
                    const int64_t step = Layout::contiguous(shape).strides[axis];
                    candidate.strides[axis] = all[static_cast<size_t>(step)] - all[0];
                }
            candidate.offset = layout.offset;
            EXPECT_NE(offsets(candidate), all) << layout.shape.str() << layout.strides.str() << " to " << shape.str();
        }
    }
}

TEST(Layout, ReshapeInfersOneDimension) {
    const Layout layout = Layout::contiguous({2, 3, 4});
    EXPECT_EQ(layout.reshape({-1, 4})->shape, (Shape{6, 4}));
    EXPECT_THROW((void)layout.reshape({-1, -1}), Error);
    EXPECT_THROW((void)layout.reshape({-1, 5}), Error);
    EXPECT_THROW((void)layout.reshape({5, 5}), Error);
}

TEST(Layout, PermuteMovesIndices) {
    const Layout layout = Layout::contiguous({2, 3, 4}).slice(2, 1, 3);
    const Layout moved = layout.permute({2, 0, 1});
    for (int64_t i = 0; i < 2; ++i)
        for (int64_t j = 0; j < 3; ++j)
            for (int64_t k = 0; k < 3; ++k) EXPECT_EQ(moved.at(k, i, j), layout.at(i, j, k));
    EXPECT_THROW((void)layout.permute({0, 1}), Error);
    EXPECT_THROW((void)layout.permute({0, 1, 1}), Error);
    EXPECT_THROW((void)layout.permute({0, 1, 3}), Error);
}

TEST(Layout, SliceShiftsIndices) {
    const Layout layout = Layout::contiguous({4, 5}).permute({1, 0});
    const Layout part = layout.slice(-2, 1, 3).slice(1, 2, 2);
    EXPECT_EQ(part.shape, (Shape{3, 2}));
    for (int64_t i = 0; i < 3; ++i)
        for (int64_t j = 0; j < 2; ++j) EXPECT_EQ(part.at(i, j), layout.at(i + 1, j + 2));
    EXPECT_THROW((void)layout.slice(0, 3, 3), Error);
    EXPECT_THROW((void)layout.slice(0, -1, 1), Error);
    EXPECT_THROW((void)layout.slice(2, 0, 1), Error);
}

TEST(Layout, ExpandRepeats) {
    const Layout layout = Layout::contiguous({3, 1}).expand({2, 3, 4});
    for (int64_t i = 0; i < 2; ++i)
        for (int64_t j = 0; j < 3; ++j)
            for (int64_t k = 0; k < 4; ++k) EXPECT_EQ(layout.at(i, j, k), j);
    EXPECT_THROW((void)Layout::contiguous({3}).expand({4}), Error);
    EXPECT_THROW((void)Layout::contiguous({2, 3}).expand({3}), Error);
}

TEST(Layout, DenseLikeKeepsTheOrderOfAxes) {
    for (const Layout& layout : samples()) {
        const Layout dense = layout.dense_like();
        const std::vector<int64_t> got = offsets(dense), given = offsets(layout);
        EXPECT_EQ(dense.shape, layout.shape);
        EXPECT_TRUE(is_range(got)) << layout.shape.str() << layout.strides.str();
        EXPECT_EQ(std::set<int64_t>(got.begin(), got.end()).size(), got.size());
        EXPECT_TRUE(got.empty() || *std::min_element(got.begin(), got.end()) == 0);
        if (std::set<int64_t>(given.begin(), given.end()).size() != given.size())
            continue;  // broadcast: no order to keep
        for (size_t i = 0; i < got.size(); ++i)
            for (size_t j = 0; j < i; ++j)
                EXPECT_EQ(got[i] < got[j], given[i] < given[j]) << layout.shape.str() << layout.strides.str();
    }
}

TEST(Layout, LimitsAreRefusedInWords) {
    EXPECT_THROW(numel_of({int64_t{1} << 40, int64_t{1} << 40}), Error);
    EXPECT_THROW(numel_of({2, -1}), Error);
    EXPECT_THROW((Shape{1, 1, 1, 1, 1, 1, 1}), Error);
    EXPECT_EQ((Shape{2, 8, 128}).str(), "[2,8,128]");
    EXPECT_EQ((Shape{2, 8, 128})[-1], 128);
}

}  // namespace
}  // namespace lc
