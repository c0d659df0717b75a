#include "autograd/ops/linear_cross_entropy.h"

#include "tests/ops/op_case.h"

namespace lc::testing {
namespace {

OpCase make(std::string variant, int64_t n, int64_t d, int64_t vocabulary, Fill labels, DType ids) {
    OpCase c{.op = "linear_cross_entropy",
             .variant = std::move(variant),
             .inputs = {{"hidden", {n, d}},
                        {"weight", {vocabulary, d}, Fill::Normal, 0.4},
                        {.name = "labels", .shape = {n}, .fill = labels, .bound = vocabulary, .ids_dtype = ids}},
             .run = [](const Tensors& in) -> Tensors { return {linear_cross_entropy(in[0], in[1], in[2])}; }};
    const double product = 2.0 * static_cast<double>(n * d) * static_cast<double>(vocabulary);
    c.flops = 3 * product;  // gradients are made in the forward
    c.bytes = 12.0 * static_cast<double>(n * d + vocabulary * d + n * vocabulary);
    c.backward_bytes = 8.0 * static_cast<double>(n * d + vocabulary * d);
    return c;
}

OpCase as_token_nll(OpCase c) {
    c.op = "token_nll";
    c.run = [](const Tensors& in) -> Tensors { return {token_nll(in[0], in[1], in[2])}; };
    c.flops /= 3;
    c.backward_bytes = 0;
    c.differentiable = false;
    return c;
}

}  // namespace

LC_OP_CASES(linear_cross_entropy) {
    for (const OpCase& c :
         {make("one", 1, 1, 2, Fill::Ids, DType::i32), make("odd", 7, 5, 11, Fill::Labels, DType::i64),
          make("wide_vocabulary", 5, 9, 131, Fill::Labels, DType::i32),
          make("long_rows", 5, 16, 4100, Fill::Labels, DType::i32),
          make("two_blocks", 290, 3, 6, Fill::Labels, DType::i64),
          make("no_rows", 0, 4, 3, Fill::Labels, DType::i64)}) {
        if (c.variant != "no_rows") add(c);
        add(as_token_nll(c));
    }
    // Labels are -100 at every third position: with one row at position 2 alone nothing is valid.
    OpCase none = make("all_ignored", 3, 4, 5, Fill::Labels, DType::i64);
    none.run = [](const Tensors& in) -> Tensors {
        return {linear_cross_entropy(in[0], in[1], Tensor::full(in[2].shape(), -100, DType::i64, in[2].device()))};
    };
    add(none);
    for (OpCase c : {make("2048x512_v8192", 2048, 512, 8192, Fill::Ids, DType::i32)}) {
        c.bench = true;
        add(c);
        add(as_token_nll(c));
    }
}

}  // namespace lc::testing
