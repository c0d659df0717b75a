#!/usr/bin/env python3
"""The library beside PyTorch: the same ops at the same shapes on the same device, one after the other, as one table.

    bench/compare_pytorch.py --bench build/cuda/bin/bench --out compare.jsonl        # all of it on a GPU
    bench/compare_pytorch.py --op softmax_attention,hybrid_attention --no-layers
    bench/compare_pytorch.py --bench build/cpu/bin/bench --device cpu --dtype f32    # to see that it runs

Runs `bench` as a subprocess first and takes shapes and times from the lines that it writes; then times, with the same
rules (warm-up, L2 emptied before each sample, device events, medians), what one would write in PyTorch:

    softmax_attention   scaled_dot_product_attention by FlashAttention and by cuDNN; with a window, FlashAttention alone has a call
    hybrid_attention    the quadratic formula, eager and through torch.compile; so linear_attention and transfer_loss
    lora_linear, rms_norm, add_rms_norm, swiglu, linear_cross_entropy: eager and compiled
    layers              eager Llama layers with LoLCATs attention at the shapes of `bench e2e`: stage 1 and 2 in tokens/s

A reference that this PyTorch, device or memory cannot run is named with the reason. An optional tool: needs torch 2.5 or
newer, no other part of the project does. `ratio` is PyTorch's time over ours. Gradients are those that the GPU's cases
of `bench` want: weights of models are frozen there.
"""
import argparse
import json
import math
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}
EPSILON = 1e-12


# --- the formulas, as they are written down ---


def hedgehog(x, w):
    """x [B,H,T,D], w [H,D,F] -> [softmax(x w), softmax(-x w)]  [B,H,T,2F]"""
    u = x @ w
    return torch.cat([u.softmax(-1), (-u).softmax(-1)], -1).clamp_min(EPSILON)


def all_heads(x, heads):
    return x.repeat_interleave(heads // x.size(1), 1)


def quadratic_hybrid(q, k, v, wq, wk, mix_logit, window=64):
    """q [B,H,T,D], k and v [B,H_kv,T,D]: softmax over a query's block of keys and the one before, features beyond."""
    k, v = all_heads(k, q.size(1)), all_heads(v, q.size(1))
    i = torch.arange(q.size(2), device=q.device)
    near = i[None, :] // window >= i[:, None] // window - 1
    causal = i[None, :] <= i[:, None]
    scores = (q @ k.transpose(2, 3)) / math.sqrt(q.size(-1))
    scores = scores.float().masked_fill(~(near & causal), -math.inf)
    soft = mix_logit.float().sigmoid()[:, None, None] * (scores - scores.amax(-1, keepdim=True)).exp()
    weights = soft + (hedgehog(q, wq) @ hedgehog(k, wk).transpose(2, 3)).float() * (causal & ~near)
    return ((weights / weights.sum(-1, keepdim=True)).to(v.dtype)) @ v


def quadratic_linear(q, k, v, wq, wk):
    k, v = all_heads(k, q.size(1)), all_heads(v, q.size(1))
    weights = (hedgehog(q, wq) @ hedgehog(k, wk).transpose(2, 3)).float().tril()
    return (weights / (weights.sum(-1, keepdim=True) + EPSILON)).to(v.dtype) @ v


def lora(x, w, a, b, s=2.0):
    return x @ w.T + s * ((x @ a.T) @ b.T)


def rms_norm(x, weight, eps=1e-5):
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight


def add_rms_norm(x, residual, weight):
    total = x + residual
    return rms_norm(total, weight), total


# --- what stands beside an op of ours: f(inputs by name) -> output(s); a whole training step where ours is one ---


class Reference:
    """One way of PyTorch: `forward` and the gradients of `wanted`; `joined` ops of ours make gradients in the forward."""

    def __init__(self, name, forward, wanted, context=None, compiled=False, joined=False):
        self.name, self.forward, self.wanted, self.joined = name, forward, wanted, joined
        self.context, self.compiled = context, compiled


def eager_and_compiled(forward, wanted, **more):
    return [
        Reference("eager", forward, wanted, **more),
        Reference("torch.compile", forward, wanted, compiled=True, **more),
    ]


def sdpa(x):
    one_query = x["q"].size(2) == 1  # a decode step: it sees all keys
    return F.scaled_dot_product_attention(x["q"], x["k"], x["v"], is_causal=not one_query, enable_gqa=True)


def windowed_flash(x):
    q, k, v = (x[name].transpose(1, 2) for name in "qkv")
    length, seen = q.size(1), x["window"] - 1  # keys before a query's own
    return torch.ops.aten._flash_attention_forward(q, k, v, None, None, length, length, 0.0, True, False,
                                                   window_size_left=seen, window_size_right=0)[0].transpose(1, 2)


def adapted(x):
    indices = sorted(name[1:] for name in x if name.startswith("w"))  # "" of one layer; "0", "1", .. of a group
    dtype = x["x"].dtype
    return tuple(lora(x["x"], x["w" + i], x["a" + i].to(dtype), x["b" + i].to(dtype)) for i in indices)


def maps(x):
    return [x[name].to(x["q"].dtype) for name in ("wq", "wk", "mix_logit") if name in x]


def transfer(x):
    y = quadratic_hybrid(x["q"], x["k"], x["v"], *maps(x))
    return F.mse_loss(y.float(), x["target"].float())


REFERENCES = {
    "softmax_attention": lambda: [
        Reference("SDPA flash", sdpa, "qkv", lambda: sdpa_kernel(SDPBackend.FLASH_ATTENTION)),
        Reference("SDPA cuDNN", sdpa, "qkv", lambda: sdpa_kernel(SDPBackend.CUDNN_ATTENTION)),
    ],
    "softmax_attention, window": lambda: [Reference("flash, window", windowed_flash, "qkv")],
    "hybrid_attention": lambda: eager_and_compiled(
        lambda x: quadratic_hybrid(x["q"], x["k"], x["v"], *maps(x)), "qkv"
    ),
    "linear_attention": lambda: eager_and_compiled(
        lambda x: quadratic_linear(x["q"], x["k"], x["v"], *maps(x)), "qkv"
    ),
    "transfer_loss": lambda: eager_and_compiled(transfer, ["wq", "wk", "mix_logit"], joined=True),
    "lora_linear": lambda: eager_and_compiled(adapted, ["x"] + [n + i for n in "ab" for i in ["", *"0123"]]),
    "rms_norm": lambda: eager_and_compiled(lambda x: rms_norm(x["x"], x["weight"]), ["x"]),
    "add_rms_norm": lambda: eager_and_compiled(
        lambda x: add_rms_norm(x["x"], x["residual"], x["weight"]), ["x", "residual"]
    ),
    "swiglu": lambda: eager_and_compiled(lambda x: F.silu(x["gate"]) * x["up"], ["gate", "up"]),
    "linear_cross_entropy": lambda: eager_and_compiled(
        lambda x: F.cross_entropy((x["hidden"] @ x["weight"].T).float(), x["labels"]), ["hidden"], joined=True
    ),
}
ATTENTION = ("softmax_attention", "hybrid_attention", "linear_attention", "transfer_loss")
PROJECTED = ("llama8b", "llama1b", "h8_kv4", "mistral")  # variants whose tensors are as projections leave them
WINDOW = re.compile(r"_window(\d+)$")  # of a variant's name: keys that a query sees
WIDE = re.compile(r"^(wq|wk|mix_logit|weight|[ab]\d?)$")  # parameters that train: f32 beside bf16


def make_inputs(line, device, dtype):
    """Random tensors of a result line's shapes, "q[8,1024,32,128] k[..] ..", by name."""
    inputs = {}
    for name, sizes in re.findall(r"(\w+)\[([\d,]*)\]", line["shape"]):
        shape = [int(size) for size in sizes.split(",")]
        if name == "labels":
            vocabulary = inputs["weight"].size(0)
            inputs[name] = torch.randint(vocabulary, shape, device=device)
            continue
        wide = WIDE.match(name) and not (line["op"] == "linear_cross_entropy" and name == "weight")
        scale = 1 / math.sqrt(shape[-1]) if name in ("weight", "w", "wq", "wk") else 1.0
        x = torch.randn(shape, device=device) * scale
        x = x if wide else x.to(dtype)
        if line["op"] in ATTENTION and name in ("q", "k", "v", "target") and line["variant"].startswith(PROJECTED):
            x = x.transpose(1, 2)  # [B,T,H,D] in memory
        inputs[name] = x
    if window := WINDOW.search(line["variant"]):
        inputs["window"] = int(window[1])
    return inputs


# --- timing ---


class Clock:
    """Medians by bench's rules: device events behind a write that empties the L2 cache, or the host's clock."""

    def __init__(self, device, min_seconds):
        self.cuda, self.min_seconds = device.type == "cuda", min_seconds
        self.scrap = torch.empty(256 << 20, dtype=torch.uint8, device=device) if self.cuda else None

    def sample(self, call):
        if not self.cuda:
            start = time.perf_counter()
            call()
            return (time.perf_counter() - start) * 1e6
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self.scrap.fill_(1)
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e3

    def measure(self, call):
        """(median, p10, p90) in us."""
        for _ in range(3):
            call()
        samples, until = [], time.perf_counter() + self.min_seconds
        while len(samples) < 5 or (time.perf_counter() < until and len(samples) < 200):
            samples.append(self.sample(call))
        samples.sort()
        return statistics.median(samples), samples[len(samples) // 10], samples[len(samples) * 9 // 10]


def time_reference(reference, line, device, dtype, clock):
    torch.manual_seed(0)
    inputs = make_inputs(line, device, dtype)
    wanted = [inputs[name].requires_grad_() for name in reference.wanted if name in inputs]
    forward = torch.compile(reference.forward) if reference.compiled else reference.forward

    def run():
        output = forward(inputs)
        return output if isinstance(output, tuple) else (output,)

    def step():
        torch.autograd.grad(run()[0], wanted)

    if reference.context:
        with reference.context():
            return time_phase(line["phase"], run, step, reference, wanted, clock)
    return time_phase(line["phase"], run, step, reference, wanted, clock)


def time_phase(phase, run, step, reference, wanted, clock):
    if reference.joined:
        return clock.measure(step)
    if phase == "forward":
        return clock.measure(run)
    outputs = run()
    cotangents = [torch.randn_like(y) for y in outputs]
    return clock.measure(lambda: torch.autograd.grad(outputs, wanted, cotangents, retain_graph=True))


# --- whole layers ---


class EagerLayer:
    """One layer of the Llama family with frozen weights; the student's maps, or LoRA pairs, learn."""

    def __init__(self, config, device, dtype, rank=8):
        d, kv = config["hidden_size"], config["num_key_value_heads"]
        self.heads, self.kv_heads = config["num_attention_heads"], kv
        self.head_dim = config.get("head_dim") or d // self.heads
        q, k, mlp = self.heads * self.head_dim, kv * self.head_dim, config["intermediate_size"]

        def weight(out, size):
            return (torch.randn(out, size, device=device) / math.sqrt(size)).to(dtype)

        self.q, self.k, self.v, self.o = weight(q, d), weight(k, d), weight(k, d), weight(d, q)
        self.gate, self.up, self.down = weight(mlp, d), weight(mlp, d), weight(d, mlp)
        self.norms = [torch.ones(d, device=device, dtype=dtype) for _ in range(2)]
        maps_shape = (self.heads, self.head_dim, self.head_dim // 2)
        self.maps = [torch.randn(maps_shape, device=device) / math.sqrt(self.head_dim) for _ in range(2)]
        self.maps.append(torch.zeros(self.heads, device=device))
        pairs = [(self.q, q), (self.k, k), (self.v, k), (self.o, d)]
        self.pairs = [
            (torch.randn(rank, w.size(1), device=device), torch.zeros(out, rank, device=device)) for w, out in pairs
        ]

    def rotate(self, x):
        length, half = x.size(2), self.head_dim // 2
        frequency = 5e5 ** (-torch.arange(half, device=x.device) / half)
        angle = torch.arange(length, device=x.device)[:, None] * frequency
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def linear(self, x, w, pair):
        return x @ w.T if pair is None else lora(x, w, pair[0].to(x.dtype), pair[1].to(x.dtype))

    def project(self, h, pairs):
        x = rms_norm(h, self.norms[0])
        projected = [self.linear(x, w, p) for w, p in zip((self.q, self.k, self.v), pairs)]
        q, k, v = (y.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for y in projected)
        return self.rotate(q), self.rotate(k), v

    def finish(self, h, y, pair):
        h = h + self.linear(y.transpose(1, 2).flatten(2), self.o, pair)
        x = rms_norm(h, self.norms[1])
        return h + (F.silu(x @ self.gate.T) * (x @ self.up.T)) @ self.down.T

    def transfer_step(self, h):
        """Stage 1: the teacher's pass, and the gradients of the student's maps."""
        with torch.no_grad():
            q, k, v = self.project(h, [None] * 3)
            target = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        learned = [m.detach().requires_grad_() for m in self.maps]
        y = quadratic_hybrid(q, k, v, *(m.to(h.dtype) for m in learned))
        gradients = torch.autograd.grad(F.mse_loss(y.float(), target.float()), learned)
        with torch.no_grad():
            return self.finish(h, target, None), gradients

    def finetune_step(self, h, dh):
        """Stage 2: forward and backward of one layer."""
        h = h.detach().requires_grad_()
        learned = [p.detach().requires_grad_() for pair in self.pairs for p in pair]
        pairs = list(zip(learned[::2], learned[1::2]))
        q, k, v = self.project(h, pairs[:3])
        y = quadratic_hybrid(q, k, v, *(m.to(h.dtype) for m in self.maps))
        return torch.autograd.grad(self.finish(h, y, pairs[3]), [h, *learned], dh)


def compare_layers(options, device, dtype, clock, report):
    """Tokens per second of `bench e2e` against one eager layer times the number of layers (no embedding, no head)."""
    config = json.loads(Path(options.model_config).read_text())
    batch, length = options.batch, options.seq_len
    for stage in ("transfer", "finetune"):
        ours = run_bench(options, ["e2e", "--model-config", options.model_config, "--stage", stage, "--batch",
                                   str(batch), "--seq-len", str(length), "--steps", "5", "--warmup", "2"])[-1]
        line = {"op": "e2e", "variant": stage, "phase": "step", "shape": f"{batch} x {length}",
                "us_median": batch * length / ours["tokens_per_second"] * 1e6, "gpu": ours.get("gpu")}

        def run():
            torch.manual_seed(0)
            layer = EagerLayer(config, device, dtype)
            h = torch.randn(batch, length, config["hidden_size"], device=device).to(dtype)
            call = (lambda: layer.transfer_step(h)) if stage == "transfer" else (lambda: layer.finetune_step(h, h))
            return tuple(config["num_hidden_layers"] * us for us in clock.measure(call))

        report(line, f"eager layers x {config['num_hidden_layers']}", run)


# --- putting them side by side ---


def run_bench(options, words):
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "lines.jsonl"
        command = [options.bench, *words, "--device", options.device, "--dtype", options.dtype, "--out", str(out)]
        subprocess.run(command, check=True, stdout=sys.stderr)
        return [json.loads(text) for text in out.read_text().splitlines()]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bench", default="build/cuda/bin/bench")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bf16", choices=DTYPES)
    parser.add_argument("--op", help="only these, separated by commas")
    parser.add_argument("--variant", help="only this case of them")
    parser.add_argument("--min-seconds", type=float, default=0.3)
    parser.add_argument("--no-layers", action="store_true", help="ops only")
    parser.add_argument("--model-config", default="bench/e2e/llama-3-8b.json")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--out", help="append one JSON line a comparison to this file")
    options = parser.parse_args()
    device, dtype = torch.device(options.device), DTYPES[options.dtype]
    clock = Clock(device, options.min_seconds)

    def report(line, name, run):
        result = {"kind": "comparison", **{k: line[k] for k in ("op", "variant", "phase", "shape")}, "reference": name,
                  "dtype": options.dtype, "torch": torch.__version__, "ours_us": line["us_median"],
                  "gpu": line.get("gpu"), "revision": line.get("revision")}
        try:
            median, low, high = run()
            result |= {"us_median": median, "us_p10": low, "us_p90": high, "ratio": median / line["us_median"]}
            outcome = f"{median:>12.1f} {result['ratio']:>8.2f}"
        except torch.cuda.OutOfMemoryError:
            result["unavailable"] = "out of memory"
            outcome = f"{'out of memory':>21}"
        except (RuntimeError, NotImplementedError) as error:
            result["unavailable"] = str(error).splitlines()[0]
            outcome = f"  {result['unavailable'][:70]}"
        print(f"{line['op']:<22} {line['variant']:<28} {line['phase']:<9} {line['us_median']:>12.1f}  {name:<20} "
              f"{outcome}", flush=True)
        if options.out:
            with open(options.out, "a") as file:
                file.write(json.dumps(result) + "\n")
        if device.type == "cuda":
            torch.cuda.empty_cache()

    wanted = options.op.split(",") if options.op else [op for op in REFERENCES if ", " not in op]
    words = ["ops", "--op", ",".join(wanted), "--min-seconds", str(options.min_seconds)]
    lines = run_bench(options, words + (["--variant", options.variant] if options.variant else []))
    print(f"{'op':<22} {'variant':<28} {'phase':<9} {'ours us':>12}  {'PyTorch':<20} {'us':>12} {'ratio':>8}")
    for line in lines:
        kind = line["op"] + (", window" if WINDOW.search(line["variant"]) else "")
        for reference in REFERENCES.get(kind, list)():
            if reference.joined and line["phase"] == "backward":
                continue  # ours made these gradients in the forward; so does the reference's forward
            torch.compiler.reset()
            report(line, reference.name, lambda r=reference: time_reference(r, line, device, dtype, clock))
    if not options.no_layers:
        compare_layers(options, device, dtype, clock, report)


if __name__ == "__main__":
    main()
