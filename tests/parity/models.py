"""Our programs against transformers and PEFT, on tiny random models of every family. README.md says how to run it."""

import argparse
import json
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

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.append(str(ROOT / "docs"))
import load_in_transformers  # noqa: E402

TOKENIZER = ROOT / "tests/golden/tokenizer/byte_level.json"
LENGTH = 96  # tokens whose logits are compared: longer than the windows
NEW = 24  # tokens of a greedy continuation
TOLERANCE = 1e-4  # of f32 logits, whose size is about 1 to 5

ATTENTIONS = {
    "terraced": ["--attention", "hybrid", "--window-kind", "terraced", "--window-size", "8", "--softmax-layers", "1"],
    "sliding": ["--attention", "hybrid", "--window-kind", "sliding", "--window-size", "8"],
    "linear": ["--attention", "linear"],
    "softmax": ["--attention", "softmax", "--stages", "finetune"],
}


def text_of(words):
    vocabulary = "once upon a time there was a fox . it ran away , over the hill and into the old wood , where nobody".split()
    picks = (families.uniform("text", words) + 1) / 2 * len(vocabulary)
    return " ".join(vocabulary[int(pick)] for pick in picks)


def load(directory, dtype=torch.float32):
    auto = transformers.AutoModelForCausalLM
    return auto.from_pretrained(directory, dtype=dtype, attn_implementation="eager").eval()


class Suite:
    def __init__(self, binaries, work):
        self.binaries, self.work = binaries, work
        self.tokenizer = tokenizers.Tokenizer.from_file(str(TOKENIZER))
        self.text = work / "text.txt"
        self.text.write_text(text_of(4000))
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
        self.run("train_lolcats", "perplexity", *words, *(["--run", run] if run else []), "--threads", 1, *more)
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
        words = ["--prompt", prompt, "--greedy", "--ignore-eos", "--max-new-tokens", NEW, "--json", "--threads", 1]
        result = json.loads(self.run("gen_lolcats", "--model", directory, *words, "--prefill-chunk", 8))
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
                self.expect_near(narrow / scale, ours / scale, "their bf16 computation, relative", family, 0.05)
            shutil.rmtree(directory)

    def linearized(self, family, directory):
        for name, words in ATTENTIONS.items():
            run = self.work / f"{family}-{name}"
            self.run(
                "train_lolcats", "linearize", "--model", directory, "--data", self.text, "--data-limit", 1,
                "--data-format", "text", "--seq-len", 32, "--validation-chunks", 2, "--transfer-steps", 3,
                "--finetune-steps", 8, "--accumulate", 2, "--lora-rank", 2, "--finetune-lr", 0.005, "--eval-every", 0,
                "--save-every", 0, "--threads", 1, "--out", run, *words,
            )  # fmt: skip
            words = ["--prompt", "once upon", "--greedy", "--ignore-eos", "--max-new-tokens", 12, "--json"]
            result = json.loads(self.run("gen_lolcats", "--model", directory, "--run", run, *words, "--threads", 1))
            self.expect(len(result["ids"]) == 12, f"{family}: {name}: 12 new tokens")
            self.expect(bool(self.our_logits(directory, run).isfinite().all()), f"{family}: {name}: finite logits")
            merged = self.work / f"{family}-{name}-merged"
            self.run("train_lolcats", "export", "--model", directory, "--run", run, "--out", merged, "--merged")
            self.expect_near(
                self.our_logits(merged), self.our_logits(directory, run), "merged export and base with run", family
            )
            if name != "softmax":
                theirs = self.logits_of(load_in_transformers.load(merged))
                self.expect_near(self.our_logits(merged), theirs, f"{name} attention, docs/load_in_transformers.py", family)
            model = peft.PeftModel.from_pretrained(families.build(family), run).eval()
            adapted = self.logits_of(model)
            base = self.logits_of(families.build(family))
            self.expect((adapted - base).abs().max() > 1e-3, f"{family}: {name}: the adapter changes something")
            if name == "softmax":  # the same function on both sides
                self.expect_near(self.our_logits(directory, run), adapted, "our adapter in PEFT", family)
                self.expect_near(self.our_logits(merged), adapted, "merged export, ours and PEFT's base", family)
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
                        values = families.uniform(name, parameter.numel()) * 0.25
                        parameter.copy_(torch.from_numpy(values).reshape(parameter.shape))
            adapter = self.work / f"{family}-peft"
            model.save_pretrained(adapter)
            self.expect_near(self.our_logits(directory, adapter), self.logits_of(model), "PEFT's adapter in ours", family)
            shutil.rmtree(adapter)

    def family(self, name):
        model = families.build(name)
        directory = self.base(name, model)
        self.narrow(name)
        self.linearized(name, directory)
        self.theirs(name, directory)
        if name == "mistral_v01":
            config = families.config_of(name)
            config.sliding_window = None
            full = families.fill(transformers.AutoModelForCausalLM.from_config(config))
            ours = self.our_logits(directory, None, "--ignore-sliding-window")
            self.expect_near(ours, self.logits_of(full), "--ignore-sliding-window", name)
        shutil.rmtree(directory)

    def summary(self, seconds, names):
        lines = [
            "# What models.py found last",
            "",
            f"- {platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}, "
            f"transformers {transformers.__version__}, peft {peft.__version__}, tokenizers {tokenizers.__version__}, "
            f"safetensors {safetensors.__version__}",
            f"- {len(names)} models: {', '.join(names)}",
            f"- {self.checks} checks, {len(self.failures)} failed, {seconds:.0f} s",
            "",
            "| compared | largest difference | of |",
            "| --- | --- | --- |",
        ]
        lines += [f"| {what} | {value:.1e} | {family} |" for what, (value, family) in self.worst.items()]
        return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bin", type=pathlib.Path, required=True, help="folder of train_lolcats and gen_lolcats")
    parser.add_argument("--work", type=pathlib.Path, required=True, help="folder for models and runs")
    parser.add_argument("--only", nargs="*", choices=families.CONFIGS, help="these models alone")
    parser.add_argument("--summary", type=pathlib.Path, help="file for the summary")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    suite = Suite(options.bin, options.work)
    names, start = options.only or list(families.CONFIGS), time.time()
    for name in names:
        before = suite.checks
        suite.family(name)
        print(f"{name:16} {suite.checks - before} checks", flush=True)
    text = suite.summary(time.time() - start, names)
    print(text)
    if options.summary:
        options.summary.write_text(text)
    print(f"{suite.checks - len(suite.failures)} passed, {len(suite.failures)} failed")
    return 1 if suite.failures else 0


if __name__ == "__main__":
    sys.exit(main())
