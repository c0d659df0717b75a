"""Small tokenizers in the style of each family: the same components and flags as the published ones, other merges."""
import base64
import json

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers.pre_tokenizers import ByteLevel, Digits, Metaspace, Sequence, Split

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
VOCABULARY = 3000
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def special(*contents):
    return [AddedToken(content, special=True, normalized=False) for content in contents]


def with_bos(tokenizer, bos):
    """BOS before a text, as Llama's files have it."""
    template = processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos} $B",
                                             special_tokens=[(bos, tokenizer.token_to_id(bos))])
    tokenizer.post_processor = template


def byte_level(corpus, split, tokens, normalizer=None, ignore_merges=False):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_tokens([t for t in tokens if not t.special])
    tokenizer.add_special_tokens([t for t in tokens if t.special])
    return tokenizer


def byte_fallback(corpus, normalizer, split, decoder, tokens=(), bos="<s>"):
    """SentencePiece's kind: characters, and bytes for those that are not in the vocabulary."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if normalizer:
        tokenizer.normalizer = normalizer
    if split:
        tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoder
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, limit_alphabet=400, show_progress=False, max_token_length=16,
                                  special_tokens=["<unk>", bos, "</s>"] + BYTES)
    # A whole text is one word for these models: lines keep training short.
    tokenizer.train_from_iterator((line for text in corpus for line in text.split("\n")), trainer)
    wanted = json.loads(tokenizer.to_str())
    wanted["added_tokens"] = [t for t in wanted["added_tokens"] if t["content"] not in BYTES]  # plain pieces, as published
    tokenizer = Tokenizer.from_str(json.dumps(wanted))
    tokenizer.add_tokens([t for t in tokens if not t.special])
    tokenizer.add_special_tokens([t for t in tokens if t.special])
    with_bos(tokenizer, bos)
    return tokenizer


def spaces_to_marks(strip):
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence(steps + ([decoders.Strip(" ", 1, 0)] if strip else []))


def sentencepiece_style(corpus):
    legacy = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    yield "llama2, legacy", byte_fallback(corpus, legacy, None, spaces_to_marks(True))
    tools = special("[INST]", "[/INST]", "[TOOL_CALLS]", "[control_768]")
    yield "mistral v0.3", byte_fallback(corpus, legacy, None, spaces_to_marks(True), tools)
    for scheme in ("first", "always", "never"):
        metaspace = Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
        chat = special("<|user|>", "<|end|>") + [AddedToken("  ", normalized=True), AddedToken("tool", single_word=True)]
        yield f"metaspace, {scheme}", byte_fallback(corpus, None, metaspace, spaces_to_marks(scheme != "never"), chat)
    words = Metaspace(replacement="▁", prepend_scheme="always", split=True)
    yield "metaspace, words", byte_fallback(corpus, None, words, decoders.Metaspace(replacement="▁", prepend_scheme="always"))
    gemma = special("<start_of_turn>", "<end_of_turn>", "<2mass>", "[@BOS@]") + [
        AddedToken(text, normalized=False) for text in ["\n" * n for n in range(1, 6)] + ["▁" * n for n in range(2, 8)] + ["<td>"]]
    yield "gemma 1", byte_fallback(corpus, normalizers.Replace(" ", "▁"), Split(" ", "merged_with_previous"),
                                   spaces_to_marks(False), gemma, bos="<bos>")


def families(corpus):
    """(name, tokenizers.Tokenizer) of each family."""
    plain = ByteLevel(add_prefix_space=False)
    bytes_only = ByteLevel(add_prefix_space=False, use_regex=False)
    end = special("<|endoftext|>")
    yield "gpt2", byte_level(corpus, plain, [AddedToken("<|endoftext|>", special=True, normalized=True)])
    blanks = [AddedToken(" " * n, normalized=True) for n in range(31, 1, -1)] + [
        AddedToken("\t" * n, normalized=True) for n in range(9, 1, -1)]
    yield "phi", byte_level(corpus, plain, end + blanks)
    yield "prefix space", byte_level(corpus, ByteLevel(add_prefix_space=True), end)
    yield "smollm2", byte_level(corpus, Sequence([Digits(individual_digits=True), plain]),
                                special("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<empty_output>"))
    yield "qwen2", byte_level(corpus, Sequence([Split(Regex(QWEN2), "isolated"), bytes_only]),
                              special("<|endoftext|>", "<|im_start|>", "<|im_end|>") + [AddedToken("<tool_call>", normalized=False)],
                              normalizers.NFC())
    llama3 = byte_level(corpus, Sequence([Split(Regex(LLAMA3), "isolated"), bytes_only]),
                        special("<|begin_of_text|>", "<|eot_id|>"), ignore_merges=True)
    with_bos(llama3, "<|begin_of_text|>")
    yield "llama3", llama3
    flags = [AddedToken("<left>", lstrip=True, special=True, normalized=False), AddedToken("<right>", rstrip=True, normalized=False),
             AddedToken("<both>", lstrip=True, rstrip=True, normalized=True), AddedToken("word", single_word=True, normalized=False),
             AddedToken("Å", normalized=True), AddedToken("한", single_word=True, normalized=True), AddedToken("é", normalized=False)]
    yield "added tokens, all flags", byte_level(corpus, plain, end + flags, normalizers.NFC())
    yield from sentencepiece_style(corpus)


def sentencepiece_models(corpus, folder):
    """(name, path) of .model files, with and without the space before a text."""
    lines = folder / "corpus.txt"
    lines.write_text("\n".join(line for text in corpus for line in text.split("\n") if line.isprintable()))
    marks = ["<td>", "<start_of_turn>", "▁▁", "▁▁▁"]
    for name, prefix, symbols in (("llama2.model", True, []), ("gemma.model", False, marks), ("symbols.model", True, [*marks, "e▁t"])):
        sentencepiece.SentencePieceTrainer.train(
            input=str(lines), model_prefix=str(folder / name.removesuffix(".model")), vocab_size=VOCABULARY, model_type="bpe",
            byte_fallback=True, character_coverage=0.98, normalization_rule_name="identity", remove_extra_whitespaces=False,
            add_dummy_prefix=prefix, allow_whitespace_only_pieces=True, split_digits=True, user_defined_symbols=symbols,
            minloglevel=2)
        yield name, folder / name


def smollm2_of(gguf):
    """The tokenizer that the metadata of a SmolLM2 in GGUF describe: byte-level BPE, single digits, GPT-2's words."""
    from gguf import GGUFReader

    fields = GGUFReader(str(gguf)).fields
    get = lambda key: fields[f"tokenizer.ggml.{key}"].contents()
    assert (get("model"), get("pre")) == ("gpt2", "smollm")
    tokens = get("tokens")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[tuple(m.split(" ")) for m in get("merges")]))
    tokenizer.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special(*(token for token, kind in zip(tokens, get("token_type")) if kind == 3)))
    return tokenizer


def ranks_of(tokenizer_json, target):
    """The tokenizer.model that Llama 3 was published with, from the vocabulary of its tokenizer.json."""
    byte_of = {character: byte for byte, character in byte_characters()}
    vocabulary = json.loads(tokenizer_json.read_text())["model"]["vocab"]
    with target.open("w") as file:
        for piece, rank in sorted(vocabulary.items(), key=lambda item: item[1]):
            file.write(f"{base64.b64encode(bytes(byte_of[c] for c in piece)).decode()} {rank}\n")
    return target


def read_ranks(path):
    lines = (line.split() for line in path.read_text().splitlines())
    return {base64.b64decode(piece): int(rank) for piece, rank in lines}


def byte_characters():
    """GPT-2's stand-ins: printable bytes are themselves, the others count up from U+0100."""
    others = 0
    for byte in range(256):
        if 33 <= byte <= 126 or 161 <= byte <= 172 or 174 <= byte <= 255:
            yield byte, chr(byte)
        else:
            yield byte, chr(256 + others)
            others += 1
