"""Parallel adapters against the equation of He et al."""

from __future__ import annotations

from tests.methods.tiny import HEAD, LAYERS, D

UNITS = D // 2
ONE = 2 * D * UNITS + UNITS + D
COUNTS = {
    "llama": LAYERS * ONE,
    "gpt2": LAYERS * ONE,
    "bert": LAYERS * ONE + HEAD["bert"],
    "t5": 2 * LAYERS * ONE,
}
