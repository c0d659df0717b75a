#include "core/layout.h"

#include <algorithm>
#include <limits>
#include <vector>

namespace lc {

Dims::Dims(std::span<const int64_t> values) {
    LC_CHECK(values.size() <= kMaxRank, "rank {} exceeds the maximum of {}", values.size(), kMaxRank);
    std::copy(values.begin(), values.end(), values_.begin());
    rank_ = static_cast<int>(values.size());
}

void Dims::push_back(int64_t value) {
    LC_CHECK(rank_ < kMaxRank, "rank {} exceeds the maximum of {}", rank_ + 1, kMaxRank);
    values_[rank_++] = value;
}

bool Dims::operator==(const Dims& other) const { return std::equal(begin(), end(), other.begin(), other.end()); }

std::string Dims::str() const { return fmt::format("[{}]", fmt::join(begin(), end(), ",")); }

int64_t numel_of(const Shape& shape) {
    int64_t count = 1;
    for (int64_t n : shape) {
        LC_CHECK(n >= 0, "shape {} has a negative dimension", shape);
        LC_CHECK(n == 0 || count <= std::numeric_limits<int64_t>::max() / n, "shape {} has too many elements", shape);
        count *= n;
    }
    return count;
}

Layout Layout::contiguous(const Shape& shape) {
    numel_of(shape);  // refuses what does not fit
    Layout layout{shape, shape, 0};
    int64_t stride = 1;
    for (int i = shape.rank() - 1; i >= 0; --i) {
        layout.strides[i] = stride;
        stride *= std::max<int64_t>(shape[i], 1);
    }
    return layout;
}

bool Layout::is_contiguous() const {
    int64_t expected = 1;
    for (int i = rank() - 1; i >= 0; --i) {
        if (shape[i] == 0) return true;
        if (shape[i] != 1 && strides[i] != expected) return false;
        expected *= shape[i];
    }
    return true;
}

namespace {
// Axes longer than 1, outermost (largest stride) first; equal strides keep their order.
std::vector<int> axes_by_stride(const Layout& layout) {
    std::vector<int> axes;
    for (int i = 0; i < layout.rank(); ++i)
        if (layout.shape[i] != 1) axes.push_back(i);
    std::stable_sort(axes.begin(), axes.end(), [&](int a, int b) { return layout.strides[a] > layout.strides[b]; });
    return axes;
}
}  // namespace

bool Layout::is_dense() const {
    if (numel() == 0) return true;
    const std::vector<int> axes = axes_by_stride(*this);
    int64_t expected = 1;
    for (auto axis = axes.rbegin(); axis != axes.rend(); ++axis) {
        if (strides[*axis] != expected) return false;
        expected *= shape[*axis];
    }
    return true;
}

Layout Layout::dense_like() const {
    Layout result = contiguous(shape);
    for (int i = 0; i < rank(); ++i)
        if (shape[i] != 1 && strides[i] == 0) return result;  // a broadcast axis has no order in memory
    const std::vector<int> axes = axes_by_stride(*this);
    int64_t stride = 1;
    for (auto axis = axes.rbegin(); axis != axes.rend(); ++axis) {
        result.strides[*axis] = stride;
        stride *= std::max<int64_t>(shape[*axis], 1);
    }
    return result;
}

Layout Layout::permute(std::initializer_list<int> axes) const {
    LC_CHECK(static_cast<int>(axes.size()) == rank(), "permute of {} needs {} axes, got {}", shape, rank(), axes.size());
    Layout result{{}, {}, offset};
    unsigned seen = 0;
    for (int axis : axes) {
        LC_CHECK(axis >= 0 && axis < rank() && !(seen & (1u << axis)), "permute of {}: axis {} is out of range or repeated",
                 shape, axis);
        seen |= 1u << axis;
        result.shape.push_back(shape[axis]);
        result.strides.push_back(strides[axis]);
    }
    return result;
}

Layout Layout::slice(int axis, int64_t start, int64_t length) const {
    if (axis < 0) axis += rank();
    LC_CHECK(axis >= 0 && axis < rank(), "slice of {}: no axis {}", shape, axis);
    LC_CHECK(start >= 0 && length >= 0 && start <= shape[axis] && length <= shape[axis] - start,
             "slice of {} on axis {}: [{}, {}) is out of range", shape, axis, start, start + length);
    Layout result = *this;
    result.offset += start * strides[axis];
    result.shape[axis] = length;
    return result;
}

Layout Layout::expand(const Shape& target) const {
    LC_CHECK(target.rank() >= rank(), "cannot expand {} to {}", shape, target);
    Layout result{target, target, offset};
    const int lead = target.rank() - rank();
    for (int i = 0; i < target.rank(); ++i) {
        const bool fresh = i < lead;
        LC_CHECK(fresh || shape[i - lead] == target[i] || shape[i - lead] == 1, "cannot expand {} to {}", shape, target);
        result.strides[i] = fresh || (shape[i - lead] == 1 && target[i] != 1) ? 0 : strides[i - lead];
    }
    return result;
}

std::optional<Layout> Layout::reshape(Shape target) const {
    int64_t known = 1;
    int inferred = -1;
    for (int i = 0; i < target.rank(); ++i) {
        if (target[i] == -1) {
            LC_CHECK(inferred < 0, "reshape of {} to {}: more than one -1", shape, target);
            inferred = i;
        } else {
            known *= target[i];
        }
    }
    if (inferred >= 0) {
        LC_CHECK(known > 0 && numel() % known == 0, "reshape of {} to {}: sizes do not divide", shape, target);
        target[inferred] = numel() / known;
    }
    LC_CHECK(numel_of(target) == numel(), "reshape of {} to {}: {} elements against {}", shape, target, numel(),
             numel_of(target));
    Layout result = contiguous(target);
    result.offset = offset;
    if (numel() == 0 || is_contiguous()) return result;

    // Walk both shapes from the left; each group of old axes with equal product must be one strided run.
    int i = 0, j = 0;
    while (i < rank() && j < target.rank()) {
        int64_t old_size = shape[i], new_size = target[j];
        int i_end = i + 1, j_end = j + 1;
        while (old_size != new_size) {
            if (old_size < new_size) old_size *= shape[i_end++];
            else new_size *= target[j_end++];
        }
        int last = -1;  // innermost axis of the group that is longer than 1
        for (int a = i_end - 1; a >= i; --a) {
            if (shape[a] == 1) continue;
            if (last >= 0 && strides[a] != strides[last] * shape[last]) return std::nullopt;
            last = a;
        }
        int64_t stride = 1;
        for (int a = i_end - 1; a >= i; --a)
            if (shape[a] != 1) {
                stride = strides[a];
                break;
            }
        for (int b = j_end - 1; b >= j; --b) {
            result.strides[b] = stride;
            stride *= target[b];
        }
        i = i_end;
        j = j_end;
    }
    return result;
}

}  // namespace lc
