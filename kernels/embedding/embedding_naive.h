// The only CPU form: a row is copied or added, which vectorizes as it stands.
#pragma once
#include "kernels/common/ids.h"
#include "kernels/common/rows.h"
#include "kernels/embedding/embedding.h"

namespace lc::kernels {

template <class T>
void embedding_forward_naive(const EmbeddingForward& args) {
    const std::vector<int64_t> ids = read_ids("embedding", args.ids, args.weight.size(0));
    const InRows<T> weight(args.weight);
    const OutRows<T> out(args.out);
    parallel_for(out.rows, 16, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) std::copy_n(weight.row(ids[r]), out.columns, out.row(r));
    });
    out.finish();
}

// Each thread owns some columns of the table and adds all rows in order.
template <class T>
void embedding_backward_naive(const EmbeddingBackward& args) {
    if (!args.dweight) return;
    const OutRows<T> dweight(args.dweight);
    const std::vector<int64_t> ids = read_ids("embedding", args.ids, dweight.rows);
    const InRows<T> dout(args.dout);
    parallel_for(dweight.columns, 64, [&](int64_t begin, int64_t end) {
        if (dweight.beta() == T{0})
            for (int64_t v = 0; v < dweight.rows; ++v) std::fill(dweight.row(v) + begin, dweight.row(v) + end, T{0});
        for (int64_t r = 0; r < dout.rows; ++r)
            for (int64_t c = begin; c < end; ++c) dweight(ids[r], c) += dout(r, c);
    });
    dweight.finish();
}

}  // namespace lc::kernels
