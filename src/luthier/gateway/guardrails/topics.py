"""Topics: what may be talked about and what may not, by words and by likeness to examples.

``deny`` and ``allow`` name topics; each has ``words`` (whole words, or in Chinese any place), and ``examples``, to which a text is compared with an
``embedder``. A text on a denied topic is found; with ``allow``, so is the last user turn when it is on none of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.engine import EMBED, Engine, require
from luthier.core.errors import InputError
from luthier.gateway.guardrails._contract import INPUT, Context, Finding, Models, whole

ON = ("input", "output")
ACTIONS = ("block", "mask", "flag", "hand_over")
ROLES = ("user",)
KINDS = ("REMOVED",)
KEPT = 1
MOST_WORDS = 500
_MOST_BLANKS = 4
_WIDE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")


class Topic(EntryConfig):
    """``words`` (or phrases) and ``examples`` (whole texts) of a topic."""

    words: tuple[str, ...] = Field((), max_length=MOST_WORDS)
    examples: tuple[str, ...] = Field((), max_length=MOST_WORDS)


class Config(EntryConfig):
    """``similarity``: the least cosine with an example. Words count in capital and small letters alike."""

    deny: dict[str, Topic] = Field(default_factory=dict)
    allow: dict[str, Topic] = Field(default_factory=dict)
    embedder: str | None = None
    similarity: float = Field(0.5, gt=0, le=1)


@dataclass(frozen=True)
class Prepared:
    """Patterns and vectors of the topics."""

    deny: re.Pattern[str] | None
    denied: dict[str, str]  # word: topic
    allow: re.Pattern[str] | None
    longest: int
    embedder: Engine | None
    names: tuple[tuple[str, bool], ...]  # of each row of vectors: its topic, whether it is allowed
    vectors: npt.NDArray[np.float32] | None


def prepare(config: Config, models: Models) -> Prepared:
    """Compile words, embed examples. Raises InputError for topics that say nothing, or examples without an embedder."""
    if not config.deny and not config.allow:
        raise InputError("topics need deny or allow; got neither")
    for name, topic in (config.deny | config.allow).items():
        if not topic.words and not topic.examples:
            raise InputError(f"topic {name!r} needs words or examples")
        if topic.examples and config.embedder is None:
            raise InputError(f"topic {name!r} has examples; set embedder, for example minilm-l6")
    texts: list[str] = []
    names: list[tuple[str, bool]] = []
    for topics, allowed in ((config.deny, False), (config.allow, True)):
        for name, topic in topics.items():
            texts += topic.examples
            names += [(name, allowed)] * len(topic.examples)
    embedder = None
    if texts and config.embedder is not None:
        embedder = models.engine(config.embedder)
        require(embedder, EMBED)
    denied = {_same(word): name for name, topic in config.deny.items() for word in topic.words}
    return Prepared(
        _pattern([word for topic in config.deny.values() for word in topic.words]),
        denied,
        _pattern([word for topic in config.allow.values() for word in topic.words]),
        max((len(word) + _MOST_BLANKS * len(word.split()) for word in denied), default=0),
        embedder,
        tuple(names),
        embedder.embed(texts) if embedder is not None else None,
    )


def slow(config: Config) -> bool:
    """Examples need an embedder."""
    return config.embedder is not None


def streams(config: Config) -> bool:
    """Words can be found while an answer is written; what it is about cannot."""
    return not any(topic.examples for topic in config.deny.values())


def check(text: str, config: Config, context: Context) -> list[Finding]:
    """Denied words where they stand; for the rest one finding over the whole text."""
    prepared: Prepared = context.state
    findings = _words(text, 0, len(text), prepared)
    if findings or not text.strip():
        return findings
    asked = context.direction == INPUT and context.last and bool(config.allow)
    likeness = _likeness(text, prepared)
    for name, score in likeness.get(False, {}).items():
        if score >= config.similarity:
            return whole(name, text, score, f"it is about {name}")
    if asked and not (prepared.allow is not None and prepared.allow.search(text)):
        best = max(likeness.get(True, {}).values(), default=0.0)
        if best < config.similarity:
            return whole("off_topic", text, 1.0 - max(0.0, best), f"allowed topics: {', '.join(config.allow)}")
    return []


def scan(text: str, start: int, final: bool, config: Config, context: Context) -> tuple[list[Finding], int]:
    """Denied words: what may be the beginning of the longest of them is held back."""
    prepared: Prepared = context.state
    cut = len(text)
    if not final:
        cut = max(start, len(text) - prepared.longest)
    findings = _words(text, start, len(text), prepared)
    for finding in findings:
        if finding.start < cut < finding.end:
            cut = finding.start
    return [finding for finding in findings if finding.end <= cut], cut


def _words(text: str, start: int, end: int, prepared: Prepared) -> list[Finding]:
    if prepared.deny is None:
        return []
    out = []
    for match in prepared.deny.finditer(text, start, end):
        name = prepared.denied.get(_same(match[0]), "denied")
        out.append(Finding(name, *match.span(), 1.0, f"a word of the topic {name}"))
    return out


def _likeness(text: str, prepared: Prepared) -> dict[bool, dict[str, float]]:
    """For denied and allowed topics, the largest cosine with an example of each."""
    out: dict[bool, dict[str, float]] = {}
    if prepared.embedder is None or prepared.vectors is None:
        return out
    vector: Any = prepared.embedder.embed([text])[0]
    for (name, allowed), score in zip(prepared.names, (prepared.vectors @ vector).tolist(), strict=True):
        scores = out.setdefault(allowed, {})
        scores[name] = max(score, scores.get(name, -1.0))
    return out


def _pattern(words: Sequence[str]) -> re.Pattern[str] | None:
    """Any of these words, the longest first; None without words."""
    forms = []
    for word in sorted(words, key=len, reverse=True):
        text = rf"\s{{1,{_MOST_BLANKS}}}".join(map(re.escape, word.split()))
        bounds = ("", "") if _WIDE.search(word) else (r"(?<!\w)", r"(?!\w)")
        forms.append(f"{bounds[0]}{text}{bounds[1]}")
    return re.compile("|".join(forms), re.IGNORECASE) if forms else None


def _same(word: str) -> str:
    """A word as it is looked up."""
    return " ".join(word.casefold().split())
