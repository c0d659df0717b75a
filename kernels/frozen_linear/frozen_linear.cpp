#include "kernels/frozen_linear/frozen_linear.h"

#include <optional>

#include "core/parallel.h"
#include "kernels/accumulate/accumulate.h"
#include "kernels/common/dispatch.h"
#include "kernels/frozen_linear/frozen_linear_naive.h"
#include "kernels/linear/linear.h"
#include "kernels/rms_norm/rms_norm.h"
#include "kernels/swiglu/swiglu.h"

namespace lc::kernels {
namespace {

void check_matrix(const FrozenLinear& a, const FrozenMatrix& m) {
    const int64_t in = a.x.size(-1), out = m.w.rank() == 2 ? m.w.size(0) : 0;
    LC_CHECK(m.w.rank() == 2 && m.w.size(1) == in, "frozen_linear: w must be [Out,{}], got {}", in, m.w.shape());
    LC_CHECK(!m.b || m.b.shape() == Shape{out}, "frozen_linear: b must be [{}], got {}", out, m.b.shape());
    if (a.code == WeightCode::none) return require_alike("frozen_linear", {a.x, m.w, m.b});
    require_alike("frozen_linear", {a.x, m.b});
    LC_CHECK(m.w.dtype == DType::u8 && m.w.layout.is_contiguous() && m.w.device == a.x.device,
             "frozen_linear: codes must be dense u8 beside x, got {}", name_of(m.w.dtype));
    LC_CHECK(m.scale && m.scale.dtype == DType::f32 && m.scale.shape() == Shape{out} && m.scale.layout.is_contiguous(),
             "frozen_linear: the scale of codes [{},{}] must be [{}], dense f32", out, in, out);
}

void check(const FrozenLinear& a) {
    LC_CHECK(a.x.rank() >= 1, "frozen_linear: x must be [...,In], got {}", a.x.shape());
    LC_CHECK(a.gated ? a.matrices.size() == 2 : !a.matrices.empty() && a.matrices.size() <= 3,
             "frozen_linear: {} matrices", a.matrices.size());
    LC_CHECK(a.y.size() == (a.gated ? 1 : a.matrices.size()), "frozen_linear: {} results of {} matrices", a.y.size(),
             a.matrices.size());
    LC_CHECK(!a.gated || a.matrices[0].w.shape() == a.matrices[1].w.shape(),
             "frozen_linear: gate and up must be alike, got {} and {}", a.matrices[0].w.shape(),
             a.matrices[1].w.shape());
    LC_CHECK(!a.code_rows || a.code == WeightCode::fp8, "frozen_linear: rows become codes beside fp8 weights, not {}",
             name_of(a.code));
    LC_CHECK(!a.norm_weight || a.norm_weight.shape() == Shape{a.x.size(-1)},
             "frozen_linear: norm_weight must be [{}], got {}", a.x.size(-1), a.norm_weight.shape());
    require_wide("frozen_linear", a.x, {a.norm_weight});
    for (const FrozenMatrix& m : a.matrices) check_matrix(a, m);
    for (size_t j = 0; j < a.y.size(); ++j) {
        Shape shape = a.x.shape();
        shape[-1] = a.matrices[j].w.size(0);
        LC_CHECK(a.y[j].shape() == shape, "frozen_linear: y must be {}, got {}", shape, a.y[j].shape());
        require_alike("frozen_linear", {a.x, a.y[j], a.residual});
    }
    LC_CHECK(!a.residual || (a.y.size() == 1 && a.residual.shape() == a.y[0].shape()),
             "frozen_linear: residual must be {}, of one y, got {}", a.y[0].shape(), a.residual.shape());
}

// A dense tensor in workspace.
struct Workspace {
    std::shared_ptr<std::byte> memory;
    TensorView view;
    Workspace(const Shape& shape, const TensorView& like, Stream stream)
        : Workspace(shape, like.dtype, like.device, stream) {}
    Workspace(const Shape& shape, DType dtype, Device device, Stream stream)
        : memory(allocator(device).allocate(numel_of(shape) * size_of(dtype), stream)),
          view{memory.get(), Layout::contiguous(shape), dtype, device} {}
};

TensorView rows_of(TensorView view, int64_t begin, int64_t end) {
    if (view) view.layout = view.layout.slice(0, begin, end - begin);
    return view;
}

// Some rows of codes at a time, which stay in cache between decoding and product.
void multiply_coded_cpu(const FrozenLinear& a, const TensorView& x, const FrozenMatrix& m, const TensorView& residual,
                        const TensorView& y, Stream stream) {
    constexpr int64_t kBlock = 64;
    const int64_t in = m.w.size(1), out = m.w.size(0);
    parallel_for((out + kBlock - 1) / kBlock, 1, [&](int64_t first, int64_t last) {
        const Workspace w({kBlock, in}, x, stream);
        for (int64_t block = first; block < last; ++block) {
            const int64_t begin = block * kBlock, end = std::min(out, begin + kBlock);
            const TensorView dense = rows_of(w.view, 0, end - begin);
            decode_weights(
                {.codes = rows_of(m.w, begin, end), .scale = rows_of(m.scale, begin, end), .w = dense, .code = a.code},
                stream);
            const auto columns = [&](TensorView view) {
                if (view) view.layout = view.layout.slice(-1, begin, end - begin);
                return view;
            };
            linear_forward({.x = x, .w = dense, .b = columns(m.b), .residual = columns(residual), .y = columns(y)},
                           stream);
        }
    });
}

// n as the products take it: coded rows beside the numbers that they stand for.
struct FrozenInput {
    TensorView x;
    std::optional<Workspace> codes, scale, decoded;

    FrozenInput(const FrozenLinear& a, const TensorView& n, Stream stream) : x(n) {
        if (!a.code_rows) return;
        const Shape shape{row_count(n.shape()), n.size(-1)};
        codes.emplace(shape, DType::u8, n.device, stream);
        scale.emplace(Shape{shape[0]}, DType::f32, n.device, stream);
        TensorView matrix = n;
        matrix.layout = n.layout.reshape(shape).value();
        encode_weights({.w = matrix, .codes = codes->view, .scale = scale->view, .code = a.code}, stream);
    }
    const TensorView& numbers(WeightCode code, Stream stream) {
        if (!codes || decoded) return x;
        decoded.emplace(x.shape(), x, stream);
        TensorView matrix = decoded->view;
        matrix.layout = Layout::contiguous(codes->view.shape());
        decode_weights({.codes = codes->view, .scale = scale->view, .w = matrix, .code = code}, stream);
        return x = decoded->view;
    }
};

void multiply(const FrozenLinear& a, FrozenInput& rows, const FrozenMatrix& m, const TensorView& residual,
              const TensorView& y, Stream stream) {
    if constexpr (cuda::kBuilt)
        if (rows.codes && y.device.is_cuda() &&
            multiply_codes_cuda(rows.codes->view, rows.scale->view, m, residual, y, stream))
            return;
    const TensorView& x = rows.numbers(a.code, stream);
    if (a.code == WeightCode::none)
        return linear_forward({.x = x, .w = m.w, .b = m.b, .residual = residual, .y = y}, stream);
    if (x.device.is_cpu()) return multiply_coded_cpu(a, x, m, residual, y, stream);
    const Workspace w(m.w.shape(), x, stream);
    decode_weights({.codes = m.w, .scale = m.scale, .w = w.view, .code = a.code}, stream);
    linear_forward({.x = x, .w = w.view, .b = m.b, .residual = residual, .y = y}, stream);
}

// `next` begins where the first `size` numbers of `axis` of `first` end, in the same tensor and as it is.
bool follows(const TensorView& next, const TensorView& first, int axis, int64_t size) {
    if (next.base != first.base || next.layout.offset != first.layout.offset + size * first.stride(axis)) return false;
    for (int i = 0; i < first.rank(); ++i)
        if (next.stride(i) != first.stride(i)) return false;
    return true;
}

// The matrices as one, where they lie behind one another and so do the columns of their results.
struct Joined {
    FrozenMatrix matrix;
    TensorView y;
};
std::optional<Joined> joined(const FrozenLinear& a) {
    if (a.code != WeightCode::none || a.y.size() < 2) return std::nullopt;
    Joined all{a.matrices[0], a.y[0]};
    int64_t& rows = all.matrix.w.layout.shape[0];
    for (size_t j = 0; j < a.y.size(); ++j) {
        const FrozenMatrix& m = a.matrices[j];
        if (m.b) return std::nullopt;
        if (j == 0) continue;
        if (!follows(m.w, all.matrix.w, 0, rows) || !follows(a.y[j], all.y, -1, rows)) return std::nullopt;
        rows += m.w.size(0), all.y.layout.shape[-1] = rows;
    }
    return all;
}

}  // namespace

void frozen_linear_by_parts(const FrozenLinear& a, Stream stream) {
    TensorView x = a.x;
    std::optional<Workspace> normed, rstd;
    if (a.norm_weight) {
        normed.emplace(a.x.shape(), a.x, stream);
        rstd.emplace(Shape{row_count(a.x.shape())}, statistics_dtype(a.x.dtype), a.x.device, stream);
        rms_norm_forward({.x = a.x,
                          .weight = a.norm_weight,
                          .y = normed->view,
                          .rstd = rstd->view,
                          .eps = a.norm_eps,
                          .offset = a.norm_offset},
                         stream);
        x = normed->view;
    }
    FrozenInput rows(a, x, stream);
    if (!a.gated) {
        if (const std::optional<Joined> all = joined(a)) return multiply(a, rows, all->matrix, {}, all->y, stream);
        for (size_t j = 0; j < a.y.size(); ++j) multiply(a, rows, a.matrices[j], a.residual, a.y[j], stream);
        return;
    }
    const Workspace gate(a.y[0].shape(), a.x, stream), up(a.y[0].shape(), a.x, stream);
    multiply(a, rows, a.matrices[0], {}, gate.view, stream);
    multiply(a, rows, a.matrices[1], {}, up.view, stream);
    swiglu_forward({.gate = gate.view, .up = up.view, .y = a.y[0]}, stream);
    if (a.residual) accumulate({.source = a.residual, .target = a.y[0]}, stream);
}

void frozen_linear(const FrozenLinear& args, Stream stream) {
    const ProfileZone zone("frozen_linear");
    check(args);
    if constexpr (cuda::kBuilt)
        if (on_cuda("frozen_linear", args.x)) return frozen_linear_cuda(args, stream);
    require_cpu(args.x, "frozen_linear");
    if (use_fast_cpu(args.x.dtype)) return frozen_linear_by_parts(args, stream);
    dispatch_compute(args.x.dtype, "frozen_linear",
                     [&](auto type) { frozen_linear_naive<typename decltype(type)::type>(args); });
}

}  // namespace lc::kernels
