#include "train/linearize.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>

#include "core/log.h"
#include "io/tokenizer/load_tokenizer.h"
#include "models/run.h"
#include "train/attention_transfer.h"
#include "train/dry_run.h"
#include "train/next_token.h"

namespace lc::train {
namespace {

using io::Json;
using models::AttentionMode;
using models::Terms;

constexpr const char* kFrozen = "frozen.";  // prefix of earlier stages' results in a checkpoint

struct Inputs {
    io::Tokenizer tokenizer;
    models::Decoder decoder;
    TrainingData data;
    std::string model_hash;
};

Inputs load(const LinearizeOptions& options) {
    const std::filesystem::path& directory = options.model.directory;
    io::Tokenizer tokenizer = io::load_tokenizer(directory);
    const io::HfConfig config = io::load_hf_config(directory);
    if (!tokenizer.eos_id() && !config.eos_token_ids.empty())
        tokenizer.set_eos_id(static_cast<int32_t>(config.eos_token_ids.front()));
    TrainingData data = load_training_data(options.data, tokenizer, config.vocab_size);
    log_info("computing on {}", models::describe(options.placement));
    require_device_memory(options);
    models::Decoder decoder = models::load_model(options.model, {.placement = options.placement});
    LC_REQUIRE(BadInput, !decoder.attention(),
               "{}: is linearized already (config.json has 'lolcats'): give its teacher", directory.string());
    models::AttentionSpec spec = options.attention;
    LC_REQUIRE(Usage, !spec.reference, "the authors' window is for their checkpoints (import), not to be trained");
    if (!options.feature_map.empty())
        models::apply_feature_map_name(spec, options.feature_map, decoder.config().head_dim);
    if (spec.kind != models::AttentionKind::softmax) decoder.linearize(spec, options.seed);
    return {std::move(tokenizer), std::move(decoder), std::move(data), models::hash_of(options.model)};
}

Json attention_of(const models::Decoder& decoder) {
    if (decoder.attention()) return decoder.attention()->to_json();
    return {{"attention", models::name_of(models::AttentionKind::softmax)}};
}

Json config_of(const LinearizeOptions& options, const Inputs& inputs) {
    const char* stages = options.transfer && options.finetune ? "transfer,finetune"
                         : options.transfer                   ? "transfer"
                                                              : "finetune";
    Json config = {{"model", inputs.model_hash},
                   {"tokenizer", inputs.tokenizer.content_hash()},
                   {"attention", attention_of(inputs.decoder)},
                   {"lora-rank", options.lora.rank},
                   {"lora-alpha", options.lora.alpha},
                   {"seed", options.seed},
                   {"stages", stages},
                   {"train-feature-maps", options.train_feature_maps},
                   {"token-weighted", options.token_weighted},
                   {"eval-batch", options.eval_batch}};
    if (options.model.ignore_sliding_window) config["ignore-sliding-window"] = true;
    if (options.transfer_fp8) config["transfer-fp8"] = true;
    add_placement_config(config, options.placement);
    add_data_config(config, options.data, inputs.data);
    if (options.transfer) add_loop_config(config, "transfer", options.transfer_loop);
    if (options.finetune) add_loop_config(config, "finetune", options.finetune_loop);
    return config;
}

class Linearization {
  public:
    Linearization(const LinearizeOptions& options, const StopCheck& stop)
        : options_(options),
          run_(options.out, {"transfer", "finetune"}, options.keep, options.resume),
          inputs_(load(options)) {
        const int64_t chunks = inputs_.data.train.size();
        options_.transfer_loop.steps = steps_of(options.transfer_budget, options.transfer_loop, chunks);
        options_.finetune_loop.steps = steps_of(options.finetune_budget, options.finetune_loop, chunks);
        for (LoopOptions* loop : {&options_.transfer_loop, &options_.finetune_loop}) loop->schedule.total = loop->steps;
        context_.stop = stop;
        run_.begin(context_, config_of(options_, inputs_), inputs_.model_hash, options.config_text);
    }

    bool run() {
        measure("teacher_ppl", AttentionMode::Softmax);
        const auto& attention = inputs_.decoder.attention();
        if (attention) measure("swapped_ppl", AttentionMode::Linearized);
        if (options_.transfer && !transfer()) return false;
        if (options_.finetune && !finetune()) return false;
        const bool hybrid = attention && attention->kind == models::AttentionKind::hybrid;
        if (hybrid) measure("window_only_ppl", AttentionMode::Linearized, Terms::WindowOnly);
        if (hybrid) measure("linear_only_ppl", AttentionMode::Linearized, Terms::LinearOnly);
        write_summary();
        return true;
    }

  private:
    // Perplexity on the validation chunks, once: a resumed run takes it from the checkpoint.
    void measure(const std::string& name, AttentionMode mode, Terms terms = Terms::Both) {
        if (context_.results.contains(name)) return;
        const ChunkLosses losses = chunk_losses(inputs_.decoder, inputs_.data.validation,
                                                {{.mode = mode, .terms = terms}, options_.eval_batch, context_.stop});
        const double perplexity = losses.perplexity();
        context_.results[name] = std::isfinite(perplexity) ? Json(perplexity) : Json();
        context_.metrics->write({{"event", "perplexity"},
                                 {"name", name},
                                 {"perplexity", perplexity},
                                 {"mean_nll", losses.mean_nll()},
                                 {"mean_chunk_loss", losses.mean_chunk_loss()},
                                 {"tokens", losses.total_tokens()}});
        log_info("{} {:.4f}", name, perplexity);
    }

    // Runs a stage from where it stands; nullopt when asked to stop.
    std::optional<LoopResult> drive(Stage& stage, const LoopOptions& loop) {
        // Each stage has an order of its own: the second must not begin with the chunks that the first began with.
        const uint64_t seed = options_.seed * 2 + (stage.name() == "finetune" ? 1 : 0);
        ChunkStream stream(inputs_.data.train, seed, true);
        TrainLoop training(stage, stream, loop, context_);
        if (run_.resumed() && run_.resumed()->stage == stage.name())
            training.restore(*run_.resumed(), run_.resumed_source());
        log_info("{}: {} parameters, {} steps of {} chunks", stage.name(), training.parameter_count(), loop.steps,
                 loop.batch_size * loop.accumulate);
        return training.run();
    }

    void keep_result(const std::string& stage, const LoopResult& result) {
        const auto array = [](const std::vector<double>& values) {
            Json json = Json::array();
            for (double value : values) json.push_back(value);
            return json;
        };
        memory_[stage] = result.memory;
        context_.results[stage] = {{"steps", result.steps},
                                   {"skipped", result.skipped},
                                   {"tokens", result.tokens},
                                   {"best_step", result.best_step},
                                   {"best_loss", result.best_loss},
                                   {"first_loss", result.first_loss},
                                   {"first_layer_losses", array(result.first_layer_losses)},
                                   {"best_layer_losses", array(result.best_layer_losses)}};
    }

    models::RunInfo info(const std::string& stage) const {
        const Json result = context_.results.value(stage, Json::object());
        const auto number = [&](const char* key) {
            return result.contains(key) && result[key].is_number() ? result[key].get<double>() : 0.0;
        };
        return {.base_model = options_.model.directory.string(),
                .base_hash = inputs_.model_hash,
                .step = static_cast<int64_t>(number("best_step")),
                .validation_loss = number("best_loss")};
    }

    bool transfer() {
        if (context_.results.contains("transfer")) {  // done before this process: its result is in the checkpoint
            for (const models::NamedTensor& parameter : inputs_.decoder.feature_map_parameters()) {
                Tensor target = parameter.tensor;
                target.copy_from(frozen_or_trained(parameter.name));
            }
        } else {
            AttentionTransfer stage(inputs_.decoder, inputs_.data.validation, options_.eval_batch,
                                    options_.transfer_fp8);
            const std::optional<LoopResult> result = drive(stage, options_.transfer_loop);
            if (!result) return false;
            keep_result("transfer", *result);
            models::save_feature_maps(inputs_.decoder, options_.out, info("transfer"));
        }
        measure("transferred_ppl", AttentionMode::Linearized);
        return true;
    }

    const Tensor& frozen_or_trained(const std::string& name) const {
        const Checkpoint& checkpoint = *run_.resumed();
        const bool frozen =
            std::ranges::any_of(checkpoint.tensors, [&](const auto& t) { return t.first == kFrozen + name; });
        return checkpoint.tensor((frozen ? kFrozen : "param.") + name);
    }

    bool finetune() {
        models::Decoder& decoder = inputs_.decoder;
        decoder.add_lora(options_.lora, options_.seed);
        std::vector<models::NamedTensor> parameters = decoder.lora_parameters();
        const bool with_maps = options_.train_feature_maps || !options_.transfer;
        for (const models::NamedTensor& parameter : decoder.feature_map_parameters()) {
            if (with_maps)
                parameters.push_back(parameter);
            else
                context_.frozen.emplace_back(kFrozen + parameter.name, parameter.tensor);
        }
        const NextTokenOptions next{
            .forward = {.mode = AttentionMode::Linearized, .checkpoint_layers = options_.checkpoint_layers},
            .token_weighted = options_.token_weighted,
            .eval_batch = options_.eval_batch};
        NextTokenStage stage("finetune", decoder, parameters, inputs_.data.validation, next);
        const std::optional<LoopResult> result = drive(stage, options_.finetune_loop);
        if (!result) return false;
        keep_result("finetune", *result);
        if (decoder.attention())
            models::save_feature_maps(decoder, options_.out, info(with_maps ? "finetune" : "transfer"));
        models::save_adapter(decoder, options_.out, info("finetune"));
        measure("finetuned_ppl", AttentionMode::Linearized);
        return true;
    }

    void write_summary() const {
        const Json& results = context_.results;
        Record summary;
        for (const char* name :
             {"teacher_ppl", "swapped_ppl", "transferred_ppl", "finetuned_ppl", "window_only_ppl", "linear_only_ppl"})
            summary[name] = results.value(name, Json());
        const Json transfer = results.value("transfer", Json::object());
        const auto mean = [](const Json& values) -> Json {
            if (!values.is_array() || values.empty()) return {};
            double sum = 0;
            for (const Json& value : values) sum += value.is_number() ? value.get<double>() : 0;
            return sum / static_cast<double>(values.size());
        };
        const Json first = transfer.value("first_layer_losses", Json()),
                   last = transfer.value("best_layer_losses", Json());
        summary["mse_first"] = mean(first);
        summary["mse_last"] = mean(last);
        summary["mse_per_layer"] = {{"first", first}, {"last", last}};
        summary["gamma"] = mean_gamma(inputs_.decoder);
        int64_t tokens = 0;
        for (const char* stage : {"transfer", "finetune"}) {
            const Json result = results.value(stage, Json::object());
            tokens += result.value("tokens", int64_t{0});
            for (const char* key : {"steps", "best_step", "skipped"}) summary[key][stage] = result.value(key, Json());
            summary["best_loss"][stage] = result.value("best_loss", Json());
        }
        summary["tokens"] = tokens;
        summary["seed"] = options_.seed;
        summary["attention"] = attention_of(inputs_.decoder);
        summary["versions"] = versions();
        summary["placement"] = models::describe(options_.placement);
        const double seconds = context_.total_seconds();
        summary["timing"] = {{"seconds", seconds}};
        for (const char* stage : {"transfer", "finetune"})
            if (memory_.contains(stage)) summary["memory"][stage] = memory_.at(stage);
        run_.write_summary(summary);
        log_info("{}: done in {}", options_.out.string(), format_duration(seconds));
    }

    LinearizeOptions options_;
    RunDirectory run_;
    Inputs inputs_;
    RunContext context_;
    std::map<std::string, int64_t> memory_;  // peak bytes of the stages that this process ran
};

}  // namespace

bool linearize(const LinearizeOptions& options, const StopCheck& stop) {
    LC_REQUIRE(Usage, options.transfer || options.finetune, "no stage to run");
    LC_REQUIRE(
        Usage, !options.transfer || options.attention.kind != models::AttentionKind::softmax,
        "--attention softmax leaves every layer as it is, so there is nothing to transfer — use --stages finetune");
    try {
        return Linearization(options, stop).run();
    } catch (const Interrupted&) {
        return false;
    }
}

}  // namespace lc::train
