"""Our programs against transformers and PEFT, on tiny random models of every family. README.md says how to run it."""

import argparse
import datetime
import functools
import importlib.metadata
import json
import multiprocessing
import pathlib
import platform
import shutil
import subprocess
import sys
import time

import peft
import safetensors
import safetensors.torch
import tokenizers
import torch
import transformers

import families
import gguf_files
from recipe import ATTENTIONS, LENGTH, LINEARIZE, NARROW, NEW, TOLERANCE

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.append(str(ROOT / "docs"))
import load_in_transformers  # noqa: E402

TOKENIZER = ROOT / "tests/golden/tokenizer/byte_level.json"

# Options of PEFT's LoraConfig that we apply, and those that we need not: every other one is refused where it is on.
APPLIED = {"peft_type", "task_type", "r", "lora_alpha", "lora_dropout", "target_modules", "base_model_name_or_path"}
HARMLESS = {
    "auto_mapping", "peft_version", "revision", "inference_mode", "layers_pattern", "megatron_core", "eva_config",
    "velora_config", "qalora_group_size", "ensure_weight_tying",
}  # fmt: skip

PLACE = ["--device", "cpu", "--dtype", "f32", "--threads", "1"]


def load(directory, dtype=torch.float32):
    auto = transformers.AutoModelForCausalLM
    return auto.from_pretrained(directory, dtype=dtype, attn_implementation="eager").eval()


def authors_maps(config, prefix):
    state, heads, dim = {}, config.num_attention_heads, config.head_dim
    for layer in range(config.num_hidden_layers):
        name = f"{prefix}layers.{layer}.self_attn."
        shapes = {"window_factors": (1, heads, 1, 1)}
        shapes |= {f"feature_map_{which}.mlp.layer": (heads, dim, dim // 2) for which in "qk"}
        state |= {name + key: families.tensor(name + key, shape).bfloat16() for key, shape in shapes.items()}
    return state


def authors_lora(config, prefix, rank):
    state, hidden, dim = {}, config.hidden_size, config.head_dim
    query, key = dim * config.num_attention_heads, dim * config.num_key_value_heads
    for layer in range(config.num_hidden_layers):
        for which, to, of in (("q", query, hidden), ("k", key, hidden), ("v", key, hidden), ("o", hidden, query)):
            name = f"{prefix}layers.{layer}.self_attn.{which}_proj.lora_"
            for half, shape in (("A", (rank, of)), ("B", (to, rank))):
                state[f"{name}{half}.default.weight"] = families.tensor(name + half, shape).bfloat16() / 4
    return state


class Suite:
    def __init__(self, binaries, work):
        self.binaries, self.work = binaries, work
        self.work.mkdir(parents=True, exist_ok=True)
        self.tokenizer = tokenizers.Tokenizer.from_file(str(TOKENIZER))
        self.text = work / "text.txt"
        self.text.write_text(families.text_of(4000))
        self.ids = self.tokenizer.encode(self.text.read_text(), add_special_tokens=False).ids
        self.worst = {}  # what -> (difference, family)
        self.checks, self.failures = 0, []

    def run(self, program, *words):
        command = [str(self.binaries / program), *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-2000:]}")
        return done.stdout

    def expect(self, condition, what):
        self.checks += 1
        if not condition:
            self.failures.append(what)
            print(f"  FAILED {what}")

    def expect_near(self, ours, theirs, what, family, tolerance=TOLERANCE):
        difference = (ours - theirs).abs().max().item()
        if not difference <= self.worst.get(what, (-1.0, ""))[0]:
            self.worst[what] = (difference, family)
        self.expect(difference < tolerance, f"{family}: {what}: {difference:.2e}")

    def our_logits(self, model, run=None, *more):
        out = self.work / "logits.safetensors"
        words = ["--model", model, "--text", self.text, "--seq-len", LENGTH, "--limit-chars", 2000, "--logits", out]
        self.run("train_lolcats", "perplexity", *words, *(["--run", run] if run else []), *PLACE, *more)
        tensors = safetensors.torch.load_file(out)
        assert tensors["ids"].tolist() == self.ids[:LENGTH], "the two tokenizers differ"
        return tensors["logits"]

    def logits_of(self, model):
        with torch.no_grad():
            return model(torch.tensor([self.ids[:LENGTH]])).logits[0].float()

    def save(self, model, name):
        directory = self.work / name
        model.save_pretrained(directory)
        shutil.copy(TOKENIZER, directory / "tokenizer.json")
        return directory

    # --- what is compared ---

    def base(self, family, model):
        directory = self.save(model, family)
        self.expect_near(self.our_logits(directory), self.logits_of(model), "f32 logits", family)
        prompt = self.tokenizer.decode(self.ids[:30])
        encoded = self.tokenizer.encode(prompt).ids
        words = ["--prompt", prompt, "--greedy", "--ignore-eos", "--max-new-tokens", NEW, "--json", "--prefill-chunk", 8]
        result = json.loads(self.run("gen_lolcats", "--model", directory, *words, *PLACE))
        with torch.no_grad():
            theirs = model.generate(torch.tensor([encoded]), do_sample=False, min_new_tokens=NEW, max_new_tokens=NEW)
        self.expect(result["prompt_ids"] == encoded, f"{family}: prompt ids")
        self.expect(result["ids"] == theirs[0, len(encoded) :].tolist(), f"{family}: greedy text")
        return directory

    def narrow(self, family):
        """Files in bf16 and f16: read exactly, so that f32 computation agrees as it does for f32 files."""
        for dtype in (torch.bfloat16, torch.float16):
            name = str(dtype).removeprefix("torch.")
            directory = self.save(families.build(family).to(dtype), f"{family}-{name}")
            ours = self.our_logits(directory)
            self.expect_near(ours, self.logits_of(load(directory)), f"f32 logits of {name} files", family)
            if dtype == torch.bfloat16:  # how far their bf16 computation is from the same model in f32
                narrow = self.logits_of(load(directory, dtype))
                scale = ours.abs().max().item()
                self.expect_near(narrow / scale, ours / scale, "their bf16 computation, relative", family, NARROW)
            shutil.rmtree(directory)

    def linearize(self, family, directory, attention):
        """Both stages and a text; returns the run and its logits."""
        run = self.work / f"{family}-{attention}"
        data = ["--model", directory, "--data", self.text]
        self.run("train_lolcats", "linearize", *data, "--out", run, *LINEARIZE, *ATTENTIONS[attention], *PLACE)
        words = ["--prompt", "once upon", "--greedy", "--ignore-eos", "--max-new-tokens", 12, "--json"]
        result = json.loads(self.run("gen_lolcats", "--model", directory, "--run", run, *words, *PLACE))
        self.expect(len(result["ids"]) == 12, f"{family}: {attention}: 12 new tokens")
        logits = self.our_logits(directory, run)
        self.expect(bool(logits.isfinite().all()), f"{family}: {attention}: finite logits")
        return run, logits

    def linearized(self, family, directory):
        base = self.logits_of(families.build(family))
        for name in ATTENTIONS:
            run, ours = self.linearize(family, directory, name)
            merged = self.work / f"{family}-{name}-merged"
            shards = ["--max-shard-size", "100kb"] if name == "sliding" else []
            self.run("train_lolcats", "export", "--model", directory, "--run", run, "--out", merged, "--merged", *shards)
            count = len(list(merged.glob("model*.safetensors")))
            self.expect((count > 1) == bool(shards), f"{family}: {name}: {count} files of weights")
            ours_merged = self.our_logits(merged)
            self.expect_near(ours_merged, ours, "merged export and base with run", family)
            if name != "softmax":
                theirs = self.logits_of(load_in_transformers.load(merged))
                self.expect_near(ours_merged, theirs, f"{name} attention, docs/load_in_transformers.py", family)
            model = peft.PeftModel.from_pretrained(families.build(family), run).eval()
            adapted = self.logits_of(model)
            self.expect((adapted - base).abs().max() > 1e-3, f"{family}: {name}: the adapter changes something")
            if name == "softmax":  # the same function on both sides
                self.expect_near(ours, adapted, "our adapter in PEFT", family)
                self.expect_near(ours_merged, adapted, "merged export, ours and PEFT's base", family)
            self.expect_near(self.logits_of(load(merged)), adapted, "merged export in transformers", family)
            shutil.rmtree(merged), shutil.rmtree(run)

    def theirs(self, family, directory):
        """An adapter that PEFT made, read by us."""
        output = "dense" if family.startswith("phi") else "o_proj"
        for targets in (["q_proj", "k_proj", "v_proj", output], ["v_proj"]):
            config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=targets, task_type="CAUSAL_LM")
            model = peft.get_peft_model(families.build(family), config).eval()
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if "lora_" in name:
                        parameter.copy_(families.tensor(name, parameter.shape) * 0.25)
            adapter = self.work / f"{family}-peft"
            model.save_pretrained(adapter)
            self.expect_near(self.our_logits(directory, adapter), self.logits_of(model), "PEFT's adapter in ours", family)
            shutil.rmtree(adapter)

    def options(self, family, directory):
        """Every option of PEFT: applied, without meaning for what an adapter computes, or refused by its name."""
        adapter = self.work / f"{family}-options"
        targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
        config = peft.LoraConfig(target_modules=targets, task_type="CAUSAL_LM")
        peft.get_peft_model(families.build(family), config).save_pretrained(adapter)
        path = adapter / "adapter_config.json"
        saved = json.loads(path.read_text())
        for option in saved.keys() - APPLIED:
            value = {"bias": "all", "init_lora_weights": "pissa"}.get(option, True)
            path.write_text(json.dumps(saved | {option: value}))
            try:
                self.our_logits(directory, adapter)
                self.expect(option in HARMLESS, f"{family}: PEFT's option {option} is refused")
            except RuntimeError as error:
                refused = f"'{option}'" in str(error) and option not in HARMLESS
                self.expect(refused, f"{family}: PEFT's option {option} is refused by its name: {error}")
        shutil.rmtree(adapter)

    def published(self, family, directory):
        """The authors' layouts of model.pt, as torch.save writes them today: every tensor comes back bit by bit."""
        config = families.config_of(family)
        stem = "dl-" + "_long_name_of_a_run" * 7  # of every member of the archive, as theirs
        maps = authors_maps(config, "model.")
        lora = authors_lora(config, "base_model.model.model.", 8)
        both = authors_maps(config, "base_model.model.model.") | authors_lora(config, "base_model.model.model.", 4)
        layouts = {
            "distill": [{"model_state_dict": maps, "step": 900, "distill/eval/loss": 0.125}],
            "distill and ft-lora": [
                {"model_state_dict": maps, "step": 900, "distill/eval/loss": 0.125},
                {"model_state_dict": lora, "step": 1600, "eval/loss": torch.tensor(1.5)},
            ],
            "both in one": [both],
        }
        for name, checkpoints in layouts.items():
            run, merged = self.work / "published", self.work / "published-merged"
            files = []
            for i, checkpoint in enumerate(checkpoints):
                torch.save(checkpoint, self.work / f"{stem}-{i}.pt")
                files += ["--checkpoint", self.work / f"{stem}-{i}.pt"]
            self.run("train_lolcats", "import", "--model", directory, *files, "--out", run, "--window-kind", "sliding")
            read = {}
            for path in run.glob("*.safetensors"):
                read |= {key.rsplit("model.", 1)[-1]: tensor for key, tensor in safetensors.torch.load_file(path).items()}
            states = [checkpoint.get("model_state_dict", checkpoint) for checkpoint in checkpoints]
            wrote = {k.rsplit("model.", 1)[-1].replace(".default", ""): v for state in states for k, v in state.items()}
            same = read.keys() == wrote.keys() and all(torch.equal(read[key], wrote[key].float()) for key in wrote)
            self.expect(same, f"{family}: published layout {name}: {len(wrote)} tensors bit by bit")
            self.run("train_lolcats", "export", "--model", directory, "--run", run, "--out", merged, "--merged")
            theirs = self.logits_of(load_in_transformers.load(merged))
            self.expect_near(self.our_logits(directory, run), theirs, "model.pt, docs/load_in_transformers.py", family)
            shutil.rmtree(run), shutil.rmtree(merged)

    def gguf(self):
        """Files of the package gguf, in every type that is read; others are refused by their name."""
        path = self.work / "model.gguf"
        for kind in gguf_files.READ + gguf_files.REFUSED:
            model = gguf_files.write(path, TOKENIZER, kind)
            try:
                self.expect_near(self.our_logits(path), self.logits_of(model), f"GGUF {kind}", "llama3")
            except RuntimeError as error:
                self.expect(kind in gguf_files.REFUSED and kind in str(error), f"GGUF {kind} is refused by its name: {error}")

    def family(self, name):
        model = families.build(name)
        directory = self.base(name, model)
        self.narrow(name)
        self.linearized(name, directory)
        self.theirs(name, directory)
        if name == "llama2":
            self.options(name, directory)
        if name == "llama3":
            self.published(name, directory)
            self.gguf()
        if name == "mistral_v01":
            config = families.config_of(name)
            config.sliding_window = None
            full = families.fill(transformers.AutoModelForCausalLM.from_config(config))
            ours = self.our_logits(directory, None, "--ignore-sliding-window")
            self.expect_near(ours, self.logits_of(full), "--ignore-sliding-window", name)
        shutil.rmtree(directory)


def run_family(options, name):
    torch.set_num_threads(1)
    suite = Suite(options.bin, options.work / f"work-{name}")
    try:
        suite.family(name)
    except Exception as error:  # a program that refused, say: the other families go on
        suite.expect(False, f"{name}: {type(error).__name__}: {error}")
    shutil.rmtree(suite.work)
    return name, suite.checks, suite.failures, suite.worst


def summary(options, results, seconds):
    worst = {}  # what -> (difference, family)
    for _, _, _, of_family in results:
        for what, found in of_family.items():
            worst[what] = max(worst.get(what, found), found)
    names, checks = ", ".join(name for name, *_ in results), sum(checks for _, checks, *_ in results)
    lines = [
        f"# What models.py found last on a CPU",
        "",
        f"- {datetime.date.today()}, our programs at {options.revision}",
        f"- {platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, peft {peft.__version__}, tokenizers {tokenizers.__version__}, "
        f"safetensors {safetensors.__version__}, gguf {importlib.metadata.version('gguf')}",
        f"- {len(results)} models: {names}",
        f"- {checks} checks, {sum(len(failures) for _, _, failures, _ in results)} failed, {seconds:.0f} s",
        "",
        "| compared | largest difference | of |",
        "| --- | --- | --- |",
    ]
    lines += [f"| {what} | {value:.1e} | {family} |" for what, (value, family) in worst.items()]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bin", type=pathlib.Path, required=True, help="folder of train_lolcats and gen_lolcats")
    parser.add_argument("--work", type=pathlib.Path, required=True, help="folder for models and runs")
    parser.add_argument("--jobs", type=int, default=1, help="models at a time")
    parser.add_argument("--only", nargs="*", choices=families.CONFIGS, help="these models alone")
    parser.add_argument("--summary", type=pathlib.Path, help="file for the summary")
    parser.add_argument("--revision", default="an unnamed revision", help="for the summary: what --bin was built from")
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    names, start = options.only or list(families.CONFIGS), time.time()
    results = []
    with multiprocessing.get_context("fork").Pool(options.jobs) as pool:
        for result in pool.imap_unordered(functools.partial(run_family, options), names):
            print(f"{result[0]:16} {result[1]} checks, {len(result[2])} failed, {time.time() - start:.0f} s", flush=True)
            results.append(result)
    results.sort(key=lambda result: names.index(result[0]))
    text = summary(options, results, time.time() - start)
    print(text)
    if options.summary:
        options.summary.write_text(text)
    return 1 if any(failures for _, _, failures, _ in results) else 0


if __name__ == "__main__":
    sys.exit(main())
