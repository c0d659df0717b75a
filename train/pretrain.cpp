#include "train/pretrain.h"

#include "core/log.h"
#include "io/file.h"
#include "models/run.h"
#include "train/dry_run.h"
#include "train/evaluate.h"
#include "train/next_token.h"
#include "train/stage_config.h"

namespace lc::train {
namespace {

using io::Json;
namespace fs = std::filesystem;

constexpr int64_t kLargestTokenizer = int64_t{64} << 20;

Json config_of(const PretrainOptions& options, const io::Tokenizer& tokenizer, const io::HfConfig& model,
               const TrainingData& data) {
    Json config = {{"model", model.to_json()},
                   {"tokenizer", tokenizer.content_hash()},
                   {"seed", options.seed},
                   {"token-weighted", options.token_weighted},
                   {"eval-batch", options.eval_batch}};
    add_placement_config(config, options.placement);
    add_data_config(config, options.data, data);
    add_loop_config(config, "", options.loop);
    return config;
}

// Special tokens as the tokenizer has them, where the config did not say.
void complete(io::HfConfig& config, const io::Tokenizer& tokenizer) {
    LC_REQUIRE(BadInput, config.vocab_size >= tokenizer.vocab_size(),
               "the tokenizer has {} ids, the model config's vocab_size is {}: it must hold them all",
               tokenizer.vocab_size(), config.vocab_size);
    if (config.bos_token_ids.empty() && tokenizer.bos_id()) config.bos_token_ids = {*tokenizer.bos_id()};
    if (config.eos_token_ids.empty() && tokenizer.eos_id()) config.eos_token_ids = {*tokenizer.eos_id()};
}

void write_model(const PretrainOptions& options, const models::Decoder& decoder, io::HfConfig config) {
    models::save_base(decoder, options.out, options.save_dtype);
    config.torch_dtype = options.save_dtype == DType::bf16 ? "bfloat16" : "float32";
    io::write_file_atomic(options.out / "config.json", config.to_json().dump(2) + "\n");
    Json generation = Json::object();
    if (!config.bos_token_ids.empty()) generation["bos_token_id"] = config.bos_token_ids.front();
    if (!config.eos_token_ids.empty()) generation["eos_token_id"] = config.eos_token_ids.front();
    io::write_file_atomic(options.out / "generation_config.json", generation.dump(2) + "\n");
    io::write_file_atomic(options.out / "tokenizer.json", io::read_file(options.tokenizer, kLargestTokenizer));
}

bool run(PretrainOptions options, const StopCheck& stop) {
    RunDirectory directory(options.out, {"pretrain"}, options.keep, options.resume);
    io::HfConfig config = io::load_hf_config(options.model_config);
    io::Tokenizer tokenizer = io::Tokenizer::load(options.tokenizer);
    if (!tokenizer.eos_id() && !config.eos_token_ids.empty())
        tokenizer.set_eos_id(static_cast<int32_t>(config.eos_token_ids.front()));
    complete(config, tokenizer);
    const TrainingData data = load_training_data(options.data, tokenizer, config.vocab_size);
    options.loop.steps = steps_of(options.budget, options.loop, data.train.size());
    options.loop.schedule.total = options.loop.steps;

    log_info("computing on {}", models::describe(options.placement));
    require_device_memory(options);
    models::Decoder decoder =
        models::Decoder::random(models::decoder_config_from(config), options.seed, options.placement);
    RunContext context;
    context.stop = stop;
    directory.begin(context, config_of(options, tokenizer, config, data), "", options.config_text);
    const NextTokenOptions next{
        .forward = {.mode = models::AttentionMode::Softmax, .checkpoint_layers = options.checkpoint_layers},
        .token_weighted = options.token_weighted,
        .eval_batch = options.eval_batch};
    NextTokenStage stage("pretrain", decoder, decoder.base_parameters(), data.validation, next);
    ChunkStream stream(data.train, options.seed, true);
    TrainLoop training(stage, stream, options.loop, context);
    if (directory.resumed()) training.restore(*directory.resumed(), directory.resumed_source());
    log_info("pretrain: {} parameters, {} steps of {} chunks of {} tokens", training.parameter_count(),
             options.loop.steps, options.loop.batch_size * options.loop.accumulate, options.data.seq_len);
    const std::optional<LoopResult> result = training.run();
    if (!result) return false;

    const ChunkLosses losses = chunk_losses(decoder, data.validation, {next.forward, options.eval_batch, stop});
    write_model(options, decoder, config);
    Record summary = {{"validation_ppl", losses.perplexity()},
                      {"validation_loss", losses.mean_nll()},
                      {"first_loss", result->first_loss},
                      {"steps", result->steps},
                      {"best_step", result->best_step},
                      {"skipped", result->skipped},
                      {"tokens", result->tokens},
                      {"parameters", training.parameter_count()},
                      {"seed", options.seed},
                      {"versions", versions()},
                      {"timing", {{"seconds", context.total_seconds()}}}};
    directory.write_summary(summary);
    log_info("{}: validation perplexity {:.4f}, done in {}", options.out.string(), losses.perplexity(),
             format_duration(context.total_seconds()));
    return true;
}

}  // namespace

bool pretrain(const PretrainOptions& options, const StopCheck& stop) {
    try {
        return run(options, stop);
    } catch (const Interrupted&) {
        return false;
    }
}

}  // namespace lc::train
