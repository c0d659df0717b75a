// One walk over several tensors of one shape, whatever their layouts and mixture of f32 and bf16.
//
// The host orders the axes as the last tensor lies in memory, drops those of length 1 and merges neighbours that every tensor
// steps through evenly: gap-free tensors of one order become one flat axis, permuted views two or three. Where all of them are
// contiguous along the innermost axis (or constant along it: a broadcast input) and aligned, the walk goes in runs of eight.
#pragma once
#include <algorithm>
#include <array>

#include "core/tensor.h"
#include "kernels/common/cuda/run.cuh"

namespace lc::kernels {

template <int Count>
struct Walk {
    Elements at[Count];
    int64_t numel = 0;
    int64_t shape[kMaxRank] = {}, strides[Count][kMaxRank] = {};
    int rank = 0;
    bool in_runs = false;

    // Empty views are absent. `row_major` keeps the order of axes: element i of the walk is then row-major element i.
    __host__ Walk(const std::array<TensorView, Count>& views, bool row_major) {
        const TensorView* lead = nullptr;
        for (int v = 0; v < Count; ++v) {
            if (!views[v]) continue;
            lead = &views[v];
            at[v] = {views[v].base + views[v].layout.offset * size_of(views[v].dtype), views[v].dtype, false};
        }
        if (!lead) return;
        numel = lead->numel();
        int axes[kMaxRank], kept = 0;
        for (int axis = 0; axis < lead->rank(); ++axis)
            if (lead->size(axis) != 1) axes[kept++] = axis;
        if (!row_major)
            std::stable_sort(axes, axes + kept, [&](int a, int b) { return lead->stride(a) > lead->stride(b); });
        for (int k = 0; k < kept; ++k) append(views, lead->size(axes[k]), axes[k]);
        if (rank == 0) append(views, 1, -1);
        in_runs = can_run();
        for (Elements& elements : at) elements.packed = in_runs;
    }

    // Offsets of the walk's element `first`, one a tensor.
    __device__ void locate(int64_t first, int64_t (&place)[Count]) const {
        if (rank == 1) {
#pragma unroll
            for (int v = 0; v < Count; ++v) place[v] = first * strides[v][0];
        } else if (numel < int64_t{1} << 31) {
            split(static_cast<uint32_t>(first), place);
        } else {
            split(first, place);
        }
    }
    // True where tensor v has one value along the innermost axis.
    __device__ bool is_broadcast(int v) const {
        return strides[v][rank - 1] == 0;
    }

  private:
    // axis < 0: the one axis of a single element.
    __host__ void append(const std::array<TensorView, Count>& views, int64_t size, int axis) {
        const auto step = [&](int v) { return axis < 0 ? 1 : views[v].stride(axis); };
        bool merges = rank > 0;
        const int last = rank > 0 ? rank - 1 : 0;
        for (int v = 0; v < Count; ++v) merges = merges && (!views[v] || strides[v][last] == step(v) * size);
        if (!merges) shape[rank++] = 1;
        shape[rank - 1] *= size;
        for (int v = 0; v < Count; ++v)
            if (views[v]) strides[v][rank - 1] = step(v);
    }
    __host__ bool can_run() const {
        if (rank > 1 && shape[rank - 1] % kRun != 0) return false;
        for (int v = 0; v < Count; ++v) {
            const int64_t inner = strides[v][rank - 1];
            if (!at[v] || inner == 0) continue;
            if (inner != 1 || !is_pack_aligned(at[v].base)) return false;
            for (int axis = 0; axis + 1 < rank; ++axis)
                if (strides[v][axis] % kRun != 0) return false;
        }
        return true;
    }
    template <class Index>
    __device__ void split(Index rest, int64_t (&place)[Count]) const {
#pragma unroll
        for (int v = 0; v < Count; ++v) place[v] = 0;
        for (int axis = rank - 1; axis >= 0; --axis) {
            const Index size = static_cast<Index>(shape[axis]), next = rest / size;
            const int64_t i = static_cast<int64_t>(rest - next * size);
#pragma unroll
            for (int v = 0; v < Count; ++v) place[v] += i * strides[v][axis];
            rest = next;
        }
    }
};

// Loads `Width` elements (kRun in a walk that goes in runs, else 1) of tensor v.
template <int Width, int Count>
__device__ __forceinline__ void load_from(const Walk<Count>& walk, int v, int64_t place, int count,
                                          float (&values)[Width]) {
    if constexpr (Width == 1) {
        values[0] = walk.at[v].load(place);
    } else if (walk.is_broadcast(v)) {
        const float value = walk.at[v].load(place);
#pragma unroll
        for (int j = 0; j < Width; ++j) values[j] = value;
    } else {
        load_run(walk.at[v], place, count, values);
    }
}

}  // namespace lc::kernels
