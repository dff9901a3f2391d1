"""Adapters after Houlsby et al. against the paper's equation, where they go, and their bounds."""

from __future__ import annotations

from tests.methods.tiny import HEAD, LAYERS, NORMS, D

UNITS = D // 16
ONE = 2 * D * UNITS + UNITS + D
COUNTS = {
    "llama": LAYERS * 2 * ONE + NORMS["llama"] * D,
    "gpt2": LAYERS * 2 * ONE + NORMS["gpt2"] * 2 * D,
    "bert": LAYERS * 2 * ONE + NORMS["bert"] * 2 * D + HEAD["bert"],
    "t5": 2 * LAYERS * 2 * ONE + NORMS["t5"] * D,
}
