// The oracle. A batch of matrices is one matrix of rows: row i of matrix n is row n*M + i.
#pragma once
#include "kernels/common/rows.h"
#include "kernels/matmul/matmul.h"

namespace lc::kernels {

template <class T>
void matmul_forward_naive(const MatmulForward& args) {
    const InRows<T> a(args.a), b(args.b);
    const OutRows<T> c(args.c);
    const int64_t m = args.a.size(-2), k = args.b.size(-2);
    for (int64_t r = 0; r < c.rows; ++r)
        for (int64_t j = 0; j < c.columns; ++j) {
            T sum = 0;
            for (int64_t l = 0; l < k; ++l) sum += a(r, l) * b(r / m * k + l, j);
            c(r, j) = sum;
        }
    c.finish();
}

template <class T>
void matmul_backward_naive(const MatmulBackward& args) {
    const InRows<T> a(args.a), b(args.b), dc(args.dc);
    const OutRows<T> da(args.da), db(args.db);
    const int64_t m = args.a.size(-2), k = args.b.size(-2);
    for (int64_t r = 0; r < a.rows && da; ++r)
        for (int64_t l = 0; l < k; ++l) {
            T sum = 0;
            for (int64_t j = 0; j < dc.columns; ++j) sum += dc(r, j) * b(r / m * k + l, j);
            da.put(r, l, sum);
        }
    for (int64_t r = 0; r < b.rows && db; ++r)
        for (int64_t j = 0; j < b.columns; ++j) {
            T sum = 0;
            for (int64_t i = 0; i < m; ++i) sum += a(r / k * m + i, r % k) * dc(r / k * m + i, j);
            db.put(r, j, sum);
        }
    da.finish(), db.finish();
}

}  // namespace lc::kernels
