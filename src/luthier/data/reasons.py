"""The answers of examples, and the reasoning that leads to them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from luthier.core.dataset import Example

RATIONALES = ("rationale", "reasoning", "explanation", "solution", "answer")
"""Keys of an example's ``meta`` under which its reasoning is looked for, in this order."""

_RESULT = re.compile(r"\n?####[ \t]*(?P<answer>[^\n]*?)\s*$")
_CALCULATOR = re.compile(r"<<[^<>]*>>")


def answer_of(example: Example) -> str:
    """The answer alone: the target, or what follows ``####`` where the target is worked out before it."""
    target = str(example.target)
    found = _RESULT.search(target)
    return found["answer"] if found and found["answer"] else target


def answers_of(examples: Iterable[Example]) -> list[str]:
    """The answers of those examples that have one."""
    return [answer_of(e) for e in examples if e.target is not None]


def rationale_of(example: Example) -> str:
    """The reasoning that a row brings, without calculator marks and the answer in its last line; empty when it has none."""
    answer = answer_of(example)
    for text in (*(example.meta.get(key) for key in RATIONALES), example.target if answer != example.target else None):
        if isinstance(text, str):
            kept = _CALCULATOR.sub("", _RESULT.sub("", text)).strip()
            if kept and kept != answer:
                return kept
    return ""
