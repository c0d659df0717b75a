"""Random strings that tokenizers are known to disagree on: mixtures of words, spaces, marks, scripts and special tokens."""
import random
import sys
import unicodedata

WORDS = ("the of and Tim can't I'LL we've it's don'T 'S 'ſ x86 naïve café Ελλάδα привет мир שלום مرحبا हिन्दी भाषा ภาษาไทย 中文 漢字 "
         "日本語 テスト 한국어 Việt İstanbul ǅ ﬁne 123 3.14159 1,000,000 ٠١٢ ௧௨ Ⅷ ½ 𝟘𝟙 foo_bar camelCase HTTPServer don't's").split()
SPACES = [" ", "  ", "   ", " " * 7, " " * 16, "\t", "\t\t", "\n", "\n\n", "\n\n\n", "\r\n", "\r", " \n", "\n ", " \t", "\v", "\f",
          "\x85", "\xa0", "\u1680", "\u2003", "\u2028", "\u2029", "\u202f", "\u205f", "\u3000", "\u180e", "\u200b", "\ufeff"]
MARKS = ["▁", "▁▁", " ▁", "▁ ", "<0x0A>", "<0xE2>", "<0xZZ>", "Ġ", "Ċ", "ĠĠ", "<unk>", "<s>", "</s>", "<|x|>", "[INST]", "'", "''", '"',
         "...", "!?", "--", "~~", "()", "{}", "$", "\\", "/", "\x00", "\x01", "\x7f", "\ufffd", "\uffff", "\U0010ffff"]
COMBINING = [chr(c) for c in (*range(0x300, 0x315), 0x323, 0x327, 0x328, 0x345, 0x5B0, 0x5BF, 0x64B, 0x651, 0x93C, 0x94D, 0x9BE, 0x9BC,
                              0xDCF, 0xF71, 0xF72, 0x1161, 0x1175, 0x11A7, 0x11A8, 0x11C2, 0x3099, 0x309A, 0x1D165, 0x20DD, 0xFE0F)]
COMPOSING = list("aeounAEOUcdsKÅéÖΑΩиאلकবකᄀᄒ가각かハ") + ["\u212b", "\u2126", "\u0958", "\uf900", "\U0002f800", "\u1e9b", "\u0344", "\u0374"]
EMOJI = ["🙂", "👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇩🇪", "❤️", "1️⃣"]
# Letters, marks, numbers and symbols that are younger than some engines' tables.
YOUNG = [chr(c) for c in (0x897, 0x1C89, 0xA7CB, 0xA7DA, 0x105C0, 0x10D40, 0x10D50, 0x11380, 0x1E5F1, 0x1FAE9, 0x31350, 0x2EBF0, 0x1FADF)]


def assigned_characters():
    """Characters by general category, so that rare categories are as frequent as common ones."""
    found = {}
    for code in range(sys.maxunicode + 1):
        category = unicodedata.category(chr(code))
        if category not in ("Cs", "Co"):
            found.setdefault(category, []).append(chr(code))
    return list(found.values())


class RandomText:
    def __init__(self, seed, special=(), avoid=()):
        """`special`: tokens that are to appear written out; `avoid`: what no text may hold."""
        self.random, self.avoid = random.Random(seed), avoid
        self.categories = assigned_characters()
        self.sources = [(WORDS, 8), (SPACES, 6), (MARKS, 3), (COMBINING, 2), (COMPOSING, 2), (EMOJI, 1), (YOUNG, 1)]
        if special:
            self.sources.append((list(special), 3))
        self.weights = [weight for _, weight in self.sources] + [4, 2, 1]

    def part(self):
        choice = self.random.choices(range(len(self.weights)), self.weights)[0]
        if choice < len(self.sources):
            return self.random.choice(self.sources[choice][0])
        if choice == len(self.sources):  # any assigned character
            return self.random.choice(self.random.choice(self.categories))
        if choice == len(self.sources) + 1:  # any printable ASCII
            return chr(self.random.randrange(32, 127))
        code = self.random.randrange(0x10F800)  # any code point, private and unassigned ones too
        return chr(code if code < 0xD800 else code + 0x800)

    def one(self):
        text = "".join(self.part() for _ in range(self.random.choice((1, 2, 3, 5, 8, 13, 21))))
        # Runs: what one character does, many may not.
        return text * self.random.choice((2, 3, 20)) if self.random.random() < 0.05 else text

    def many(self, count):
        texts = []
        while len(texts) < count:
            text = self.one()
            if not any(token in text for token in self.avoid):
                texts.append(text)
        return texts
