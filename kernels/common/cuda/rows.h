// Tensors [..., C] as matrices of rows on the device (kernels/common/rows.h is the CPU's form): used where they lie if rows are
// contiguous and evenly spaced, else through a dense copy. Also the place where an f32 parameter becomes bf16 for a GEMM.
#pragma once
#include <optional>

#include "kernels/common/cuda/launch.h"
#include "kernels/common/rows.h"

namespace lc::kernels {

// A dense row-major array of a view's shape, in workspace.
struct DenseCopy {
    DeviceScratch<std::byte> memory;
    TensorView view;

    DenseCopy() = default;
    DenseCopy(const TensorView& like, DType dtype)
        : memory(like.numel() * size_of(dtype), current_stream(like.device)),
          view{memory.data(), Layout::contiguous(like.shape()), dtype, like.device} {}
};

// A matrix to read. `data` has dtype `dtype`.
struct DeviceRows {
    DenseCopy copy;  // holds the memory when the view could not be used in place
    const void* data = nullptr;
    int64_t rows = 0, columns = 0, stride = 0;
    DType dtype = DType::f32;

    // `wanted`: the dtype that the reader needs; a view of another one is converted.
    DeviceRows(const TensorView& view, DType wanted) : dtype(wanted) {
        TensorView source = view;
        std::optional<Layout> layout = view.dtype == wanted ? row_layout(view) : std::nullopt;
        if (!layout) {
            copy = DenseCopy(view, wanted);
            copy_strided(view, copy.view);
            source = copy.view;
            layout = row_layout(source);
        }
        data = source.base + layout->offset * size_of(wanted);
        rows = layout->shape[0], columns = layout->shape[1], stride = layout->strides[0];
    }
    template <class T>
    const T* as() const {
        return static_cast<const T*>(data);
    }
};

// A matrix to write: in place, or in a dense copy that finish() carries over.
struct DeviceOutRows {
    TensorView target;
    DenseCopy copy;
    void* data = nullptr;
    int64_t rows = 0, columns = 0, stride = 0;
    DType dtype = DType::f32;
    float beta = 0;

    explicit DeviceOutRows(const TensorView& view) : target(view), dtype(view.dtype) {
        if (!view) return;
        std::optional<Layout> layout = row_layout(view);
        if (!layout) {
            copy = DenseCopy(view, view.dtype);
            layout = row_layout(copy.view);
        }
        data = (copy.view ? copy.view.base : view.base) + layout->offset * size_of(dtype);
        rows = layout->shape[0], columns = layout->shape[1], stride = layout->strides[0];
    }
    explicit DeviceOutRows(const GradSlot& slot) : DeviceOutRows(slot.view) {
        beta = slot.beta();
        if (copy.view && slot.accumulate()) copy_strided(target, copy.view);
    }
    explicit operator bool() const { return data != nullptr; }
    template <class T>
    T* as() const {
        return static_cast<T*>(data);
    }
    void finish() const {
        if (copy.view) copy_strided(copy.view, target);
    }
};

}  // namespace lc::kernels
