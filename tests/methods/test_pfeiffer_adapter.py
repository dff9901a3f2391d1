"""Pfeiffer adapters against the paper's equation, in models that normalise first and in BERT, which normalises last."""

from __future__ import annotations

from tests.methods.tiny import HEAD, LAYERS, D

UNITS = D // 16
ONE = 2 * D * UNITS + UNITS + D
COUNTS = {
    "llama": LAYERS * ONE,
    "gpt2": LAYERS * ONE,
    "bert": LAYERS * ONE + HEAD["bert"],
    "t5": 2 * LAYERS * ONE,
}
