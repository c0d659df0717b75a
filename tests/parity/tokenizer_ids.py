#!/usr/bin/env python3
"""Compares ids and decoded text of `train_lolcats tokenize` with those of the packages that defined the formats.

    pip install tokenizers sentencepiece tiktoken
    python3 tests/parity/tokenizer_ids.py --program build/cpu/bin/train_lolcats --assets ASSETS --out tests/parity/tokenizer_ids.json

Per tokenizer: random strings (tests/parity/random_text.py) are encoded with and without special tokens and decoded by both
sides; every string counts once, and the number of strings that differ must be 0 (exit status 1 otherwise, with the first few).
The tokenizers are those of ASSETS (tests/assets.h says what lies there; may be left out) and small ones that are trained here in
the style of each family (tests/parity/trained_tokenizers.py). `.model` files are compared with sentencepiece and tiktoken.
"""
import argparse
import datetime
import json
import platform
import subprocess
import sys
import tempfile
import unicodedata
from importlib.metadata import version
from pathlib import Path

import sentencepiece
import tiktoken
from tokenizers import Tokenizer

import trained_tokenizers
from random_text import RandomText

SHOWN = 3  # mismatches printed for each tokenizer


class HuggingFace:
    package = "tokenizers"
    avoid = ()

    def __init__(self, path, tokenizer=None):
        self.path, self.tokenizer = path, tokenizer or Tokenizer.from_file(str(path))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.special = [t.content for t in self.tokenizer.get_added_tokens_decoder().values()]

    def results(self, texts):
        plain = self.tokenizer.encode_batch(texts, add_special_tokens=False)
        whole = self.tokenizer.encode_batch(texts, add_special_tokens=True)
        decoded = self.tokenizer.decode_batch([e.ids for e in whole], skip_special_tokens=True)
        return [{"ids": w.ids, "ids_no_special": p.ids, "decoded": d} for w, p, d in zip(whole, plain, decoded)]


class SentencePiece:
    package = "sentencepiece"

    def __init__(self, path):
        self.path, self.processor = path, sentencepiece.SentencePieceProcessor(model_file=str(path))
        pieces = range(self.processor.get_piece_size())
        control = [i for i in pieces if self.processor.is_control(i) or self.processor.is_unknown(i)]
        symbols = [i for i in pieces if self.processor.get_score(i) == 0 and i not in control and not self.processor.is_byte(i)]
        self.special = [self.processor.id_to_piece(i) for i in symbols]
        # Written out in a text these are plain characters here and ids of ours.
        self.avoid = [self.processor.id_to_piece(i) for i in control]

    def results(self, texts):
        bos = [self.processor.bos_id()]
        return [{"ids": bos + ids, "ids_no_special": ids, "decoded": self.processor.decode(ids)}
                for ids in self.processor.encode(texts)]


class Tiktoken:
    package = "tiktoken"
    special = avoid = ()

    def __init__(self, path):
        ranks = trained_tokenizers.read_ranks(path)
        self.path = path
        self.encoding = tiktoken.Encoding("llama3", pat_str=trained_tokenizers.LLAMA3, mergeable_ranks=ranks, special_tokens={})
        self.bos = len(ranks)

    def results(self, texts):
        ids = [self.encoding.encode_ordinary(text) for text in texts]
        return [{"ids": [self.bos] + i, "ids_no_special": i, "decoded": self.encoding.decode(i)} for i in ids]


def our_results(program, tokenizer, texts, folder):
    source, target = folder / "texts.jsonl", folder / "ids.jsonl"
    source.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    target.unlink(missing_ok=True)
    subprocess.run([program, "tokenize", "--tokenizer", tokenizer, "--jsonl", source, "--out", target], check=True,
                   stdout=subprocess.DEVNULL)
    with target.open() as lines:
        return [json.loads(line) for line in lines]


def compare(name, reference, options, folder):
    """The line of the summary for one tokenizer."""
    texts = RandomText(options.seed, reference.special, reference.avoid).many(options.strings)
    theirs, ours = reference.results(texts), our_results(options.program, reference.path, texts, folder)
    assert len(ours) == len(texts)
    differ = [(t, a, b) for t, a, b in zip(texts, ours, theirs) if any(a[key] != value for key, value in b.items())]
    for text, a, b in differ[:SHOWN]:
        print(f"  {name}: {json.dumps(text)}\n    ours   {json.dumps(a)}\n    theirs {json.dumps(b)}")
    line = {"tokenizer": name, "against": reference.package, "strings": len(texts),
            "tokens": sum(len(b["ids_no_special"]) for b in theirs), "mismatches": len(differ)}
    print(json.dumps(line), flush=True)
    return line


def references(options, folder):
    """(name, reference) of every tokenizer at hand, made one after the other."""
    if options.assets:
        for path in sorted(options.assets.glob("**/tokenizer.json")):
            yield path.parent.name, HuggingFace(path)
        for path in sorted(options.assets.glob("**/tokenizer.model")):
            yield path.parent.name + "/tokenizer.model", SentencePiece(path)
        llama3 = options.assets / "tokenizers/llama3/tokenizer.json"
        if llama3.exists():
            yield "llama3/tokenizer.model", Tiktoken(trained_tokenizers.ranks_of(llama3, folder / "llama3.model"))
    if options.gguf:
        yield options.gguf.name, HuggingFace(options.gguf, trained_tokenizers.smollm2_of(options.gguf))
    corpus = RandomText(options.seed + 1).many(20_000)
    corpus += (Path(__file__).parents[2] / "assets/demo/stories.txt").read_text().split("\n\n")
    for name, tokenizer in trained_tokenizers.families(corpus):
        path = folder / f"{name}.json"
        tokenizer.save(str(path))
        yield f"trained: {name}", HuggingFace(path)
    for name, path in trained_tokenizers.sentencepiece_models(corpus, folder):
        yield f"trained: {name}", SentencePiece(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", type=Path, required=True, help="train_lolcats")
    parser.add_argument("--assets", type=Path, help="folder with real tokenizers")
    parser.add_argument("--gguf", type=Path, help="SmolLM2 in GGUF (needs the package gguf)")
    parser.add_argument("--strings", type=int, default=100_000, help="of each tokenizer")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help="tokenizers whose names hold this")
    parser.add_argument("--out", type=Path, help="summary to write")
    parser.add_argument("--revision", default="", help="for the summary: what --program was built from")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lines = [compare(name, reference, options, Path(folder)) for name, reference in references(options, Path(folder))
                 if not options.only or options.only in name]
    packages = {name: version(name) for name in ("tokenizers", "sentencepiece", "tiktoken")} | {
        "python": platform.python_version(), "unicodedata": unicodedata.unidata_version}
    mismatches = sum(line["mismatches"] for line in lines)
    if options.out:
        rows = ",\n  ".join(json.dumps(line) for line in lines)
        made = {"date": str(datetime.date.today()), "revision": options.revision, "packages": packages, "seed": options.seed}
        options.out.write_text(f'{json.dumps(made)[:-1]}, "mismatches": {mismatches},\n'
                               f' "tokenizers": [\n  {rows}\n ]}}\n')
    print(f"{len(lines)} tokenizers, {sum(line['strings'] for line in lines)} strings, {mismatches} mismatches")
    sys.exit(1 if mismatches or not lines else 0)


if __name__ == "__main__":
    main()
