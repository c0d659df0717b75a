#include "autograd/ops/embedding.h"

#include "tests/ops/op_case.h"

namespace lc::testing {
namespace {

OpCase make(std::string variant, int64_t vocabulary, int64_t d, Shape ids, DType ids_dtype) {
    const double n = static_cast<double>(numel_of(ids)) * static_cast<double>(d);
    return {.op = "embedding",
            .variant = std::move(variant),
            .inputs = {{"weight", {vocabulary, d}},
                       {.name = "ids", .shape = ids, .fill = Fill::Ids, .bound = vocabulary, .ids_dtype = ids_dtype}},
            .run = [](const Tensors& in) -> Tensors { return {embedding(in[0], in[1])}; },
            .forward = {.numbers = 2 * n},
            .backward = {.numbers = 3 * n + static_cast<double>(vocabulary * d)}};
}

}  // namespace

LC_OP_CASES(embedding) {
    add(make("one", 1, 1, {1, 1}, DType::i32));
    add(make("repeated", 3, 5, {2, 7}, DType::i64));
    add(make("wide", 11, 130, {3, 17}, DType::i32));
    add(make("flat", 9, 4, {6}, DType::i64));
    add(make("runs", 40, 72, {2, 33}, DType::i64));
    add(make("long_rows", 7, 4104, {5}, DType::i64));
    add(make("one_id", 1, 16, {300}, DType::i32));
    OpCase masters =
        make("wide_table", 11, 40, {3, 17}, DType::i32);  // f32 weights beside bf16 activations: pretraining
    masters.inputs[0].wide = true;
    masters.inputs.push_back({.name = "like", .shape = {1}, .differentiable = false});
    masters.run = [](const Tensors& in) -> Tensors { return {embedding(in[0], in[1], in[2].dtype())}; };
    add(masters);
    OpCase bench = make("8x1024_v8192_d512", 8192, 512, {8, 1024}, DType::i32);
    bench.bench = Bench::cpu;
    add(bench);
    OpCase frozen =
        make("llama8b_8x1024", llama8b::kVocabulary, llama8b::kHidden, {llama8b::kBatch, llama8b::kLength}, DType::i32);
    frozen.inputs[0].differentiable = false;
    frozen.backward = {};
    frozen.bench = Bench::gpu;
    add(frozen);
}

}  // namespace lc::testing
