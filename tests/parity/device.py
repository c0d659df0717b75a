"""Our programs on a GPU, on tiny models of every family: logits and greedy text of transformers, both stages with every attention.

    device.py prepare --work DIR                     where transformers is: writes models and what it computes with them (f32)
    device.py check --work DIR --bin build/cuda/bin  where the GPU is: needs numpy and safetensors only

Each model's files are bf16. `check` compares in f32: logits and greedy text with transformers'; then for each attention, after
`train_lolcats linearize` there and on the CPU, the losses of both stages, the logits, the text of `gen_lolcats`. Then the same in bf16.
"""

import argparse
import concurrent.futures
import datetime
import itertools
import json
import pathlib
import shutil
import subprocess
import sys
import time

import numpy
import safetensors.numpy

from recipe import ATTENTIONS, LENGTH, LINEARIZE, NARROW, NEW, TOLERANCE

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
GREEDY = ["--greedy", "--ignore-eos", "--json"]


def prepare(options):
    import tokenizers
    import torch
    import transformers

    import families

    transformers.utils.logging.disable_progress_bar()
    path = ROOT / "tests/golden/tokenizer/byte_level.json"
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    options.work.mkdir(parents=True, exist_ok=True)
    text = families.text_of(4000)
    (options.work / "text.txt").write_text(text)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    prompt = tokenizer.decode(ids[:30])
    (options.work / "prompt.txt").write_text(prompt)
    for family in families.CONFIGS:
        directory = options.work / family
        families.build(family).to(torch.bfloat16).save_pretrained(directory)
        shutil.copy(path, directory / "tokenizer.json")
        auto = transformers.AutoModelForCausalLM  # anew: what is computed from the config alone is f32 then
        model = auto.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
        encoded = torch.tensor([tokenizer.encode(prompt).ids])
        with torch.no_grad():
            logits = model(torch.tensor([ids[:LENGTH]])).logits[0]
            text = model.generate(encoded, do_sample=False, min_new_tokens=NEW, max_new_tokens=NEW)
        expected = {"logits": logits.numpy(), "greedy": text[0, encoded.shape[1] :].numpy()}
        safetensors.numpy.save_file(expected, directory / "expected.safetensors")
    (options.work / "versions.txt").write_text(f"torch {torch.__version__}, transformers {transformers.__version__}")


class Job:
    """One model with one attention, or as it is."""

    def __init__(self, options, family, attention):
        self.options, self.family, self.attention = options, family, attention
        self.model = options.work / family
        self.scratch = options.work / f"{family}-{attention or 'base'}"
        self.found, self.failures, self.checks = {}, [], 0

    def run(self, program, *words, device=None, dtype="f32"):
        place = ["--device", device or self.options.device, "--dtype", dtype, "--threads", "1"]
        done = subprocess.run(
            [self.options.bin / program, *map(str, words), *place], capture_output=True, text=True, timeout=60
        )
        if done.returncode != 0:
            raise RuntimeError(f"{program} {words[0]}: exit code {done.returncode}: {done.stderr.strip()[-300:]}")
        return done.stdout

    def expect(self, condition, what):
        self.checks += 1
        if not condition:
            self.failures.append(f"{self.family} {self.attention or ''}: {what}")

    def expect_near(self, ours, theirs, what, tolerance):
        difference = float(numpy.abs(ours - theirs).max())
        self.found[what] = difference if difference == difference else numpy.inf
        self.expect(difference < tolerance, f"{what}: {difference:.2e}")

    def logits(self, *words, device=None, dtype="f32"):
        out = self.scratch / "logits.safetensors"
        text = ["--text", self.options.work / "text.txt", "--limit-chars", 2000, "--seq-len", LENGTH]
        self.run("train_lolcats", "perplexity", "--model", self.model, *text, *words, "--logits", out, device=device, dtype=dtype)
        return safetensors.numpy.load_file(out)["logits"]

    def base(self):
        expected = safetensors.numpy.load_file(self.model / "expected.safetensors")
        self.expect_near(self.logits(), expected["logits"], "f32 logits, transformers", TOLERANCE)
        scale = numpy.abs(expected["logits"]).max()
        narrow = self.logits(dtype="bf16")
        self.expect_near(narrow / scale, expected["logits"] / scale, "bf16 logits, transformers in f32, relative", NARROW)
        prompt = ["--prompt-file", self.options.work / "prompt.txt", "--max-new-tokens", NEW, "--prefill-chunk", 8]
        result = json.loads(self.run("gen_lolcats", "--model", self.model, *prompt, *GREEDY))
        self.expect(result["ids"] == expected["greedy"].tolist(), "greedy text of transformers")

    def linearize(self, name, **place):
        run = self.scratch / name
        data = ["--model", self.model, "--data", self.options.work / "text.txt", "--out", run]
        self.run("train_lolcats", "linearize", *data, *LINEARIZE, *ATTENTIONS[self.attention], **place)
        losses = [best for best in json.loads((run / "summary.json").read_text())["best_loss"].values() if best is not None]
        return run, numpy.array(losses)

    def text(self, run, **place):
        words = ["--prompt", "once upon", "--max-new-tokens", 12, *GREEDY]
        return json.loads(self.run("gen_lolcats", "--model", self.model, "--run", run, *words, **place))["ids"]

    def linearized(self):
        what = f"{self.attention} attention, "
        _, of_cpu = self.linearize("cpu", device="cpu")
        run, losses = self.linearize("f32")
        self.expect_near(losses / of_cpu, 1, what + "losses of both stages in f32, the CPU's, relative", TOLERANCE)
        wide = self.logits("--run", run, device="cpu")
        self.expect_near(self.logits("--run", run), wide, what + "f32 logits, the CPU's", TOLERANCE)
        self.expect(self.text(run) == self.text(run, device="cpu"), "greedy text of the CPU")
        run, losses = self.linearize("bf16", dtype="bf16")
        self.expect_near(losses / of_cpu, 1, what + "losses of both stages in bf16, the CPU's, relative", NARROW)
        wide = self.logits("--run", run, device="cpu")
        scale = numpy.abs(wide).max()
        narrow = self.logits("--run", run, dtype="bf16")
        self.expect_near(narrow / scale, wide / scale, what + "bf16 logits, the CPU's in f32, relative", NARROW)
        self.expect(len(self.text(run, dtype="bf16")) == 12, "12 tokens in bf16")

    def __call__(self):
        self.scratch.mkdir()
        try:
            self.linearized() if self.attention else self.base()
        except Exception as error:  # the other jobs go on
            self.expect(False, f"{type(error).__name__}: {error}")
        shutil.rmtree(self.scratch)
        return self


def check(options):
    names = options.only or sorted(path.parent.name for path in options.work.glob("*/expected.safetensors"))
    start, done = time.time(), []
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        jobs = [pool.submit(Job(options, *key)) for key in itertools.product(names, [None, *ATTENTIONS])]
        for future in concurrent.futures.as_completed(jobs):
            job = future.result()
            done.append(job)
            for failure in job.failures:
                print(f"FAILED {failure}", flush=True)
            print(f"{job.family} {job.attention or 'base'}: {job.checks} checks, {time.time() - start:.0f} s", flush=True)
            if options.summary:
                options.summary.write_text(summary(options, done, time.time() - start))
    print(summary(options, done, time.time() - start))
    return 1 if any(job.failures for job in done) else 0


def summary(options, done, seconds):
    worst = {}  # what -> (difference, family)
    for job in done:
        for what, difference in job.found.items():
            worst[what] = max(worst.get(what, (0.0, "")), (difference, job.family))
    families = sorted({job.family for job in done})
    lines = [
        f"# What device.py found last on {options.where}",
        "",
        f"- {datetime.date.today()}, our programs at {options.revision}; {(options.work / 'versions.txt').read_text()}",
        f"- {len(families)} models: {', '.join(families)}",
        f"- {sum(job.checks for job in done)} checks, {sum(len(job.failures) for job in done)} failed, {seconds:.0f} s",
        "",
        "| compared | largest difference | of |",
        "| --- | --- | --- |",
    ]
    lines += [f"| {what} | {value:.1e} | {family} |" for what, (value, family) in sorted(worst.items())]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["prepare", "check"])
    parser.add_argument("--work", type=pathlib.Path, required=True, help="folder for models and runs")
    parser.add_argument("--bin", type=pathlib.Path, help="folder of train_lolcats and gen_lolcats")
    parser.add_argument("--device", default="cuda", help="of our programs")
    parser.add_argument("--jobs", type=int, default=8, help="programs at a time")
    parser.add_argument("--only", nargs="*", help="these models alone")
    parser.add_argument("--summary", type=pathlib.Path, help="file for the summary, written anew as results come")
    parser.add_argument("--revision", default="an unnamed revision", help="for the summary: what --bin was built from")
    parser.add_argument("--where", default="a GPU", help="for the summary")
    options = parser.parse_args()
    return prepare(options) if options.what == "prepare" else check(options)


if __name__ == "__main__":
    sys.exit(main())
