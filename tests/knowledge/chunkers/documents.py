"""Documents of all kinds, two real tokenizers, and tools for chunkers that embed and write."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from luthier.core.document import Block, Document
from luthier.core.engine import Vectors
from luthier.engines.fake import Config, FakeEngine
from luthier.knowledge.chunkers._spans import ChunkTools

ENGLISH = (
    "The mill stands where two rivers meet. Its wheel was built in 1821 by Dr. Harrow, who also built the bridge. "
    "Nobody has ground corn there since the flood! Was it the flood, or the railway? Historians disagree about it. "
)
CHINESE = "磨坊建在两条河的汇合处。水轮由哈罗博士于一八二一年建造,他还修建了那座桥。洪水以后再也没有人在那里磨玉米!是洪水还是铁路的缘故?历史学家对此看法不一。"
ROWS = "\n".join(f"| screw M{n} | {n * 7} | bin {n}-{n % 9} |" for n in range(1, 60))
TABLE = "| part | price | place |\n| --- | ---: | --- |\n" + ROWS
CODE = (
    "import os\n\n\nclass Mill:\n    def grind(self, corn):\n        flour = []\n        for grain in corn:\n            flour.append(grain / 2)\n        return flour\n\n\n"
    * 8
)


def _document(digest: str, *blocks: Block, language: str = "en", title: str = "The mill") -> Document:
    return Document("mill.md", digest, "text/markdown", title, blocks, language=language)


DOCUMENTS = {
    "empty": _document("e0"),
    "blank": _document("e1", Block("  \n "), Block("")),
    "short": _document("s1", Block("One line.")),
    "english": _document(
        "d1",
        Block("The mill", "heading", 1, page=1),
        Block(ENGLISH * 3, page=1),
        Block("Its wheel", "heading", 2, page=2),
        Block(ENGLISH * 5, page=2),
        Block("Its owners", "heading", 2, page=3),
        Block("- Harrow\n- Finch\n- the parish", "list", page=3),
        Block(ENGLISH, "quote", page=4),
    ),
    "chinese": _document("d2", Block("磨坊", "heading", 1), Block(CHINESE * 6), Block(CHINESE * 2), language="zh"),
    "mixed": _document("d3", Block((ENGLISH + CHINESE) * 3), Block("naïve café — ﷺ 👩‍👩‍👧 \u200b\u200b end\x0c." * 10)),
    "table": _document("d4", Block("Prices", "heading", 1), Block(TABLE, "table", place="sheet Prices!A1:C61"), Block(ENGLISH)),
    "code": _document("d5", Block(CODE, "code", place="lines 1-88"), Block("x = 1\n    y = 2", "code", place="lines 90-91")),
    "huge word": _document("d6", Block("x" * 5000), Block("说" * 3000), Block("a" * 300 + " b " + "ab-" * 500)),
    "no tokens": _document("d7", Block("\u200b" * 400 + " word " + "\u200b" * 10)),
    "questions": _document("d8", Block("Our shop.\nQ1: When do you open?\nA: At nine.\nQ2: Where are you?\nA: In Mill Lane. " + ENGLISH * 3)),
}  # fmt: skip


def _wordpiece() -> Tokenizer:
    """As BERT cuts: words lowered, accents dropped, Chinese by character, a word of over 100 characters is one unknown token."""
    made = Tokenizer(models.WordPiece({}, unk_token="[UNK]", max_input_chars_per_word=100))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    letters = {
        letter for text in (ENGLISH.lower(), "abcdefghijklmnopqrstuvwxyz0123456789|-:.", CHINESE) for letter in text
    }
    words = [
        "[UNK]",
        *sorted(letters),
        *sorted(f"##{letter}" for letter in letters),
        "the",
        "mill",
        "wheel",
        "##ill",
        "river",
        "##s",
    ]
    made.model = models.WordPiece({word: n for n, word in enumerate(dict.fromkeys(words))}, unk_token="[UNK]")
    return made


def _byte_level() -> Tokenizer:
    """As GPT-2 cuts: the space belongs to the word after it, so a word alone has other tokens than one in a text."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([ENGLISH, CHINESE, TABLE] * 3, trainer)
    return made


TOKENIZERS = {"wordpiece": _wordpiece(), "byte_level": _byte_level()}


def tools_of(tokenizer: Tokenizer) -> ChunkTools:
    """Tools with this tokenizer, an embedder that gives each text a direction of its own, and a model that asks the same two questions."""
    engine = FakeEngine(
        "writer",
        Config(
            answers={"questions": "1. What is it?\n2. 是什么?\nnot a question", "个不同的问题": "这是什么?\n那是什么?"}
        ),
    )
    return ChunkTools(lambda text: tokenizer.encode(text, add_special_tokens=False).offsets, embed, engine)


def embed(texts: Sequence[str]) -> Vectors:
    """Unit vectors from a digest."""
    seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") for text in texts]
    drawn = np.stack([np.random.default_rng(seed).normal(size=16) for seed in seeds])
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), np.float32)
