// Low-rank adapted linear layers on the GPU.
//
// MATHS    lora_linear.h.
// TILING   bf16 in aligned rows on Hopper: one launch for p and all y, one for q, dx, dA and dB (lora_linear_sm90.cu). Elsewhere cuBLASLt,
//          the low-rank term as a second product on top of the first (beta = 1), and for dA and dB of aligned bf16 lora_low_rank.cu.
//          LC_LORA=portable or sm90 in the environment takes that form wherever it fits.
// COST     2 rows (In Out + R (In + Out)) FLOPs forward; a gradient that nobody wants costs nothing: a frozen W has no dW product.
//          With cuBLASLt the low-rank term reads and writes y (and dx) once more.
// NUMERICS f32 accumulation; TF32 is off for f32. Beside bf16 activations f32 A, s B (and W) are rounded to bf16 as operands, p and
//          q are bf16, and with cuBLASLt y and dx are rounded after each of their products; dA, dB and dW are written in their slots'
//          dtype.
// LADDER   1 cuBLASLt throughout. 2 the forms named above, which say what they are meant to bring.
// SOURCE   arXiv 2106.09685.
#include <algorithm>
#include <cstdlib>
#include <optional>
#include <string_view>

#include "core/cuda/runtime.h"
#include "core/profile.h"
#include "kernels/common/cuda/column_sum.h"
#include "kernels/common/cuda/gemm.h"
#include "kernels/common/cuda/rows.h"
#include "kernels/lora_linear/lora_linear.h"
#include "kernels/lora_linear/lora_linear_sm90.h"
#include "kernels/lora_linear/lora_low_rank.h"

namespace lc::kernels {
namespace {

// A matrix operand or result as it lies.
struct Matrix {
    const void* data;
    int64_t rows, columns, stride;
    DType dtype;
    Matrix(const void* d, int64_t r, int64_t c, int64_t s, DType type)
        : data(d), rows(r), columns(c), stride(s), dtype(type) {}
    Matrix(const DeviceRows& x) : data(x.data), rows(x.rows), columns(x.columns), stride(x.stride), dtype(x.dtype) {}
    Matrix(const DeviceOutRows& x) : data(x.data), rows(x.rows), columns(x.columns), stride(x.stride), dtype(x.dtype) {}
    Matrix columns_from(int64_t first, int64_t count) const {
        return {static_cast<const std::byte*>(data) + first * size_of(dtype), rows, count, stride, dtype};
    }
};

// c = alpha op(a) op(b) + beta c, and `bias`, if there is one, in every row
void product(Op op_a, Op op_b, double alpha, const Matrix& a, const Matrix& b, float beta, const Matrix& c,
             Stream stream, const void* bias = nullptr) {
    gemm({.op_a = op_a,
          .op_b = op_b,
          .m = c.rows,
          .n = c.columns,
          .k = op_a == Op::Transpose ? a.rows : a.columns,
          .alpha = static_cast<float>(alpha),
          .a = a.data,
          .lda = a.stride,
          .b = b.data,
          .ldb = b.stride,
          .beta = beta,
          .c = const_cast<void*>(c.data),
          .ldc = c.stride,
          .dtype = a.dtype,
          .c_dtype = c.dtype,
          .bias = bias},
         stream);
}

constexpr Op kNone = Op::None, kTransposed = Op::Transpose;

template <class Projection>
LoraFactors factors_of(const std::vector<Projection>& projections, int64_t rows, DType dtype, bool transposed,
                       Stream stream) {
    std::vector<LoraFactor> factors;
    for (const Projection& i : projections) factors.push_back({i.a, i.b, i.s});
    return make_lora_factors(factors, dtype, transposed, lora_sm90_counters(rows), stream);
}

template <class Projection>
std::vector<DeviceRows> weights_of(const std::vector<Projection>& projections, DType dtype) {
    std::vector<DeviceRows> w;
    for (const Projection& i : projections) w.emplace_back(i.w, dtype);
    return w;
}

template <class Rows>
bool all_taken(const std::vector<Rows>& matrices) {
    return std::all_of(matrices.begin(), matrices.end(), [](const Rows& x) { return lora_sm90_takes(x); });
}

// Whether the form for Hopper is to be used where the matrices are such as it takes.
bool wants_sm90(bool fits) {
    static const std::string_view forced = [] {
        const char* value = std::getenv("LC_LORA");
        return std::string_view(value == nullptr ? "" : value);
    }();
    LC_CHECK(forced.empty() || forced == "portable" || forced == "sm90", "LC_LORA must be portable or sm90, got '{}'",
             forced);
    if (forced == "portable" || !fits) return false;
    const bool runs = lora_linear_has_sm90();
    LC_CHECK(runs || forced.empty(), "LC_LORA=sm90: this build has no sm_90a code that this device runs");
    return runs;
}

struct Backward {
    const LoraLinearBackward& args;
    Stream stream;
    DType dtype = args.x.dtype;
    DeviceRows x{args.x, dtype}, p{args.p, dtype};
    DeviceOutRows dx{args.dx};
    std::vector<DeviceRows> dy, w;
    LoraFactors factors;
    DeviceScratch<std::byte> low;
    LoraSums sums;

    Backward(const LoraLinearBackward& a, Stream s) : args(a), stream(s) {
        for (const auto& i : a.projections) dy.emplace_back(i.dy, dtype);
    }
    Matrix q() const { return {low.data(), x.rows, factors.width, factors.width, dtype}; }

    void run() {
        bool needs_q = static_cast<bool>(dx);
        for (const auto& i : args.projections) needs_q = needs_q || i.da;
        if (needs_q) make_q_and_dx();
        for (size_t i = 0; i < dy.size(); ++i) {
            const DeviceOutRows dw(args.projections[i].dw);
            if (dw) product(kTransposed, kNone, 1, dy[i], x, dw.beta, dw, stream);
            dw.finish();
            column_sum_cuda(dy[i], args.projections[i].dbias, stream);
        }
        if (aligned())
            low_rank_gradients();
        else
            gradients_by_products();
        dx.finish();
    }

    bool aligned() const {
        return lora_sm90_takes(x) && lora_sm90_takes(p) && all_taken(dy) &&
               std::all_of(args.projections.begin(), args.projections.end(),
                           [](const auto& i) { return i.a.size(0) <= kLoraMostRank; });
    }

    void make_q_and_dx() {
        if (dx) w = weights_of(args.projections, dtype);
        const bool at_once =
            wants_sm90(dx && x.rows >= kLoraSm90Rows && lora_sm90_takes(dx) && all_taken(dy) && all_taken(w));
        factors = factors_of(args.projections, x.rows, dtype, at_once, stream);
        low = DeviceScratch<std::byte>(x.rows * factors.width * size_of(dtype), stream);
        if (at_once) return void(sums = lora_backward_sm90(dy, w, factors, low.data(), dx, sides(), stream));
        float beta = dx.beta;
        for (size_t i = 0; i < dy.size(); ++i) {
            const LoraFactors::Place& place = factors.places[i];
            const int64_t columns = lora_columns(place.rank);
            const Matrix b(factors.b_of(place), place.out, factors.width, factors.width, dtype);
            product(kNone, kNone, 1, dy[i], b.columns_from(place.first_column, columns), 0,
                    q().columns_from(place.first_column, columns), stream);
            if (dx) product(kNone, kNone, 1, dy[i], w[i], beta, dx, stream);
            beta = 1;
        }
        if (dx)
            product(kNone, kNone, 1, q(), Matrix(factors.a(), factors.width, factors.in, factors.in, dtype), 1, dx,
                    stream);
    }

    LoraSides sides() const {
        LoraSides wanted;
        for (const auto& i : args.projections) {
            if (i.da && aligned()) wanted.x = &x;
            if (i.db && aligned()) wanted.p = &p;
        }
        return wanted;
    }

    // dB first: where q, k and v share x, the columns of q that belong to dA then lie side by side in one job.
    void low_rank_gradients() const {
        std::vector<LoraGradient> gradients;
        int64_t first = 0;
        for (size_t i = 0; i < dy.size(); ++i) {
            const auto& projection = args.projections[i];
            const int64_t rank = projection.a.size(0);
            if (projection.db)
                gradients.push_back({.low = p.as<std::byte>() + first * size_of(dtype),
                                     .low_stride = p.stride,
                                     .rank = rank,
                                     .z = &dy[i],
                                     .slot = projection.db,
                                     .transposed = true,
                                     .scale = projection.s,
                                     .parts = sums.db.empty() ? LoraParts{} : sums.db[i]});
            first += lora_columns(rank);
        }
        for (size_t i = 0; i < dy.size(); ++i)
            if (args.projections[i].da)
                gradients.push_back({.low = low.data() + factors.places[i].first_column * size_of(dtype),
                                     .low_stride = factors.width,
                                     .rank = factors.places[i].rank,
                                     .z = &x,
                                     .slot = args.projections[i].da,
                                     .parts = sums.da.empty() ? LoraParts{} : sums.da[i]});
        lora_gradients(gradients, x.rows, stream);
    }

    void gradients_by_products() const {
        int64_t first = 0;
        for (size_t i = 0; i < dy.size(); ++i) {
            const auto& projection = args.projections[i];
            const int64_t rank = projection.a.size(0);
            const DeviceOutRows da(projection.da), db(projection.db);
            if (da) product(kTransposed, kNone, 1, q().columns_from(first, rank), x, da.beta, da, stream);
            if (db)
                product(kTransposed, kNone, projection.s, dy[i], Matrix(p).columns_from(first, rank), db.beta, db,
                        stream);
            da.finish(), db.finish();
            first += lora_columns(rank);
        }
    }
};

}  // namespace

void lora_linear_forward_cuda(const LoraLinearForward& args, Stream stream) {
    const DType dtype = args.x.dtype;
    const DeviceRows x(args.x, dtype);
    if (x.rows == 0) return;
    const std::vector<DeviceRows> w = weights_of(args.projections, dtype);
    std::vector<DeviceOutRows> y;
    for (const auto& i : args.projections) y.emplace_back(i.y);
    std::vector<std::optional<DeviceRows>> bias(w.size());
    for (size_t i = 0; i < w.size(); ++i)
        if (args.projections[i].bias) bias[i].emplace(args.projections[i].bias, dtype);
    const auto bias_of = [&](size_t i) { return bias[i] ? bias[i]->data : nullptr; };
    const DeviceOutRows p(args.p);
    const LoraFactors factors = factors_of(args.projections, x.rows, dtype, false, stream);
    if (wants_sm90(x.rows >= kLoraSm90Rows && lora_sm90_takes(x) && lora_sm90_takes(p) && all_taken(w) &&
                   all_taken(y))) {
        std::vector<const void*> rows;
        for (size_t i = 0; i < w.size(); ++i) rows.push_back(bias_of(i));
        lora_forward_sm90(x, w, rows, factors, y, p.data, stream);
    } else {
        product(kNone, kTransposed, 1, x, Matrix(factors.a(), factors.width, factors.in, factors.in, dtype), 0, p,
                stream);
        for (size_t i = 0; i < w.size(); ++i) {
            const LoraFactors::Place& place = factors.places[i];
            const int64_t columns = lora_columns(place.rank);
            const Matrix b(factors.b_of(place), place.out, factors.width, factors.width, dtype);
            product(kNone, kTransposed, 1, x, w[i], 0, y[i], stream, bias_of(i));
            product(kNone, kTransposed, 1, Matrix(p).columns_from(place.first_column, columns),
                    b.columns_from(place.first_column, columns), 1, y[i], stream);
        }
    }
    for (const DeviceOutRows& i : y) i.finish();
    p.finish();
}

void lora_linear_backward_cuda(const LoraLinearBackward& args, Stream stream) {
    if (args.p.size(0) > 0) return Backward(args, stream).run();
    for (const auto& i : args.projections)  // sums over nothing
        for (const GradSlot& slot : {i.dw, i.da, i.db, i.dbias})
            if (slot && !slot.accumulate()) cuda::fill(slot.view, 0, stream);
}

}  // namespace lc::kernels
