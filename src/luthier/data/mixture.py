"""Instruction mixtures: the rows of several datasets as conversations in many formats.

Wei et al. 2022, "Finetuned language models are zero-shot learners" (FLAN), put each task into several instructions; Longpre et al. 2023, "The
Flan collection", found that zero-shot, few-shot and chain-of-thought formats of the same data help each other, that turning tasks round
does too, and that sources are best mixed by their rows up to a limit, as Raffel et al. 2020 do.

What is made depends on the rows, the settings and the seed alone.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from luthier.core.config import Document, from_mapping, read_yaml, validate
from luthier.core.dataset import Dataset, Example
from luthier.core.digest import digest_json
from luthier.core.errors import DataError, InputError
from luthier.core.message import Message
from luthier.core.run import Progress, no_progress
from luthier.data.dedupe import content_key
from luthier.data.instructions import OWN, Language, Template, filled, language_of
from luthier.data.read import example_id, read, write
from luthier.data.shares import Mixture, stream

Format = Literal["zero_shot", "few_shot", "chain_of_thought", "few_shot_chain_of_thought", "inverted", "chat"]

RATIONALES = ("rationale", "reasoning", "explanation", "chain_of_thought", "cot")
"""Fields in which a row may say how one gets to its answer."""

_SHOWN = 5
_MARK = "####"  # GSM8K (Cobbe et al. 2021) writes the final answer after it
_CALCULATOR = re.compile(r"<<[^<>]*>>")  # and its sums for a calculator between these


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MixtureSource(_Section):
    """One dataset. ``asks`` is what its labels say of a text (``topic``), ``labels`` renames them, ``rationale`` names the field that
    says how one gets to the answer. ``language`` is told from the rows when left out. ``templates`` replace ours."""

    path: str
    name: str | None = Field(None, min_length=1)
    cap: int | None = Field(None, ge=1)
    limit: int | None = Field(None, ge=1)
    columns: dict[str, str] | None = None
    asks: str | None = Field(None, min_length=1)
    labels: dict[str, str] | None = None
    rationale: str | None = Field(None, min_length=1)
    language: Language | None = None
    templates: tuple[Template, ...] = ()

    @property
    def called(self) -> str:
        """The name, given or the file's."""
        return self.name or self.path.removeprefix("hub:").rstrip("/").split("/")[-1].split(".")[0]


class Formats(_Section):
    """How often each format is chosen beside the others, among those that a row can have."""

    zero_shot: float = Field(1.0, ge=0)
    few_shot: float = Field(1.0, ge=0)
    chain_of_thought: float = Field(1.0, ge=0)
    few_shot_chain_of_thought: float = Field(0.5, ge=0)
    inverted: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _some(self) -> Formats:
        if not self.zero_shot + self.few_shot:
            raise ValueError("zero_shot or few_shot must be above 0: rows without a rationale have no other format")
        return self


class MixtureConfig(_Section):
    """``rows`` are wanted in all (default: of each source its rows, at most ``cap``). ``shots`` is the least and the most examples shown.
    ``max_characters`` bounds a prompt: examples are left out until it fits. Rows that stand in ``tests`` too are an error, or left
    out (``overlap``)."""

    sources: tuple[MixtureSource, ...] = Field(min_length=1)
    formats: Formats = Formats()
    rows: int | None = Field(None, ge=1)
    cap: int | None = Field(None, ge=1)
    shots: tuple[int, int] = (1, 4)
    max_characters: int = Field(8000, ge=100)
    tests: tuple[str, ...] = ()
    overlap: Literal["error", "drop"] = "error"
    skip_bad: bool = False
    seed: int = 0

    @model_validator(mode="after")
    def _fits(self) -> MixtureConfig:
        if not 1 <= self.shots[0] <= self.shots[1]:
            raise ValueError("shots must be the least and the most examples, of at least 1")
        names = [source.called for source in self.sources]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two sources are called {twice[0]!r}; give them a name each")
        return self


@dataclass(frozen=True)
class Mixed:
    """What was made: the conversations, how many of each source and format, and what was left out: rows that say the same as another,
    and rows that stand in a test file."""

    dataset: Dataset
    counts: Mapping[str, Mapping[str, int]]
    copies: int = 0
    overlapping: int = 0
    path: Path | None = None


@dataclass(frozen=True, slots=True)
class _Row:
    """A row in the words of templates."""

    key: str
    input: str
    answer: str
    rationale: str


@dataclass(frozen=True)
class _Pool:
    """What may be drawn of a source."""

    source: MixtureSource
    rows: Sequence[_Row]
    chats: Sequence[Example]
    templates: Mapping[Format, Sequence[tuple[str, Template]]]
    values: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows) or len(self.chats)

    @cached_property
    def reasoned(self) -> list[int]:
        """Places of the rows that have a rationale."""
        return [number for number, row in enumerate(self.rows) if row.rationale]


def mixture(
    config: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    out: str | Path | None = None,
    progress: Progress = no_progress,
) -> Mixed:
    """Make the conversations that ``config`` (a YAML file or its values) says, and write them to ``out`` whole or not at all.

    Raises InputError for settings, DataError for files that cannot be used, for rows that stand in ``tests`` and for sources of another kind
    than labelled, question or chat.
    """
    document = from_mapping(config, overrides) if isinstance(config, Mapping) else read_yaml(config, overrides)
    settings = validate(MixtureConfig, document.values, origins=document.origins)
    pools, overlapping = _pools(settings, document, progress)
    sizes = [min(len(pool), pool.source.cap or settings.cap or len(pool)) for pool in pools]
    shares = Mixture(tuple(pool.source.called for pool in pools), epoch_rows=settings.rows)
    wanted = shares.counts(sizes)
    made: list[Example] = []
    seen: set[str] = set()
    counts: dict[str, Counter[str]] = {}
    for pool, count in zip(pools, wanted, strict=True):
        name = pool.source.called
        counts[name] = Counter()
        for number, at in enumerate(stream(len(pool), 0, count, f"{settings.seed}/{name}")):
            example = _made(pool, at, settings, random.Random(f"{settings.seed}/{name}/{number}"))
            said = digest_json([m.as_dict() for m in example.messages])
            if said not in seen:
                seen.add(said)
                made.append(example)
                counts[name][str(example.meta["format"])] += 1
            if len(seen) % 100 == 0 or number + 1 == count:
                progress("mixture", len(made), sum(wanted))
    random.Random(f"{settings.seed}/order").shuffle(made)
    dataset = Dataset(Path(out).stem if out is not None else "mixture", "chat", tuple(made), "messages")
    path = write(dataset, out) if out is not None else None
    return Mixed(dataset, counts, sum(wanted) - len(made), overlapping, path)


def _pools(settings: MixtureConfig, document: Document, progress: Progress) -> tuple[list[_Pool], int]:
    """What each source has, without what stands in the test files, and how many rows those are."""
    held = {
        content_key(example)
        for test in settings.tests
        for example in read(document.path(test), skip_bad=settings.skip_bad).examples
    }
    pools, left_out = [], 0
    for number, source in enumerate(settings.sources):
        progress("read", number, len(settings.sources))
        path = source.path if source.path.startswith("hub:") else document.path(source.path)
        found = read(path, skip_bad=settings.skip_bad, limit=source.limit, columns=source.columns)
        both = [example for example in found.examples if content_key(example) in held]
        if both and settings.overlap == "error":
            shown = ", ".join(example.source or example.id for example in both[:_SHOWN])
            raise DataError(
                f"{len(both):,} rows of source {source.called} stand in a test file too ({shown}{' …' if len(both) > _SHOWN else ''})",
                hint="leave them out: overlap=drop",
            )
        left_out += len(both)
        pools.append(_pool(source, found, {content_key(example) for example in both}))
    progress("read", len(settings.sources), len(settings.sources))
    return pools, left_out


def _pool(source: MixtureSource, found: Dataset, held: set[str]) -> _Pool:
    """The rows, each text once, and the templates that fit them."""
    once: dict[str, Example] = {}
    for example in found.examples:
        key = content_key(example)
        if key not in held:
            once.setdefault(key, example)
    if not once:
        raise DataError(f"nothing is left of source {source.called}")
    if found.kind == "chat":
        return _Pool(source, (), tuple(once.values()), {})
    if found.kind not in ("labelled", "question"):
        raise DataError(
            f"a mixture is made of labelled, question and chat data; source {source.called} is {found.kind}",
            hint="luthier data inspect FILE shows what a file holds",
        )
    rows = [_row(key, example, source) for key, example in once.items()]
    language = source.language or language_of(row.input for row in rows)
    templates = source.templates or tuple(t for t in OWN if t.language == language)
    named = [
        (f"{found.kind}/{'own' if source.templates else language}/{number}", template)
        for number, template in enumerate([t for t in templates if t.kind == found.kind], 1)
    ]
    plain = [(name, t) for name, t in named if not t.inverts and not t.reasons]
    if not plain:
        raise InputError(
            f"source {source.called} needs a template for {found.kind} rows that answers with {{answer}} alone"
        )
    reasons = [(name, t) for name, t in named if t.reasons]
    by_format: dict[Format, Sequence[tuple[str, Template]]] = {
        "zero_shot": plain,
        "few_shot": plain,
        "chain_of_thought": reasons,
        "few_shot_chain_of_thought": reasons,
        "inverted": [(name, t) for name, t in named if t.inverts],
    }
    shown = [(source.labels or {}).get(label, label) for label in found.labels]
    asks = source.asks or {"en": "category", "zh": "类别"}[language]
    return _Pool(source, rows, (), by_format, {"labels": {"en": ", ", "zh": "、"}[language].join(shown), "asks": asks})


def _row(key: str, example: Example, source: MixtureSource) -> _Row:
    """The text (with its choices), the final answer and how one gets there."""
    text, answer = example.text, example.target or ""
    if example.choices:
        text += "".join(f"\n- {choice}" for choice in example.choices)
    rationale = ""
    for name in (source.rationale,) if source.rationale else RATIONALES:
        if isinstance(example.meta.get(name), str) and example.meta[name].strip():
            rationale = str(example.meta[name]).strip()
            break
    if not rationale and _MARK in answer:
        worked, _, final = answer.rpartition(_MARK)
        rationale, answer = _CALCULATOR.sub("", worked).strip(), final.strip()
    if not answer.strip():
        raise DataError(f"{example.source or example.id}: a row of a mixture needs an answer; this one has none")
    return _Row(key, text, (source.labels or {}).get(answer, answer), rationale)


def _made(pool: _Pool, at: int, settings: MixtureConfig, draw: random.Random) -> Example:
    """One conversation of row ``at``."""
    if pool.chats:
        whole = pool.chats[at]
        return _example(whole.messages, {**whole.meta, "source": pool.source.called, "format": "chat"})
    row = pool.rows[at]
    chosen = _format(pool, row, settings.formats, draw)
    fitting = [(name, t) for name, t in pool.templates[chosen] if row.rationale or not t.needs_rationale]
    if row.rationale and chosen == "inverted":  # a bare answer says too little of the question
        fitting = [(name, t) for name, t in fitting if t.needs_rationale] or fitting
    name, template = draw.choice(fitting)
    shots: list[_Row] = []
    if chosen.startswith("few_shot"):
        shots = _shots(pool, at, draw.randint(*settings.shots), draw, reasons=template.reasons)
    while shots and len(_prompt(template, row, shots, pool.values)) > settings.max_characters:
        shots.pop()
    if not shots and chosen == "few_shot":
        chosen = "zero_shot"
    elif not shots and chosen == "few_shot_chain_of_thought":
        chosen = "chain_of_thought"
    turns = (
        Message("user", _prompt(template, row, shots, pool.values)),
        Message("assistant", _filled(template.answer, row, pool.values)),
    )
    meta = {"source": pool.source.called, "format": chosen, "template": name}
    return _example(turns, meta | ({"shots": len(shots)} if shots else {}))


def _format(pool: _Pool, row: _Row, formats: Formats, draw: random.Random) -> Format:
    """One of the formats that the row can have, by their shares."""
    able: list[Format] = [
        name
        for name, templates in pool.templates.items()
        if getattr(formats, name) > 0 and any(row.rationale or not t.needs_rationale for _, t in templates)
    ]
    return draw.choices(able, [getattr(formats, name) for name in able])[0]


def _shots(pool: _Pool, at: int, count: int, draw: random.Random, *, reasons: bool) -> list[_Row]:
    """Other rows of the source, with a rationale where the format shows it."""
    able = pool.reasoned if reasons else range(len(pool.rows))
    drawn = draw.sample(able, min(count + 1, len(able)))
    return [pool.rows[n] for n in drawn if n != at][:count]


def _prompt(template: Template, row: _Row, shots: Sequence[_Row], values: Mapping[str, str]) -> str:
    """Instruction, examples with their answers, and what is asked; parts are a blank line apart."""
    parts = [_filled(template.instruction, row, values)] if template.instruction else []
    for shot in shots:
        cue = _filled(template.cue, shot, values)
        answer = _filled(template.answer, shot, values)
        between = "" if not cue or cue.endswith("：") else " "
        parts.append(f"{_filled(template.input, shot, values)}\n{cue}{between}{answer}")
    asked = _filled(template.input, row, values)
    parts.append(f"{asked}\n{_filled(template.cue, row, values)}" if shots and template.cue else asked)
    return "\n\n".join(parts)


def _filled(text: str, row: _Row, values: Mapping[str, str]) -> str:
    return filled(text, {**values, "input": row.input, "answer": row.answer, "rationale": row.rationale})


def _example(messages: tuple[Message, ...], meta: Mapping[str, Any]) -> Example:
    bare = Example("", messages, meta=meta)
    return Example(example_id(bare), messages, meta=meta)
