#include "autograd/ops/rms_norm.h"

#include "tests/ops/op_case.h"

namespace lc::testing {
namespace {

enum class Use { Alone, Both, NormOnly, SumOnly };  // which outputs of the fused form go on

OpCase make(std::string variant, Shape x, Use use, double offset = 0) {
    const double n = static_cast<double>(numel_of(x));
    OpCase c{.op = use == Use::Alone ? "rms_norm" : "add_rms_norm",
             .variant = std::move(variant),
             .inputs = {{"x", x}},
             .run = {}};
    if (use == Use::Alone) {
        c.inputs.push_back({.name = "weight", .shape = {x[-1]}, .wide = true});
        c.run = [offset](const Tensors& in) -> Tensors { return {rms_norm(in[0], in[1], 1e-5, offset)}; };
        c.forward = {.flops = 4 * n, .numbers = 2 * n};
        c.backward = {.flops = 10 * n, .numbers = 3 * n};
        return c;
    }
    c.inputs.push_back({"residual", x});
    c.inputs.push_back({.name = "weight", .shape = {x[-1]}, .wide = true});
    c.inputs.back().differentiable = use != Use::SumOnly;
    c.run = [use, offset](const Tensors& in) -> Tensors {
        const auto [y, sum] = add_rms_norm(in[0], in[1], in[2], 1e-6, offset);
        if (use == Use::NormOnly) return {y};
        if (use == Use::SumOnly) return {sum};
        return {y, sum};
    };
    c.forward = {.flops = 5 * n, .numbers = 4 * n};
    c.backward = {.flops = 11 * n, .numbers = 4 * n};  // x and residual have one gradient
    return c;
}

}  // namespace

LC_OP_CASES(rms_norm) {
    add(make("one", {1, 1}, Use::Alone));
    add(make("vector", {5}, Use::Alone));
    add(make("odd", {2, 3, 7}, Use::Alone));
    add(make("wide", {9, 133}, Use::Alone));
    add(make("half_block", {2, 1032}, Use::Alone));
    add(make("long", {2, 8200}, Use::Alone));
    add(make("odd", {2, 3, 7}, Use::Both));
    add(make("warp", {70, 264}, Use::Both));
    add(make("block", {2, 2064}, Use::Both));
    add(make("long", {2, 8200}, Use::Both));
    add(make("wide", {9, 133}, Use::Both));
    for (const Use use : {Use::Alone, Use::Both}) {
        const auto add_heavy = [&](std::string variant, Shape x) {
            OpCase c = make(std::move(variant), x, use);
            c.heavy = true;
            add(c);
        };
        add(make("offset", {9, 133}, use, 1));
        add(make("offset_block", {3, 1288}, use, 1));
        add(make("offset_long", {2, 8200}, use, 1));
        add_heavy("full_rows", {5, 4096});
        add_heavy("two_warpfuls_of_columns_missing", {3, 8192 - 512});
        add_heavy("more_rows_than_blocks", {1200, 1032});
    }
    add(make("norm_only", {3, 35}, Use::NormOnly));
    add(make("norm_only_long", {3, 1288}, Use::NormOnly));
    add(make("sum_only_long", {3, 1288}, Use::SumOnly));
    add(make("sum_only", {3, 35}, Use::SumOnly));
    add({.op = "add_rms_norm",
         .variant = "same_tensor",
         .inputs = {{"x", {3, 9}}, {"weight", {9}}},
         .run = [](const Tensors& in) -> Tensors {
             const auto [y, sum] = add_rms_norm(in[0], in[0], in[1], 1e-5);
             return {y, sum};
         }});
    for (const Use use : {Use::Alone, Use::Both}) {
        OpCase c = make("8192x512", {8192, 512}, use);
        c.bench = Bench::cpu;
        add(c);
        c = make("8192x4096", {llama8b::kTokens, llama8b::kHidden}, use);
        c.inputs.back().differentiable = false;  // the weight is frozen
        c.bench = Bench::gpu;
        add(c);
    }
}

}  // namespace lc::testing
