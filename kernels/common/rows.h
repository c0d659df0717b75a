// Tensors [..., C] seen as matrices of rows, which is what most ops of a network work on. A tensor whose rows are
// evenly spaced and gap-free within is used where it lies; any other goes through a row-major copy.
#pragma once
#include <memory>
#include <optional>
#include <vector>

#include "core/allocator.h"
#include "kernels/common/grad_write.h"

namespace lc::kernels {

// Uninitialized workspace from the caching allocator.
template <class T>
class Scratch {
  public:
    Scratch() = default;
    explicit Scratch(int64_t count)
        : block_(allocator(Device{}).allocate(count * static_cast<int64_t>(sizeof(T)), current_stream(Device{}))) {}
    T* data() const { return reinterpret_cast<T*>(block_.get()); }
    T& operator[](int64_t i) const { return data()[i]; }

  private:
    std::shared_ptr<std::byte> block_;
};

template <class T>
struct Rows {
    T* data = nullptr;
    int64_t rows = 0, columns = 0, stride = 0;
    T* row(int64_t r) const { return data + r * stride; }
    T& operator()(int64_t r, int64_t c) const { return data[r * stride + c]; }
};

// Product of all dimensions but the last.
inline int64_t row_count(const Shape& shape) {
    int64_t rows = 1;
    for (int axis = 0; axis + 1 < shape.rank(); ++axis) rows *= shape[axis];
    return rows;
}

// The layout [rows, C] of a view [..., C] (rank 0 is one row of one), if its rows can be used in place.
inline std::optional<Layout> row_layout(const TensorView& view) {
    const int64_t columns = view.rank() == 0 ? 1 : view.size(-1);
    const int64_t rows = row_count(view.shape());
    std::optional<Layout> layout = view.layout.reshape({rows, columns});
    if (!layout || (columns > 1 && layout->strides[1] != 1)) return std::nullopt;
    if (rows <= 1) layout->strides[0] = std::max<int64_t>(columns, 1);  // a lone row has any stride; BLAS wants ld >= C
    if (layout->strides[0] < columns) return std::nullopt;              // broadcast rows
    return layout;
}

namespace detail {
template <class T>
Rows<T> rows_at(T* first, const Layout& layout) {
    return {first, layout.shape[0], layout.shape[1], layout.strides[0]};
}
template <class T>
Rows<T> fresh_rows(const Shape& shape, const Scratch<std::remove_const_t<T>>& scratch) {
    const int64_t columns = shape.rank() == 0 ? 1 : shape[-1], rows = row_count(shape);
    return {scratch.data(), rows, columns, std::max<int64_t>(columns, 1)};
}
}  // namespace detail

// An input.
template <class T>
class InRows : public Rows<const T> {
  public:
    explicit InRows(const TensorView& view) {
        if (const auto layout = row_layout(view)) {
            static_cast<Rows<const T>&>(*this) = detail::rows_at(static_cast<const T*>(view.data<T>()), *layout);
            return;
        }
        copy_ = Scratch<T>(view.numel());
        static_cast<Rows<const T>&>(*this) = detail::fresh_rows<const T>(view.shape(), copy_);
        copy_strided(view,
                     {reinterpret_cast<std::byte*>(copy_.data()), Layout::contiguous(view.shape()), kDType<T>, {}});
    }

  private:
    Scratch<T> copy_;
};

// An input of any shape as one row-major array.
template <class T>
class FlatInput {
  public:
    explicit FlatInput(const TensorView& view) {
        if (view.layout.is_contiguous()) {
            data_ = view.data<T>();
            return;
        }
        copy_ = Scratch<T>(view.numel());
        copy_strided(view,
                     {reinterpret_cast<std::byte*>(copy_.data()), Layout::contiguous(view.shape()), kDType<T>, {}});
        data_ = copy_.data();
    }
    const T& operator[](int64_t i) const { return data_[i]; }
    const T* data() const { return data_; }

  private:
    Scratch<T> copy_;
    const T* data_ = nullptr;
};

// An output or a gradient. Write every element, by put() or with beta(), then call finish().
template <class T>
class OutRows : public Rows<T> {
  public:
    explicit OutRows(const TensorView& view) : OutRows(GradSlot{view}) {}
    explicit OutRows(const GradSlot& slot) : slot_(slot) {
        if (!slot) return;
        if (const auto layout = row_layout(slot.view)) {
            static_cast<Rows<T>&>(*this) = detail::rows_at(slot.view.template data<T>(), *layout);
            accumulate_ = slot.accumulate();
            return;
        }
        copy_ = Scratch<T>(slot.view.numel());
        static_cast<Rows<T>&>(*this) = detail::fresh_rows<T>(slot.view.shape(), copy_);
    }
    explicit operator bool() const { return static_cast<bool>(slot_); }  // false: nobody wants it
    T beta() const { return accumulate_ ? T{1} : T{0}; }
    void put(int64_t r, int64_t c, T value) const {
        T& target = (*this)(r, c);
        target = accumulate_ ? target + value : value;
    }
    void finish() const {
        if (!copy_.data()) return;
        store_gradient<T>(
            {reinterpret_cast<std::byte*>(copy_.data()), Layout::contiguous(slot_.view.shape()), kDType<T>, {}}, slot_);
    }

  private:
    GradSlot slot_;
    Scratch<T> copy_;
    bool accumulate_ = false;
};

// db (+)= sum over the rows of dy. Each thread owns some columns and walks all rows in order: the bits do not depend on the
// number of threads.
inline void sum_rows(const Rows<const float>& dy, const OutRows<float>& db) {
    parallel_for(dy.columns, 64, [&](int64_t begin, int64_t end) {
        std::vector<float> sum(static_cast<size_t>(end - begin));
        for (int64_t r = 0; r < dy.rows; ++r)
            for (int64_t o = begin; o < end; ++o) sum[o - begin] += dy(r, o);
        for (int64_t o = begin; o < end; ++o) db.put(0, o, sum[o - begin]);
    });
}

}  // namespace lc::kernels
