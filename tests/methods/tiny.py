"""The sizes of the tiny models, for closed formulas of how many parameters a method trains.

Kinds: ``llama`` and ``gpt2`` are decoders, ``bert`` is an encoder (with a head for two labels), ``t5`` an encoder-decoder.
"""

from __future__ import annotations

from collections.abc import Callable

KINDS = {"llama": "decoder", "gpt2": "decoder", "bert": "encoder", "t5": "encoder-decoder"}
"""Kind -> architecture."""
FIXTURES = {"llama": "tiny_decoder", "gpt2": "tiny_gpt2", "bert": "tiny_encoder", "t5": "tiny_t5"}

LAYERS = 2
"""Blocks (of a T5: of its encoder, and again of its decoder)."""
D, F, KV = 32, 64, 16
"""Width, feed-forward width, and the width of Llama's keys and of its values (two heads for four queries)."""
HEAD = {"llama": 0, "gpt2": 0, "bert": 2 * D + 2, "t5": 0}
"""The head that a method trains beside what it does to an encoder: two labels, with biases."""
WORDS = {"llama": 384 * D, "gpt2": 384 * D, "bert": 300 * D, "t5": 384 * D}
"""The token embeddings; the head of the language models is the same matrix."""

Sides = list[tuple[int, int]]
ATTENTION: dict[str, Sides] = {
    "llama": LAYERS * [(D, D), (D, KV), (D, KV), (D, D)],
    "gpt2": LAYERS * [(D, 3 * D), (D, D)],
    "bert": LAYERS * 4 * [(D, D)],
    "t5": LAYERS * (4 + 8) * [(D, D)],  # the decoder's blocks attend to the encoder too
}
"""(inputs, outputs) of every linear layer of the attention, in all blocks."""
FORWARD: dict[str, Sides] = {
    "llama": LAYERS * [(D, F), (D, F), (F, D)],
    "gpt2": LAYERS * [(D, F), (F, D)],
    "bert": LAYERS * [(D, F), (F, D)],
    "t5": LAYERS * 2 * [(D, F), (F, D)],
}
"""The same of the feed-forward layers."""
LINEARS = {kind: ATTENTION[kind] + FORWARD[kind] for kind in KINDS}
NORMS = {"llama": 2 * LAYERS + 1, "gpt2": 2 * LAYERS + 1, "bert": 1 + 2 * LAYERS, "t5": (2 + 3) * LAYERS + 2}
"""How many layers normalise. Those of Llama and T5 have gains, those of GPT-2 and BERT also biases, of width D."""
POSITIONS = {"llama": 0, "gpt2": 512 * D, "bert": (128 + 2) * D, "t5": 2 * 32 * 4}
"""Position (and BERT's segment) embeddings; of a T5 what each of 32 distances adds to each of 4 heads, in both stacks."""


def weights(sides: Sides) -> int:
    """Entries of the matrices."""
    return sum(i * o for i, o in sides)


def biases(kind: str) -> int:
    """All bias terms, those of the norms too."""
    return 0 if kind in ("llama", "t5") else sum(o for _, o in LINEARS[kind]) + NORMS[kind] * D


def whole(kind: str) -> int:
    """Every parameter."""
    return WORDS[kind] + POSITIONS[kind] + weights(LINEARS[kind]) + NORMS[kind] * D + biases(kind) + HEAD[kind]


def each_linear(formula: Callable[[int, int], int], *, kinds: tuple[str, ...] = tuple(KINDS)) -> dict[str, int]:
    """Kind -> the sum of ``formula(inputs, outputs)`` over all linear layers, with an encoder's head."""
    return {kind: sum(formula(i, o) for i, o in LINEARS[kind]) + HEAD[kind] for kind in kinds}
