"""How much a score depends on wording: the same questions in other case, spacing, spelling, words, option order and prompts.

Each variant is an evaluation of its own (found again or continued when it is asked twice). The spread over variants is what a single
score hides; a flip is an example whose label (where answers are not labels: whose score) changes although the question means the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from luthier.core.dataset import Dataset, Example
from luthier.core.engine import Engine
from luthier.core.errors import InputError, did_you_mean
from luthier.core.run import Progress, no_progress
from luthier.core.task import Task
from luthier.evaluation.evaluate import Split, evaluate
from luthier.evaluation.loop import scorers_of
from luthier.evaluation.perturb import CHANGES, perturb, rotate_options
from luthier.evaluation.result import EvalResult, statistic_of
from luthier.evaluation.statistics import RESAMPLES, adjusted, bootstrap, compare
from luthier.store.database import Store, open_store
from luthier.store.runs import folder

ORIGINAL, ROTATIONS, PROMPT = "original", "option_order", "prompt:"
REPORT_JSON, REPORT_PNG = "robustness.json", "robustness.png"
PROMPT_FAMILY = "classify"
"""Catalogue prompts that all ask for one of the labels: paraphrases of each other."""
_MOST_FLIPPED = 20
_HAN = re.compile(r"[\u4e00-\u9fff]")


@dataclass(frozen=True)
class Variant:
    """A way to ask the same. ``changed`` is how many of the examples read differently (all, where the prompt does)."""

    name: str
    task: Task
    changed: int


@dataclass(frozen=True)
class VariantResult:
    """One variant's score. ``difference`` is to the original, ``p_adjusted`` (Holm over variants) whether that is more than chance;
    ``flips`` is the share of all examples whose label differs from the original's, or their score where answers are not labels."""

    name: str
    value: float
    low: float
    high: float
    changed: int
    run: str
    difference: float = 0.0
    p_adjusted: float = 1.0
    flips: float = 0.0


@dataclass(frozen=True)
class Flipped:
    """An example that depends on wording, and the variants in which it flips."""

    id: str
    source: str
    input: str
    variants: tuple[str, ...]


@dataclass(frozen=True)
class Robustness:
    """``variants`` holds the original first. ``mean``, ``std``, ``lowest`` and ``highest`` are over all of them; ``worst`` names the worst.
    ``stable`` is the share of examples that no variant flips; ``flipped`` the examples that most variants flip."""

    model: str
    task: str
    scorer: str
    examples: int
    seed: int
    variants: tuple[VariantResult, ...]
    mean: float
    std: float
    lowest: float
    highest: float
    worst: str
    stable: float
    flipped: tuple[Flipped, ...]
    notes: tuple[str, ...] = ()
    folder: str = ""

    @property
    def spread(self) -> float:
        """The highest score minus the lowest."""
        return self.highest - self.lowest

    def as_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        return asdict(self) | {"spread": self.spread}


def robustness(
    model: str | Engine,
    task: str | Path | Task,
    *,
    variants: Sequence[str] = (),
    prompts: Sequence[str] | None = None,
    split: Split = "test",
    strategy: str | Mapping[str, Any] | None = None,
    limit: int | None = None,
    engine: str = "auto",
    seed: int = 0,
    store: Store | None = None,
    progress: Progress = no_progress,
) -> Robustness:
    """Evaluate ``model`` on variants of a task's questions and say how far the scores lie apart.

    ``variants`` are names of ``perturb.CHANGES`` and ``option_order`` (every cyclic rotation, for tasks of kind choice); left out, all
    that change anything. ``prompts`` are names of the prompt catalogue to ask with instead of the task's; left out, for a task of
    labels, the shipped prompts that ask for one in the language of the data. The report and a picture are put into the folder of the
    original's run. Raises InputError for an unknown variant, and whatever ``evaluate`` raises.
    """
    from luthier.strategies._load import load
    from luthier.tasks._load import load_task

    store = store or open_store()
    task = load_task(task)
    unknown = [name for name in variants if name not in (*CHANGES, ROTATIONS)]
    if unknown:
        raise InputError(f"variant {unknown[0]!r} is not known. {did_you_mean(unknown[0], (*CHANGES, ROTATIONS))}")
    opened = load(model, engine=engine, store=store, raw=strategy is not None) if isinstance(model, str) else model
    try:
        raw = any(example.raw for example in task.examples(split))
        own_prompt = strategy is None and bool(
            opened.info.prompt_digest or opened.info.labels or opened.info.answers or raw
        )
        chosen, notes = variants_of(
            task, variants, prompts, split=split, limit=limit, seed=seed, own_prompt=own_prompt, store=store
        )
        results = []
        for number, variant in enumerate(chosen):
            shown = _stage(progress, number, len(chosen))
            results.append(
                evaluate(opened, variant.task, split=split, strategy=strategy, limit=limit, store=store, progress=shown)
            )
    finally:
        if isinstance(model, str):
            opened.close()
    report = _report(task, chosen, results, seed, notes)
    place = folder(store, results[0].run.id)
    report = replace(report, folder=str(place))
    _write(report, place)
    return report


def _stage(progress: Progress, number: int, of: int) -> Progress:
    """One bar over all variants, whose examples are equally many."""

    def told(stage: str, done: int, total: int) -> None:
        if stage == "evaluate":
            progress("variants", number * total + done, of * total)

    return told


def variants_of(
    task: Task,
    names: Sequence[str] = (),
    prompts: Sequence[str] | None = None,
    *,
    split: str = "test",
    limit: int | None = None,
    seed: int = 0,
    own_prompt: bool = False,
    store: Store | None = None,
) -> tuple[list[Variant], list[str]]:
    """The original and every variant that changes anything, and notes on those that do not. See ``robustness``."""
    examples = task.examples(split)[:limit]
    out, notes = [Variant(ORIGINAL, task, 0)], []
    for name in names or (*CHANGES, ROTATIONS):
        if name == ROTATIONS:
            made = _rotations(task, split, examples)
        else:
            made = [_changed(task, split, examples, name, lambda e, name=name: perturb(e, name, seed))]  # type: ignore[misc]
        kept = [variant for variant in made if variant.changed]
        out += kept
        if not kept and (name != ROTATIONS or names):
            notes.append(f"{name} changes none of the {len(examples)} questions and was left out")
    if own_prompt and prompts:
        raise InputError(
            "prompts cannot be varied: the model brings its own, reads the bare text, or the benchmark fixes it to the letter",
            hint="name a strategy (--strategy zero_shot), or leave --prompt out",
        )
    if not own_prompt:
        out += _with_prompts(task, examples, prompts, store)
    return out, notes


def _changed(
    task: Task, split: str, examples: Sequence[Example], name: str, change: Callable[[Example], Example]
) -> Variant:
    made = tuple(change(example) for example in examples)
    count = sum(one is not other for one, other in zip(made, examples, strict=True))
    part: Dataset = getattr(task.splits, split)
    rest = part.examples[len(examples) :]
    splits = replace(task.splits, **{split: replace(part, examples=(*made, *rest))})
    return Variant(name, replace(task, splits=splits), count)


def _rotations(task: Task, split: str, examples: Sequence[Example]) -> list[Variant]:
    most = max((len(example.choices) for example in examples), default=0) if task.kind == "choice" else 0
    return [
        _changed(
            task,
            split,
            examples,
            f"{ROTATIONS} {shift}",
            lambda e, shift=shift: rotate_options(e, shift),  # type: ignore[misc]
        )
        for shift in range(1, most)
    ]


def _with_prompts(
    task: Task, examples: Sequence[Example], prompts: Sequence[str] | None, store: Store | None
) -> list[Variant]:
    from luthier.data.prompts import list_prompts, load_prompt

    if prompts is None:
        if task.kind != "classify":
            return []
        language = "zh" if sum(bool(_HAN.search(e.text)) for e in examples) * 2 > len(examples) else "en"
        found = [
            p
            for p in list_prompts(store)
            if p.template is not None
            and not p.placeholders
            and p.language == language
            and (p.name == PROMPT_FAMILY or p.name.startswith(f"{PROMPT_FAMILY}_"))
        ]
        newest = {p.name: p for p in found}
        stored = list(newest.values())
    else:
        stored = [load_prompt(name, store) for name in prompts]
    out = []
    for prompt in stored:
        template = prompt.template_for(task.labels)
        if (template.instruction, template.input) != (task.prompt.instruction, task.prompt.input):
            out.append(Variant(f"{PROMPT}{prompt.label}", replace(task, prompt=template), len(examples)))
    return out


def _report(
    task: Task, variants: Sequence[Variant], results: Sequence[EvalResult], seed: int, notes: Sequence[str]
) -> Robustness:
    scorer = scorers_of(task)[0]
    original = results[0]
    label, count = original.primary, len(original.records)
    figures = [statistic_of(scorer, result.records) for result in results]
    values = [float(result.score) for result in results]
    drawn = bootstrap(figures, count, RESAMPLES)
    against = [
        compare([f, figures[0]], count, values=[v, values[0]], replicates=np.stack([d, drawn[0]]))[0]
        for f, v, d in zip(figures[1:], values[1:], drawn[1:], strict=True)
    ]
    told = adjusted(against)
    labels = task.kind == "classify"
    own = [[r.answer if labels else r.scores.get(label) for r in result.records] for result in results]
    flipped = [[a != b for a, b in zip(scores, own[0], strict=True)] for scores in own]
    rows = []
    for i, (variant, result) in enumerate(zip(variants, results, strict=True)):
        score = result.scores[label]
        row = VariantResult(variant.name, values[i], score["low"], score["high"], variant.changed, result.run.id)
        if i:
            flips = sum(flipped[i]) / count
            row = replace(row, difference=told[i - 1].value, p_adjusted=told[i - 1].p_adjusted, flips=flips)
        rows.append(row)
    worst = (max if scorer.lower_is_better else min)(rows, key=lambda row: row.value)
    moved = [
        Flipped(r.id, r.source, r.input, tuple(v.name for v, f in zip(variants, flipped, strict=True) if f[at]))
        for at, r in enumerate(original.records)
    ]
    moved = sorted((m for m in moved if m.variants), key=lambda m: -len(m.variants))
    return Robustness(
        model=original.model,
        task=task.name,
        scorer=label,
        examples=count,
        seed=seed,
        variants=tuple(rows),
        mean=float(np.mean(values)),
        std=float(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
        lowest=min(values),
        highest=max(values),
        worst=worst.name,
        stable=1.0 - len(moved) / count,
        flipped=tuple(moved[:_MOST_FLIPPED]),
        notes=tuple(notes),
    )


def _write(report: Robustness, place: Path) -> None:
    from luthier.store.database import to_json
    from luthier.store.home import write_atomic

    write_atomic(place / REPORT_JSON, to_json(report.as_dict(), indent=1))
    draw(report, place / REPORT_PNG)


def draw(report: Robustness, path: Path) -> None:
    """Each variant's score with its interval, the original as a line, as a PNG. Raises StoreError."""
    from io import BytesIO

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from luthier.store.home import write_atomic

    rows = report.variants
    figure = Figure(figsize=(8, 1.4 + 0.36 * len(rows)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    places = list(range(len(rows)))
    reach = [[r.value - r.low for r in rows], [r.high - r.value for r in rows]]
    axes.axvspan(report.lowest, report.highest, color="#e6e9ee", zorder=0)
    axes.axvline(rows[0].value, color="#8d99ae", linestyle=":", linewidth=1)
    axes.errorbar([r.value for r in rows], places, xerr=reach, fmt="none", ecolor="#2f6f8f", capsize=3)
    colours = ["#d1495b" if r.name == report.worst else "#2f6f8f" for r in rows]
    axes.scatter([r.value for r in rows], places, color=colours, zorder=3)
    axes.set_yticks(places, [f"{r.name} ({r.flips:.0%} flip)" if at else r.name for at, r in enumerate(rows)])
    axes.invert_yaxis()
    axes.set_xlabel(f"{report.scorer}, 95% interval; grey: from the lowest to the highest score")
    title = f"{report.model} on {report.task}: {report.examples} questions in {len(rows)} wordings"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    content = BytesIO()
    figure.savefig(content, format="png")
    write_atomic(path, content.getvalue())
