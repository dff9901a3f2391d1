"""Compacter against Kronecker products written out, its shared matrices, and its bounds."""

from __future__ import annotations

from tests.methods.tiny import HEAD, LAYERS, NORMS, D

N = 4
UNITS = N
ONE = 2 * (N * (D // N) + N * (UNITS // N)) + UNITS + D
COUNTS = {
    "llama": LAYERS * 2 * ONE + N**3 + NORMS["llama"] * D,
    "gpt2": LAYERS * 2 * ONE + N**3 + NORMS["gpt2"] * 2 * D,
    "bert": LAYERS * 2 * ONE + N**3 + NORMS["bert"] * 2 * D + HEAD["bert"],
    "t5": 2 * LAYERS * 2 * ONE + N**3 + NORMS["t5"] * D,
}
