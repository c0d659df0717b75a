// JSON files of models, adapters and runs.
#include "core/tensor.h"
#include "io/file.h"
#include "io/hf_config.h"
#include "io/json.h"
#include "io/peft_adapter.h"
#include "io/safetensors.h"
#include "models/attention/attention_spec.h"
#include "models/decoder/config.h"
#include "models/export.h"
#include "tests/fuzz/support.h"
#include "tests/fuzz/targets.h"
#include "train/loop.h"
#include "train/run_directory.h"

namespace lc::fuzz {
namespace {

using io::Json;

// Two parameters that nothing is computed for.
class IdleStage final : public train::Stage {
  public:
    std::string name() const override { return "transfer"; }
    std::vector<train::ParameterGroup> groups() const override { return {{"layer", {{"w", weight_}}}}; }
    train::StepLoss accumulate(std::span<const train::Batch>) override { return {}; }
    train::Validation evaluate(const train::StopCheck&) override { return {}; }

  private:
    Tensor weight_ = Tensor::zeros({2}, DType::f32);
};

void read_config(const Json& json) {
    answer([&] {
        const io::HfConfig config = io::parse_hf_config(json, "config.json");
        answer([&] { models::validate(models::decoder_config_from(config)); }, {ErrorKind::BadInput, ErrorKind::Usage});
    });
    answer([&] {
        const models::AttentionSpec spec = models::AttentionSpec::from_json(json, "attention");
        require(models::AttentionSpec::from_json(spec.to_json(), "again") == spec,
                "a spec that does not survive writing");
        answer([&] { models::validate(spec, 64, 4, ErrorKind::BadInput); });
    });
}

}  // namespace

void config(std::string_view input) {
    static const Folder folder;
    folder.write("config.json", input);
    folder.write("generation_config.json", input);
    answer([&] { read_config(io::parse_json(input, "config.json")); });
    answer([&] { io::load_generation_config(folder.path()); });
    answer([&] { models::linearized_info(folder.path()); });
}

void adapter(std::string_view input) {
    static const Folder folder;
    static const bool once = [] {
        const std::string module = "base_model.model.model.layers.0.self_attn.q_proj.lora_";
        io::write_safetensors(folder.path() / "adapter_model.safetensors",
                              {{module + "A.weight", Tensor::zeros({2, 4}, DType::f32)},
                               {module + "B.weight", Tensor::zeros({4, 2}, DType::f32)}});
        return true;
    }();
    require(once, "no weights");
    folder.write("adapter_config.json", input);
    answer([&] { io::read_peft_adapter(folder.path()); });
}

namespace {

// A run that stopped after its first checkpoint, whose state.json or manifest.json is exchanged: the sums are right again then, so
// that all that reads what lies behind them is reached.
class StoppedRun {
  public:
    StoppedRun() {
        data_.seq_len = 2, data_.ids = {1, 2, 3, 4}, data_.labels = {1, 2, 3, 4};
        train::RunDirectory run(folder_.path(), {"transfer"}, 2, {});
        train::RunContext context;
        run.begin(context, config_, "hash", "");
        IdleStage stage;
        train::ChunkStream stream(data_, 1, true);
        train::TrainLoop(stage, stream, options_, context).run();
        manifest_ = io::read_json_file(checkpoint() / "manifest.json");
    }
    std::string read(const char* name) const { return io::read_file(checkpoint() / name, 1 << 20); }

    void exchange_manifest(std::string_view text) const { write("manifest.json", text); }
    void exchange_state(std::string_view text) {
        write("state.json", text);
        manifest_["files"][1]["bytes"] = text.size();
        manifest_["files"][1]["xxh3_128"] = io::xxh3_128_hex(text);
        manifest_.erase("xxh3_128");
        manifest_["xxh3_128"] = io::xxh3_128_hex(std::string_view(manifest_.dump()));
        write("manifest.json", manifest_.dump(1) + "\n");
    }
    void resume() const {
        train::RunDirectory run(folder_.path(), {"transfer"}, 2, {.from = checkpoint()});
        train::RunContext context;
        run.begin(context, config_, "hash", "");
        IdleStage stage;
        train::ChunkStream stream(data_, 1, true);
        train::TrainLoop(stage, stream, options_, context).restore(*run.resumed(), run.resumed_source());
    }

  private:
    std::filesystem::path checkpoint() const { return folder_.path() / "checkpoints" / "step-transfer-00000000"; }
    void write(const char* name, std::string_view text) const {
        folder_.write(("checkpoints/step-transfer-00000000/" + std::string(name)).c_str(), text);
    }

    Folder folder_;
    train::PackedChunks data_;
    const Json config_ = {{"seed", 1}};
    const train::LoopOptions options_ = {.steps = 0, .log_every = 0};
    Json manifest_;
};

}  // namespace

void checkpoint(std::string_view input) {
    static StoppedRun run;
    if (input.starts_with('M'))
        run.exchange_manifest(input.substr(1));
    else
        run.exchange_state(input);
    answer([&] { run.resume(); }, {ErrorKind::BadInput, ErrorKind::Checkpoint});
}

std::string checkpoint_state() {
    return StoppedRun().read("state.json");
}

std::string checkpoint_manifest() {
    return StoppedRun().read("manifest.json");
}

}  // namespace lc::fuzz
