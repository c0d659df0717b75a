#include "bench/end_to_end_stage.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <numeric>

#include "bench/environment.h"
#include "bench/roofline.h"
#include "core/allocator.h"
#include "core/rng.h"
#include "models/placement.h"
#include "train/attention_transfer.h"
#include "train/next_token.h"

namespace lc::bench {

using models::AttentionKind;
using models::Decoder;
using Clock = std::chrono::steady_clock;

Decoder make_model(const Setup& setup) {
    Decoder decoder = Decoder::random(setup.work.config, kSeed, setup.placement, Decoder::Weights::Frozen);
    if (setup.work.attention.kind != AttentionKind::softmax) decoder.linearize(setup.work.attention, kSeed);
    decoder.encode_projections(setup.work.weight_code);
    if (setup.options.stage == "decode") decoder.fuse_gates();  // as gen_lolcats does
    return decoder;
}

double median(std::vector<double> values) {
    std::nth_element(values.begin(), values.begin() + static_cast<int64_t>(values.size() / 2), values.end());
    return values[values.size() / 2];
}

std::vector<double> time_steps(const std::function<void()>& step, int64_t warmup, int64_t count, Device device,
                               Figures& figures) {
    std::vector<double> ms;
    int64_t allocations = 0;
    for (int64_t i = 0; i < warmup + count; ++i) {
        if (i == warmup) allocations = allocator(device).stats().system_allocations;
        synchronize(device);
        const auto start = Clock::now();
        step();
        synchronize(device);
        if (i >= warmup) ms.push_back(std::chrono::duration<double, std::milli>(Clock::now() - start).count());
    }
    figures.system_allocations = allocator(device).stats().system_allocations - allocations;
    figures.moment = moment(device);
    return ms;
}

namespace {

Setup set_up(const EndToEndOptions& o) {
    const bool decode = o.stage == "decode";
    const bool sample = std::find(kSampleNames.begin(), kSampleNames.end(), o.sample) != kSampleNames.end();
    LC_REQUIRE(Usage, o.stage == "transfer" || o.stage == "finetune" || decode,
               "--stage must be transfer, finetune or decode, got '{}'", o.stage);
    LC_REQUIRE(Usage,
               o.batch >= 1 && o.seq_len >= 2 && o.accumulate >= 1 && o.steps >= 1 && o.warmup >= 0 && o.prompt >= 1,
               "--batch, --accumulate, --steps and --prompt must be at least 1, --seq-len 2, --warmup 0");
    LC_REQUIRE(Usage, !decode || o.new_tokens > o.warmup, "--new-tokens must be more than --warmup, got {} and {}",
               o.new_tokens, o.warmup);
    LC_REQUIRE(Usage, !o.fp8 || o.stage == "transfer", "--fp8 is of --stage transfer");
    LC_REQUIRE(Usage, sample, "--sample must be one of {}, got '{}'", fmt::join(kSampleNames, ", "), o.sample);
    LC_REQUIRE(Usage, o.state_dtype == "f32" || o.state_dtype == "bf16", "--state-dtype must be f32 or bf16, got '{}'",
               o.state_dtype);
    LC_REQUIRE(Usage, o.weights_dtype == "auto" || o.weights_dtype == "int8" || o.weights_dtype == "fp8",
               "--weights-dtype must be auto, int8 or fp8, got '{}'", o.weights_dtype);
    LC_REQUIRE(Usage, decode || o.weights_dtype == "auto", "--weights-dtype goes with --stage decode");
    Setup setup{o, models::placement_from(o.device, o.dtype), {}};
    models::DecoderConfig& config = setup.work.config;
    config = models::decoder_config_from(io::load_hf_config(o.model_config));
    if (decode) config.max_positions = std::max(config.max_positions, setup.first_position() + o.new_tokens);
    setup.work.narrow_state = o.state_dtype == "bf16";
    if (o.weights_dtype != "auto")
        setup.work.weight_code = o.weights_dtype == "int8" ? models::WeightCode::int8 : models::WeightCode::fp8;
    setup.work.attention.kind = models::attention_kind_from(o.attention);
    setup.work.lora_rank = o.lora_rank;
    LC_REQUIRE(Usage, o.stage != "transfer" || setup.work.attention.kind != AttentionKind::softmax,
               "attention transfer needs --attention hybrid or linear");
    return setup;
}

train::PackedChunks random_chunks(int64_t chunks, int64_t length, int64_t vocabulary) {
    train::PackedChunks data{.seq_len = length};
    const Random random(kSeed, 7);
    for (int64_t i = 0; i < chunks * length; ++i)
        data.ids.push_back(
            static_cast<int32_t>(random.below(static_cast<uint64_t>(vocabulary), static_cast<uint64_t>(i))));
    data.labels = data.ids;
    return data;
}

std::unique_ptr<train::Stage> make_stage(const Setup& setup, Decoder& decoder, const train::PackedChunks& validation) {
    const EndToEndOptions& o = setup.options;
    if (o.stage == "transfer") return std::make_unique<train::AttentionTransfer>(decoder, validation, o.batch, o.fp8);
    decoder.add_lora({.rank = o.lora_rank, .alpha = 2.0 * static_cast<double>(o.lora_rank)}, kSeed);
    const train::NextTokenOptions options{.forward = {.mode = setup.mode(), .checkpoint_layers = o.checkpoint_layers}};
    return std::make_unique<train::NextTokenStage>("finetune", decoder, decoder.lora_parameters(), validation, options);
}

// As train/loop.cpp: gradients of the micro-batches, the norm that clipping needs, AdamW.
Figures time_training(const Setup& setup) {
    const EndToEndOptions& o = setup.options;
    const Device device = setup.placement.device;
    allocator(device).reset_peak();
    Decoder decoder = make_model(setup);
    const train::PackedChunks data = random_chunks(o.batch * o.accumulate, o.seq_len, setup.work.config.vocab_size);
    const std::unique_ptr<train::Stage> stage = make_stage(setup, decoder, data);
    train::Optimizer optimizer(stage->groups(), {});
    const std::vector<double> rates(optimizer.groups().size(), 1e-4);
    std::vector<train::Batch> batches;
    for (int64_t a = 0; a < o.accumulate; ++a) {
        std::vector<int64_t> chunks(static_cast<size_t>(o.batch));
        std::iota(chunks.begin(), chunks.end(), a * o.batch);
        batches.push_back(train::make_batch(data, chunks));
    }
    Figures figures{.trained = optimizer.parameter_count()};
    const auto step = [&] {
        optimizer.zero_grad();
        const train::StepLoss loss = stage->accumulate(batches);
        const train::StepReport report = optimizer.step(rates, std::isfinite(loss.loss));
        LC_REQUIRE(Numerics, !report.skipped, "{}: loss {} or gradient norm {} is not finite", o.stage, loss.loss,
                   report.grad_norm);
        optimizer.zero_grad();
    };
    figures.step_ms = time_steps(step, o.warmup, o.steps, device, figures);
    figures.tokens_per_second = 1e3 * static_cast<double>(o.batch * o.accumulate * o.seq_len) / median(figures.step_ms);
    figures.flops_per_second =
        figures.tokens_per_second *
        (o.stage == "transfer" ? setup.work.transfer_flops(o.seq_len) : setup.work.finetune_flops(o.seq_len));
    figures.peak_bytes = allocator(device).stats().peak_bytes;
    return figures;
}

// config.json is named after its directory, another file after itself.
std::string name_of_model(const std::filesystem::path& path) {
    const std::filesystem::path file = std::filesystem::is_directory(path) ? path / "config.json" : path;
    const bool plain = file.filename() == "config.json" && file.has_parent_path();
    return (plain ? file.parent_path().filename() : file.stem()).string();
}

std::string shape_of(const EndToEndOptions& o) {
    if (o.stage == "decode") {
        const std::string tokens = o.context > 0 ? fmt::format("{} at {}", o.new_tokens, o.context)
                                                 : fmt::format("({} + {})", o.prompt, o.new_tokens);
        return fmt::format("{} x {}{}{}", o.batch, tokens, o.sample == "none" ? "" : ", " + o.sample,
                           (o.state_dtype == "f32" ? "" : ", state " + o.state_dtype) +
                               (o.weights_dtype == "auto" ? "" : ", weights " + o.weights_dtype));
    }
    return fmt::format("{} x {}{}{}", o.batch, o.seq_len, o.accumulate > 1 ? fmt::format(" x {}", o.accumulate) : "",
                       o.checkpoint_layers ? ", layers recomputed"
                       : o.fp8             ? ", frozen layers in fp8"
                                           : "");
}

io::Json as_json(const Setup& setup, const Figures& f, const Roofline& roofline, const Environment& e, double drifted) {
    const EndToEndOptions& o = setup.options;
    io::Json line = {{"kind", "e2e"},
                     {"model", name_of_model(o.model_config)},
                     {"stage", o.stage},
                     {"attention", o.attention},
                     {"shape", shape_of(o)},
                     {"batch", o.batch},
                     {"dtype", name_of(setup.placement.dtype)},
                     {"device", setup.placement.device.is_cpu() ? "cpu" : "cuda"},
                     {"tokens_per_second", f.tokens_per_second},
                     {"ms_per_step", median(f.step_ms)},
                     {"n", f.step_ms.size()},
                     {"tflops", f.flops_per_second * 1e-12},
                     {"mfu", f.flops_per_second * 1e-9 / roofline.gemm_gflops},
                     {"peak_bytes", f.peak_bytes},
                     {"system_allocations", f.system_allocations},
                     {"ceil", {{"gemm_tflops", roofline.gemm_gflops * 1e-3}, {"copy_gbps", roofline.copy_gbps}}},
                     {"drift", drifted}};
    if (o.stage == "decode") {
        const double floor_ms = 1e-3 * roofline.floor_us(f.step_flops, f.step_bytes);
        const double mean_ms = 1e3 * static_cast<double>(o.batch) / f.tokens_per_second;
        line.update({{"context", setup.first_position()},
                     {"new_tokens", o.new_tokens},
                     {"sample", o.sample},
                     {"state_dtype", o.state_dtype},
                     {"weights_dtype", o.weights_dtype},
                     {"state_bytes", f.state_bytes},
                     {"roofline_ms", floor_ms},
                     {"roofline_frac", floor_ms / mean_ms}});
        for (const MemoryMark& m : f.memory)
            line["memory"].push_back(
                {{"tokens", m.tokens}, {"peak_bytes", m.peak_bytes}, {"state_bytes", m.state_bytes}});
        if (o.context == 0) line.update({{"prompt", o.prompt}, {"prefill_ms", f.prefill_ms}});
    } else {
        line.update({{"seq_len", o.seq_len}, {"accumulate", o.accumulate}, {"trained_parameters", f.trained}});
        if (o.fp8) line["fp8"] = true;
        if (o.stage == "finetune")
            line.update({{"lora_rank", o.lora_rank}, {"checkpoint_layers", o.checkpoint_layers}});
    }
    line.update(f.moment);
    line.update(e.fields);
    return line;
}

void print(const io::Json& line) {
    const auto number = [&](const char* key) { return line[key].get<double>(); };
    fmt::print(
        "{} {} {} {}: {:.1f} tokens/s, {:.3f} ms a step, {:.1f} % of the GEMM rate ({:.2f} TFLOP/s), peak {:.2f} GB",
        line["model"].get<std::string>(), line["attention"].get<std::string>(), line["stage"].get<std::string>(),
        line["shape"].get<std::string>(), number("tokens_per_second"), number("ms_per_step"), 100 * number("mfu"),
        number("tflops"), number("peak_bytes") * 1e-9);
    if (line.contains("state_bytes"))
        fmt::print(", state {:.3f} GB, {:.1f} % of the roofline", number("state_bytes") * 1e-9,
                   100 * number("roofline_frac"));
    if (line.contains("memory") && line["memory"].size() > 1)
        for (const io::Json& mark : line["memory"])
            fmt::print("{} {:.3f} MB at {}", &mark == &line["memory"].front() ? ", peak" : " |",
                       mark["peak_bytes"].get<double>() * 1e-6, mark["tokens"].get<int64_t>());
    if (line.contains("prefill_ms")) fmt::print(", prefill {:.2f} ms", number("prefill_ms"));
    if (number("drift") > kDriftLimit) fmt::print(", drift {:.1f} %", 100 * number("drift"));
    fmt::print("\n");
}

Roofline measure_roofline(const models::Placement& placement) {
    const Roofline roofline = RooflineProbe(placement.device, placement.dtype).measure({.min_seconds = 0.2});
    allocator(placement.device).release_cached();
    return roofline;
}

}  // namespace

void run_end_to_end(const EndToEndOptions& options) {
    const Setup setup = set_up(options);
    const Environment e = environment(setup.placement.device, options.command);
    const Roofline before = measure_roofline(setup.placement);
    const Figures figures = options.stage == "decode" ? time_decode(setup) : time_training(setup);
    allocator(setup.placement.device).release_cached();
    const Roofline after = measure_roofline(setup.placement);
    const io::Json line = as_json(setup, figures, mean(before, after), e, drift(before, after));
    print(line);
    append_line(options.out, line);
}

}  // namespace lc::bench
