// Layout: how an n-dimensional index becomes an element offset. A plain value; no memory, no dtype.
//
//   element(i0, i1, ...) = offset + i0*stride0 + i1*stride1 + ...        (strides count elements, not bytes)
//
// Views (permute, slice, reshape) are new layouts over the same storage.
#pragma once
#include <array>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>

#include "core/check.h"

namespace lc {

inline constexpr int kMaxRank = 6;

// A short list of int64: a shape, or strides.
class Dims {
  public:
    constexpr Dims() = default;
    Dims(std::initializer_list<int64_t> values) : Dims(std::span<const int64_t>(values.begin(), values.size())) {}
    explicit Dims(std::span<const int64_t> values);

    int rank() const { return rank_; }
    int64_t operator[](int i) const { return values_[normalize(i)]; }  // negative i counts from the end
    int64_t& operator[](int i) { return values_[normalize(i)]; }
    void push_back(int64_t value);
    const int64_t* begin() const { return values_.data(); }
    const int64_t* end() const { return values_.data() + rank_; }
    bool operator==(const Dims& other) const;
    std::string str() const;  // "[2,8,128]"

  private:
    int normalize(int i) const { return i < 0 ? i + rank_ : i; }
    std::array<int64_t, kMaxRank> values_{};
    int rank_ = 0;
};
using Shape = Dims;

// Product of the dimensions; throws when a dimension is negative or the product leaves int64.
int64_t numel_of(const Shape& shape);

struct Layout {
    Shape shape;
    Dims strides;
    int64_t offset = 0;

    static Layout contiguous(const Shape& shape);

    int rank() const { return shape.rank(); }
    int64_t numel() const { return numel_of(shape); }
    bool is_contiguous() const;
    // True when the elements fill one gap-free range in some order of the axes (e.g. any permutation of a contiguous
    // layout): such a tensor may be copied or filled as one flat array.
    bool is_dense() const;
    // Same shape and order of axes in memory, without gaps and starting at 0: the layout a gradient buffer gets, so that
    // the gradient of a permuted view is again a permuted view. Broadcast (stride 0) axes become real ones.
    Layout dense_like() const;

    Layout permute(std::initializer_list<int> axes) const;     // {0,2,1,3}: new axis i is old axis axes[i]
    Layout slice(int axis, int64_t start, int64_t length) const;
    Layout expand(const Shape& target) const;                  // size-1 axes (and new leading ones) get stride 0
    // One dimension may be -1 (inferred). nullopt when no strides can express it: then a copy is needed.
    std::optional<Layout> reshape(Shape target) const;

    template <class... I>
    int64_t at(I... index) const {
        int axis = 0;
        int64_t result = offset;
        ((result += static_cast<int64_t>(index) * strides[axis++]), ...);
        return result;
    }
    bool operator==(const Layout& other) const = default;
};

}  // namespace lc

template <>
struct fmt::formatter<lc::Dims> : fmt::formatter<std::string> {
    template <class Context>
    auto format(const lc::Dims& dims, Context& context) const {
        return fmt::formatter<std::string>::format(dims.str(), context);
    }
};
