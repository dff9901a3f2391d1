"""What is in a dataset, and what would spoil training on it: lengths, labels, copies, contradictions, languages, broken rows."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.core.dataset import Dataset, Example, Kind, RowProblem
from luthier.core.entities import from_answer, overlapping
from luthier.core.errors import InputError, LuthierError
from luthier.data.dedupe import content_key, groups, near_groups, normalise
from luthier.data.formats import FORMATS
from luthier.data.read import read

if TYPE_CHECKING:
    from luthier.data.render import Renderer

LANGUAGE_SAMPLE = 2000
SHOWN = 10

_LANGUAGE_CHARACTERS = 1000
_SHORTEST_FOR_LANGUAGE = 12
_BINS = 12
_WORDS = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]|[^\s\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]+"
)


@dataclass(frozen=True)
class Lengths:
    """Length of rows in ``unit``. ``histogram`` holds (from, to, rows), both ends included; the last bin holds all that is longer."""

    unit: str
    total: int
    mean: float
    p50: int
    p90: int
    p99: int
    max: int
    histogram: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Copies:
    """Rows that say the same: a piece of the text, the rows (``file:line``) and, of labelled rows, how often each label is given."""

    text: str
    sources: tuple[str, ...]
    labels: Mapping[str, int]


@dataclass(frozen=True)
class Inspection:
    """The report. Lists of rows hold the first ten; the counts are of all.

    ``duplicates`` counts the rows beyond the first of each set of copies (same text after normalising, same label), ``near_duplicates`` those
    beyond the first of each set of texts that are alike by 0.8 (Jaccard over five-character runs). ``conflicts`` counts texts that have
    several labels. ``languages`` were guessed on ``language_sample`` rows. ``turns`` maps messages a conversation to rows. ``labels`` counts rows, of entities the entities of each type.
    ``numbers`` describe the targets of kind ``number``: least, quartiles, largest, mean and standard deviation.
    """

    name: str
    kind: Kind
    format: str
    rows: int
    broken: int
    fields: Mapping[str, int]
    lengths: Lengths
    characters: Lengths
    labels: Mapping[str, int]
    duplicates: int
    duplicate_rows: tuple[Copies, ...]
    near_duplicates: int
    near_duplicate_rows: tuple[Copies, ...]
    conflicts: int
    conflict_rows: tuple[Copies, ...]
    context_length: int | None
    overlong: int
    overlong_rows: tuple[str, ...]
    languages: Mapping[str, int]
    language_sample: int
    turns: Mapping[int, int]
    warnings: tuple[str, ...]
    problems: tuple[RowProblem, ...]
    numbers: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        return asdict(self)


def inspect(
    source: str | Path | Dataset,
    *,
    tokenizer: Callable[[str], int] | None = None,
    renderer: Renderer | None = None,
    context_length: int | None = None,
    columns: Mapping[str, str] | None = None,
) -> Inspection:
    """Look at a file (broken rows are counted and listed, not raised) or at a dataset.

    Lengths are in tokens of ``renderer`` (each row as the model would see it, template included) or of ``tokenizer`` (text -> number of
    tokens), else in words, where each Chinese, Japanese or Korean character is one. Rows longer than ``context_length`` tokens are
    ``overlong``. Raises DataError when no row can be used, InputError for a context length without tokens to count.
    """
    if context_length is not None and tokenizer is None and renderer is None:
        raise InputError(
            "context_length counts tokens and needs a tokenizer", hint="name a model: --model smollm2-135m"
        )
    dataset = source if isinstance(source, Dataset) else read(source, skip_bad=True, columns=columns)
    warnings: list[str] = []
    texts = [_whole_text(e) for e in dataset.examples]
    counts, unit = _token_counts(dataset, texts, tokenizer, renderer, warnings)
    over = [at for at, count in enumerate(counts) if context_length is not None and count > context_length]
    keys = [content_key(e) for e in dataset.examples]
    same = groups(keys)
    exact, conflicts = _copies(dataset, same)
    near = [[same[at][0] for at in rows] for rows in near_groups([keys[rows[0]] for rows in same])]
    languages, sampled = _languages(dataset.examples)
    labels = dict(dataset.label_counts().most_common()) if dataset.kind == "labelled" else {}
    if dataset.kind == "entities":
        labels = dict(Counter(e.type for x in dataset.examples for e in from_answer(x.target or "[]")).most_common())
    report = Inspection(
        name=dataset.name,
        kind=dataset.kind,
        format=dataset.format,
        rows=len(dataset),
        broken=len(dataset.problems),
        fields=_fields(dataset),
        lengths=_lengths(counts, unit),
        characters=_lengths([len(text) for text in texts], "characters"),
        labels=labels,
        duplicates=sum(len(rows) - 1 for rows in exact),
        duplicate_rows=tuple(_shown(dataset, rows) for rows in exact[:SHOWN]),
        near_duplicates=sum(len(rows) - 1 for rows in near),
        near_duplicate_rows=tuple(_shown(dataset, rows) for rows in near[:SHOWN]),
        conflicts=len(conflicts),
        conflict_rows=tuple(_shown(dataset, rows) for rows in conflicts[:SHOWN]),
        context_length=context_length,
        overlong=len(over),
        overlong_rows=tuple(dataset.examples[at].source for at in over[:SHOWN]),
        languages=languages,
        language_sample=sampled,
        turns=dict(sorted(Counter(len(e.messages) for e in dataset.examples).items()))
        if dataset.kind == "chat"
        else {},
        warnings=(),
        problems=dataset.problems,
        numbers=_numbers(dataset) if dataset.kind == "number" else {},
    )
    return Inspection(**{**vars(report), "warnings": (*warnings, *_warnings(report, dataset))})


def _fields(dataset: Dataset) -> dict[str, int]:
    """Field -> rows: those of the format, then the others."""
    own = next((form.needs for form in FORMATS if form.name == dataset.format), ())
    others = Counter(key for e in dataset.examples for key in e.meta if key not in own)
    negatives = sum(bool(e.negatives) for e in dataset.examples)
    beside = {"negatives": negatives} if negatives else {}
    return dict.fromkeys(own, len(dataset)) | beside | dict(others.most_common())


def _numbers(dataset: Dataset) -> dict[str, float]:
    values = np.array([e.score for e in dataset.examples], dtype=np.float64)
    least, low, median, high, most = (float(v) for v in np.quantile(values, [0, 0.25, 0.5, 0.75, 1]))
    spread = {"mean": float(values.mean()), "deviation": float(values.std())}
    return {"least": least, "25%": low, "median": median, "75%": high, "largest": most, **spread}


# ---- lengths


def _whole_text(example: Example) -> str:
    """Everything that a model would read and say of a row; of a preference, the longer answer, of texts that are embedded one by one,
    the longest."""
    if example.positives:
        return max(example.text, *example.positives, *example.negatives, key=len)
    said = max(example.chosen, example.rejected, key=lambda turns: sum(len(m.content) for m in turns))
    return "\n".join(m.content for m in (*example.messages, *said))


def _token_counts(
    dataset: Dataset,
    texts: Sequence[str],
    tokenizer: Callable[[str], int] | None,
    renderer: Renderer | None,
    warnings: list[str],
) -> tuple[list[int], str]:
    if renderer is not None:
        try:
            return _rendered_counts(dataset, renderer), "tokens"
        except LuthierError as error:
            warnings.append(
                f"lengths are of the bare text, since the model's template cannot show every row: {error.message}"
            )
            return [len(renderer.continuation_ids(text, ends_turn=False)) for text in texts], "tokens"
    if tokenizer is not None:
        return [tokenizer(text) for text in texts], "tokens"
    return [len(_WORDS.findall(text)) for text in texts], "words"


def _rendered_counts(dataset: Dataset, renderer: Renderer) -> list[int]:
    out: list[int] = []
    for begin in range(0, len(dataset), 1000):
        part = dataset.examples[begin : begin + 1000]
        if dataset.kind in ("text", "pairs", "similarity"):  # raw text, no template
            out += map(len, renderer.prompt_ids_batch([_whole_text(e) for e in part]))
        elif dataset.kind == "chat":
            tools = [e.meta.get("tools") for e in part]
            out += (len(r.ids) for r in renderer.training_ids_batch([e.messages for e in part], tools))
        elif dataset.kind == "preference":
            chosen = [(*e.messages, *(e.chosen or e.rejected)) for e in part]
            rejected = [(*e.messages, *(e.rejected or e.chosen)) for e in part]
            both = zip(renderer.training_ids_batch(chosen), renderer.training_ids_batch(rejected), strict=True)
            out += (max(len(a.ids), len(b.ids)) for a, b in both)
        else:
            prompts = renderer.prompt_ids_batch([e.messages for e in part])
            answers = (renderer.continuation_ids(e.target or "", ends_turn=True) for e in part)
            out += (len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
    return out


def _lengths(counts: Sequence[int], unit: str) -> Lengths:
    ordered = sorted(counts)

    def quantile(share: float) -> int:
        return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]

    total = sum(ordered)
    return Lengths(
        unit,
        total,
        total / len(ordered),
        quantile(0.5),
        quantile(0.9),
        quantile(0.99),
        ordered[-1],
        _histogram(ordered, quantile(0.99)),
    )


def _histogram(ordered: Sequence[int], high: int) -> tuple[tuple[int, int, int], ...]:
    """About a dozen bins of a round width up to ``high``; the last one takes the tail."""
    low = ordered[0]
    width = _round_up((high - low + 1) / _BINS)
    first = low // width * width
    bins = max((high - first) // width + 1, 1)
    counts = Counter(min((value - first) // width, bins - 1) for value in ordered)
    edges = [(first + at * width, first + (at + 1) * width - 1) for at in range(bins)]
    edges[-1] = (edges[-1][0], max(edges[-1][1], ordered[-1]))
    return tuple((begin, end, counts[at]) for at, (begin, end) in enumerate(edges))


def _round_up(value: float) -> int:
    """The next of 1, 2, 5, 10, 20, 50, ..."""
    power = 10 ** max(math.floor(math.log10(value)), 0) if value > 1 else 1
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value)


# ---- copies and languages


def _copies(dataset: Dataset, same: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[list[int]]]:
    """(rows that repeat one another with the same answer, rows of one text with several labels)."""
    exact, conflicts = [], []
    for rows in same:
        if len(rows) == 1:
            continue
        answers = groups([_answer_key(dataset.examples[row]) for row in rows])
        exact += [[rows[at] for at in part] for part in answers if len(part) > 1]
        if dataset.kind == "labelled" and len(answers) > 1:
            conflicts.append(list(rows))
    return exact, conflicts


def _answer_key(example: Example) -> str:
    said = [m.content for m in (*example.messages, *example.chosen, *example.rejected) if m.role == "assistant"]
    side = "+" if example.chosen else "-"
    beside = [str(example.score), *map(normalise, example.positives)] if example.positives else []
    if example.score is not None:
        beside = beside[:1]
    return "\n".join([example.target or "", side, *map(normalise, said), *beside])


def _shown(dataset: Dataset, rows: Sequence[int]) -> Copies:
    examples = [dataset.examples[row] for row in rows]
    text = " ".join(_whole_text(examples[0]).split())
    labels = Counter(e.target for e in examples if e.target is not None) if dataset.kind == "labelled" else {}
    return Copies(
        text if len(text) <= 100 else text[:99] + "…",
        tuple(e.source for e in examples[:SHOWN]),
        dict(labels),
    )


def _languages(examples: Sequence[Example]) -> tuple[dict[str, int], int]:
    """ISO 639-1 codes of an even sample of rows, most frequent first; ``?`` for texts too short to tell."""
    import py3langid

    step = math.ceil(len(examples) / LANGUAGE_SAMPLE)
    found: Counter[str] = Counter()
    for example in examples[::step]:
        text = _whole_text(example)[:_LANGUAGE_CHARACTERS]
        found[str(py3langid.classify(text)[0]) if len(text) >= _SHORTEST_FOR_LANGUAGE else "?"] += 1
    return dict(found.most_common()), sum(found.values())


# ---- warnings


def _warnings(report: Inspection, dataset: Dataset) -> list[str]:
    out = []
    if report.broken:
        out.append(f"{report.broken:,} rows cannot be used (listed below); --skip-bad leaves them out")
    if report.conflicts:
        out.append(f"{report.conflicts:,} texts have more than one label: whichever is right, the model is taught both")
    if report.duplicates:
        share = report.duplicates / report.rows
        out.append(f"{report.duplicates:,} rows ({share:.1%}) are copies; a split keeps copies on one side")
    if report.near_duplicates:
        out.append(
            f"{report.near_duplicates:,} rows are nearly the same as another: they may sit on both sides of a split"
        )
    if report.overlong:
        out.append(f"{report.overlong:,} rows are longer than the context of {report.context_length:,} tokens")
    if dataset.kind == "labelled":
        out += _label_warnings(report.labels)
    if dataset.kind == "entities":
        crossed = sum(overlapping(from_answer(e.target or "[]")) is not None for e in dataset.examples)
        if crossed:
            out.append(f"{crossed:,} rows have entities that overlap: objective tag takes flat entities only")
        if rare := [kind for kind, count in report.labels.items() if count < 3]:
            out.append(
                f"types with fewer than 3 entities: {', '.join(rare[:SHOWN])}{' …' if len(rare) > SHOWN else ''}"
            )
    if report.numbers and not report.numbers["deviation"]:
        out.append(f"every target is {report.numbers['mean']:g}: nothing to predict")
    if dataset.kind == "text" and len(report.fields) > 1:
        others = ", ".join(name for name in report.fields if name != "text")
        out.append(
            f"rows are plain text; if one of {others} is the label, say --column label=FIELD (a number to predict: target=FIELD)"
        )
    if dataset.kind == "chat":
        open_ended = sum(e.messages[-1].role != "assistant" for e in dataset.examples)
        if open_ended:
            out.append(
                f"{open_ended:,} conversations do not end with an assistant turn; what follows the last one is not trained on"
            )
    one_sided = sum(not (e.chosen and e.rejected) for e in dataset.examples) if dataset.kind == "preference" else 0
    if one_sided:
        out.append(
            f"{one_sided:,} rows have one marked answer, not a pair: for objectives that take marks (kto), not for pairs (dpo)"
        )
    unanswered = sum(e.target is None for e in dataset.examples) if dataset.kind == "question" else 0
    if unanswered:
        out.append(f"{unanswered:,} questions have no answer")
    return out


def _label_warnings(labels: Mapping[str, int]) -> list[str]:
    out = []
    if len(labels) == 1:
        out.append(f"only one label ({next(iter(labels))!r}): nothing to tell apart")
    rare = [label for label, rows in labels.items() if rows < 3]
    if rare:
        out.append(f"labels with fewer than 3 rows: {', '.join(rare[:SHOWN])}{' …' if len(rare) > SHOWN else ''}")
    elif max(labels.values()) >= 10 * min(labels.values()):
        most, least = max(labels, key=lambda x: labels[x]), min(labels, key=lambda x: labels[x])
        out.append(f"labels are uneven: {most} has {labels[most]:,} rows, {least} {labels[least]:,}; judge by macro F1")
    for rows in groups([normalise(label) for label in labels]):
        if len(rows) > 1:
            out.append(f"labels that differ only in spelling: {', '.join(repr(list(labels)[at]) for at in rows)}")
    return out
