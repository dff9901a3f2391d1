"""Personal data and secrets: mail, phone, card, IBAN, IDs, addresses of machines, keys, passwords, and names where a model finds them.

The model is asked with placeholders (``[EMAIL_1]``), the caller gets the originals back in the answer, and traces keep the placeholders. The
same value has the same placeholder in the whole conversation. In answers it masks what the caller did not say: ``[EMAIL]``. Forms and check
digits: ``luthier.data.pii``. ``names`` is a tagger (``luthier tune`` with the objective ``tag``); without one names are not found.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.engine import GENERATE, Engine, Sampling, require
from luthier.core.errors import InputError
from luthier.core.message import user
from luthier.data import pii
from luthier.gateway.guardrails._contract import Context, Finding, Models
from luthier.gateway.guardrails._segments import Segment, segments

ON = ("input", "output")
ACTIONS = ("mask", "block", "flag", "hand_over")
ROLES = ("system", "user", "assistant", "tool")
KEPT = pii.KEPT
KINDS = (*pii.KINDS, "NAME")
CALLS = True

Kind = Literal["EMAIL", "PHONE", "CARD", "IBAN", "CN_ID", "SSN", "PASSPORT", "PLATE", "IP", "SECRET"]
NAME = "NAME"


class Config(EntryConfig):
    """``kinds``: which are looked for. ``regions``: whose national phone numbers are known (ISO 3166). ``names``: a tagger; ``name_types``: which of
    its types are names of people."""

    kinds: tuple[Kind, ...] = pii.KINDS  # type: ignore[assignment]
    regions: tuple[str, ...] = Field(pii.REGIONS, min_length=1)
    names: str | None = None
    name_types: tuple[str, ...] = ("PERSON", "PER", "NAME", "人名")


@dataclass(frozen=True)
class Tagger:
    """A model that finds names."""

    engine: Engine
    types: frozenset[str]

    def names(self, texts: Sequence[str]) -> Iterator[list[tuple[int, int]]]:
        """Where the names are, text by text."""
        for answer in self.engine.generate([user(text) for text in texts], Sampling()):
            found = json.loads(answer.text or "[]")
            yield [(each["start"], each["end"]) for each in found if each["type"] in self.types]


def prepare(config: Config, models: Models) -> Tagger | None:
    """Open the tagger. Raises InputError for a model that does not tag, or a region that is none."""
    import phonenumbers

    unknown = [region for region in config.regions if region not in phonenumbers.SUPPORTED_REGIONS]
    if unknown:
        raise InputError(
            f"regions: {unknown[0]!r} has no numbering plan; use two capital letters, for example CN, US, GB"
        )
    if config.names is None:
        return None
    engine = models.engine(config.names)
    require(engine, GENERATE)
    if engine.info.answers != "tags":
        raise InputError(
            f"names: {config.names} does not tag words", hint="luthier tune RUN.yaml with objective: {name: tag}"
        )
    return Tagger(engine, frozenset(config.name_types))


def slow(config: Config) -> bool:
    """A tagger is a model."""
    return config.names is not None


def check(text: str, config: Config, context: Context) -> list[Finding]:
    """Every value, by kind."""
    return scan(text, 0, True, config, context)[0]


def scan(text: str, start: int, final: bool, config: Config, context: Context) -> tuple[list[Finding], int]:
    """What is sure of a growing text; names are looked for in whole sentences."""
    if final:
        spans, cut = pii.find_from(text, start, config.kinds, config.regions), len(text)
    else:
        spans, cut = pii.scan(text, start, config.kinds, config.regions)
    findings = [_finding(span.kind, span.start, span.end) for span in spans]
    if context.state is None:
        return findings, cut
    complete = [segment for segment in segments(text, start, final) if segment.end <= cut]
    while complete and any(finding.start < complete[-1].end < finding.end for finding in findings):
        complete.pop()
    cut = complete[-1].end if complete else start
    findings = [finding for finding in findings if finding.end <= cut]
    names = _names(text, complete, context.state)
    taken = [(each.start, each.end) for each in findings]
    findings += [
        _finding(NAME, low, high)
        for low, high in names
        if not any(low < last and first < high for first, last in taken)
    ]
    return sorted(findings, key=lambda each: each.start), cut


def _names(text: str, found: Sequence[Segment], tagger: Tagger) -> list[tuple[int, int]]:
    filled = [segment for segment in found if text[segment.start : segment.end].strip()]
    texts = [text[segment.start : segment.end] for segment in filled]
    return [
        (segment.start + low, segment.start + high)
        for segment, places in zip(filled, tagger.names(texts) if texts else (), strict=True)
        for low, high in places
    ]


def _finding(kind: str, start: int, end: int) -> Finding:
    return Finding(kind, start, end, reason=_REASONS[kind])


_REASONS = {
    "EMAIL": "a mail address", "PHONE": "a phone number", "CARD": "a payment card number", "IBAN": "a bank account number",
    "CN_ID": "a Chinese resident ID", "SSN": "a US social security number", "PASSPORT": "a passport number",
    "PLATE": "a Chinese car plate", "IP": "an IP address", "SECRET": "a key, token or password", NAME: "a person's name",
}  # fmt: skip
