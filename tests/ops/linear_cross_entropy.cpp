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
    // Gradients are made in the forward; the backward scales them.
    c.forward = {.flops = 3 * product, .numbers = 3.0 * static_cast<double>(n * d + vocabulary * d + n * vocabulary)};
    c.backward = {.numbers = 2.0 * static_cast<double>(n * d + vocabulary * d)};
    return c;
}

OpCase with_bias(OpCase c, int64_t vocabulary) {
    c.variant += "_bias";
    c.inputs.push_back({.name = "bias", .shape = {vocabulary}, .scale = 0.4});
    c.run = [](const Tensors& in) -> Tensors { return {linear_cross_entropy(in[0], in[1], in[2], in[3])}; };
    return c;
}

OpCase as_token_nll(OpCase c) {
    c.op = "token_nll";
    c.run = [](const Tensors& in) -> Tensors { return {token_nll(in[0], in[1], in[2])}; };
    c.forward.flops /= 3;
    c.backward = {};
    c.differentiable = false;
    return c;
}

// A frozen head: logits and dhidden are two products. The logits of a block of rows need never leave the chip.
OpCase frozen_head() {
    using namespace llama8b;
    OpCase c = make("llama8b_8192", kTokens, kHidden, kVocabulary, Fill::Ids, DType::i32);
    c.inputs[1].scale = 0.02;
    c.inputs[1].differentiable = false;
    const double hidden = kTokens * kHidden, weight = static_cast<double>(kVocabulary) * kHidden;
    c.forward = {.flops = 4 * hidden * kVocabulary, .numbers = 2 * hidden + weight};
    c.backward = {.numbers = 2 * hidden};
    c.bench = Bench::gpu;
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
    // Rows that one block, two and three hold together.
    for (const int64_t vocabulary : {16384, 16388, 33001}) {
        OpCase rows = make("fused_rows_v" + std::to_string(vocabulary), 4, 2, vocabulary, Fill::Labels, DType::i32);
        rows.heavy = true;
        add(rows);
    }
    // Heads that want no gradient, as the GPU's tiles take them: ragged ones, more than one chunk of rows, labels far below the highest.
    for (OpCase head : {make("frozen_head_ragged", 300, 72, 1003, Fill::Labels, DType::i64),
                        make("frozen_head_chunks", 2100, 8, 264, Fill::Labels, DType::i32),
                        make("frozen_head_far_labels", 520, 64, 520, Fill::Labels, DType::i32)}) {
        if (head.variant == "frozen_head_far_labels") head.inputs[1].scale = 30;
        head.inputs[1].differentiable = false;
        head.heavy = true;
        add(head);
        add(as_token_nll(head));
    }
    for (const auto& [c, vocabulary] : {std::pair{make("odd", 7, 5, 11, Fill::Labels, DType::i64), 11},
                                        {make("long_rows", 5, 16, 4100, Fill::Labels, DType::i32), 4100},
                                        {make("two_blocks", 290, 3, 6, Fill::Labels, DType::i64), 6}}) {
        const OpCase biased = with_bias(c, vocabulary);
        add(biased);
        OpCase nll = as_token_nll(biased);
        nll.run = [](const Tensors& in) -> Tensors { return {token_nll(in[0], in[1], in[2], in[3])}; };
        add(nll);
    }
    // Labels are -100 at every third position: with one row at position 2 alone nothing is valid.
    OpCase none = make("all_ignored", 3, 4, 5, Fill::Labels, DType::i64);
    none.run = [](const Tensors& in) -> Tensors {
        return {linear_cross_entropy(in[0], in[1], Tensor::full(in[2].shape(), -100, DType::i64, in[2].device()))};
    };
    add(none);
    for (OpCase c : {make("2048x512_v8192", 2048, 512, 8192, Fill::Ids, DType::i32)}) {
        c.bench = Bench::cpu;
        add(c);
        add(as_token_nll(c));
    }
    OpCase head = frozen_head();
    add(head);
    head.forward.flops /= 2;  // without dhidden
    head.forward.numbers -= static_cast<double>(llama8b::kTokens * llama8b::kHidden);
    OpCase nll = as_token_nll(head);
    nll.forward = head.forward;
    add(nll);
}

}  // namespace lc::testing
