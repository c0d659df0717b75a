// Tensor: a value handle on shared storage with a layout and a dtype. TensorView: what kernels get, without ownership.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/device.h"
#include "core/dtype.h"
#include "core/layout.h"

namespace lc {

// A block of memory. `version` counts in-place writes; the tape compares it with the one it saw when it saved a tensor.
struct Storage {
    std::shared_ptr<std::byte> data;
    int64_t bytes = 0;
    Device device;
    std::atomic<uint64_t> version{0};
};

// Autograd hangs its metadata here; core knows nothing of it.
struct AutogradSlot {
    virtual ~AutogradSlot() = default;
};

// Typed element access for loops: x(b, h, t, d). Bounds are the caller's business. Also holds the raw strides.
template <class T, int Rank>
struct Accessor {
    T* data = nullptr;
    std::array<int64_t, Rank> shape{}, strides{};
    template <class... I>
    LC_HOST_DEVICE T& operator()(I... index) const {
        static_assert(sizeof...(I) == Rank);
        int axis = 0;
        int64_t offset = 0;
        ((offset += static_cast<int64_t>(index) * strides[axis++]), ...);
        return data[offset];
    }
    LC_HOST_DEVICE int64_t size(int axis) const { return shape[axis]; }
};

struct TensorView {
    std::byte* base = nullptr;  // start of the storage; the layout's offset is not yet added
    Layout layout;
    DType dtype = DType::f32;
    Device device;

    explicit operator bool() const { return base != nullptr; }  // an empty view means "absent"
    const Shape& shape() const { return layout.shape; }
    int rank() const { return layout.rank(); }
    int64_t size(int axis) const { return layout.shape[axis]; }
    int64_t stride(int axis) const { return layout.strides[axis]; }
    int64_t numel() const { return layout.numel(); }

    // First element.
    template <class T>
    T* data() const {
        LC_CHECK(dtype == kDType<std::remove_const_t<T>>, "view holds {}, read as {}", name_of(dtype),
                 name_of(kDType<std::remove_const_t<T>>));
        return reinterpret_cast<T*>(base) + layout.offset;
    }
    template <class T, int Rank>
    Accessor<T, Rank> as() const {
        LC_CHECK(rank() == Rank, "view of shape {} read as rank {}", shape(), Rank);
        Accessor<T, Rank> accessor{data<T>(), {}, {}};
        for (int i = 0; i < Rank; ++i) accessor.shape[i] = shape()[i], accessor.strides[i] = layout.strides[i];
        return accessor;
    }
};

class Tensor {
  public:
    Tensor() = default;  // undefined
    Tensor(std::shared_ptr<Storage> storage, Layout layout, DType dtype)
        : storage_(std::move(storage)), layout_(layout), dtype_(dtype) {}

    static Tensor empty(const Shape& shape, DType dtype, Device device = {});
    // Uninitialized, with the axes of `layout` in the same order in memory (see Layout::dense_like).
    static Tensor empty_like(const Layout& layout, DType dtype, Device device = {});
    static Tensor zeros(const Shape& shape, DType dtype, Device device = {});
    static Tensor full(const Shape& shape, double value, DType dtype, Device device = {});
    template <class T>
    static Tensor from(std::span<const T> values, const Shape& shape);
    template <class T>
    static Tensor from(const std::vector<T>& values, const Shape& shape) {
        return from(std::span<const T>(values), shape);
    }

    bool defined() const { return storage_ != nullptr; }
    explicit operator bool() const { return defined(); }
    const Layout& layout() const { return layout_; }
    const Shape& shape() const { return layout_.shape; }
    int rank() const { return layout_.rank(); }
    int64_t size(int axis) const { return layout_.shape[axis]; }
    int64_t numel() const { return layout_.numel(); }
    int64_t nbytes() const { return numel() * size_of(dtype_); }
    DType dtype() const { return dtype_; }
    Device device() const { return storage_ ? storage_->device : Device{}; }
    bool is_contiguous() const { return layout_.is_contiguous(); }
    const std::shared_ptr<Storage>& storage() const { return storage_; }
    uint64_t version() const { return storage_ ? storage_->version.load() : 0; }
    void bump_version() const { storage_->version++; }  // every in-place write calls this

    TensorView view() const;  // empty view when undefined
    template <class T>
    T* data() const { return view().data<T>(); }
    template <class T, int Rank>
    Accessor<T, Rank> as() const { return view().as<T, Rank>(); }
    double item() const;  // the value of a tensor of one element

    // Views and copies that are not on the tape (the tape's versions are in autograd/ops). No autograd metadata.
    Tensor with_layout(const Layout& layout) const { return {storage_, layout, dtype_}; }
    Tensor detach() const { return {storage_, layout_, dtype_}; }
    Tensor permuted(std::initializer_list<int> axes) const { return with_layout(layout_.permute(axes)); }
    Tensor sliced(int axis, int64_t start, int64_t length) const { return with_layout(layout_.slice(axis, start, length)); }
    Tensor reshaped(const Shape& shape) const;  // a view where possible, else a contiguous copy
    Tensor contiguous() const;                  // itself when it already is
    Tensor clone() const;                       // a fresh copy; keeps the order of axes in memory
    Tensor to(DType dtype) const;               // itself when dtype is the same; rounds to nearest even
    Tensor to(Device device) const;             // itself when it is there; else a copy with the same order of axes
    void copy_from(const Tensor& source);       // same shape, any dtype and layout; bumps the version
    void fill(double value);                    // bumps the version
    template <class T>
    std::vector<T> to_vector() const;           // row-major copy, converted to T (float, double, int64_t, int32_t)

    std::shared_ptr<AutogradSlot>& autograd() { return autograd_; }
    const std::shared_ptr<AutogradSlot>& autograd() const { return autograd_; }

  private:
    std::shared_ptr<Storage> storage_;
    Layout layout_;
    DType dtype_ = DType::f32;
    std::shared_ptr<AutogradSlot> autograd_;
};

// Copies values between layouts, dtypes and devices (same shape). Within a device the copy is queued on its current stream;
// between devices it is done when this returns.
void copy_strided(const TensorView& from, const TensorView& to);
// Every element of a view becomes `value`; on a GPU queued on its current stream.
void fill_strided(const TensorView& to, double value);

}  // namespace lc
