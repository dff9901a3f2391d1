"""The reasoning that examples bring."""

from __future__ import annotations

import re

from luthier.core.dataset import Example

RATIONALES = ("rationale", "reasoning", "explanation", "solution", "answer")
"""Keys of an example's ``meta`` under which its reasoning is looked for, in this order."""


def rationale_of(example: Example) -> str:
    """The reasoning that a row brings, without calculator marks and the answer in its last line; empty when it has none."""
    for key in RATIONALES:
        text = example.meta.get(key)
        if isinstance(text, str) and text.strip() and text.strip() != example.target:
            kept = re.sub(r"<<[^<>]*>>", "", re.sub(r"\n?####[^\n]*\s*$", "", text)).strip()
            if kept:
                return kept
    return ""
