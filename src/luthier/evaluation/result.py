"""From records to a result: scores with intervals, per-label figures, confusions, and what was counted on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from luthier.core.errors import EvaluationError
from luthier.core.run import Run
from luthier.core.task import Task
from luthier.evaluation.loop import Scorer, scorers_of
from luthier.evaluation.records import Record
from luthier.evaluation.statistics import RESAMPLES, bootstrap, interval
from luthier.scorers._score import Figure

UNPARSED = "(unparsed)"


@dataclass(frozen=True)
class EvalResult:
    """One evaluation. ``scores`` maps scorer to ``{value, low, high, level}``; the first is the primary one. ``lower_is_better`` names
    the scorers whose smaller figures are better. ``slices[key][value]`` has the examples of a part, its primary figure with interval, and ``p_adjusted`` that it is like the rest.

    ``labels`` maps label to precision, recall, F1 and support; ``confusion[target][answer]`` counts. ``counts`` has examples,
    unparsed, ties, errors, and unscored: those that the primary scorer could not say anything about. ``latency`` is of single requests (seconds), ``memory`` in MB.
    """

    run: Run
    model: str
    task: str
    split: str
    strategy: str
    primary: str
    scores: Mapping[str, Mapping[str, float]]
    labels: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    confusion: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    lower_is_better: Sequence[str] = ()
    slices: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    latency: Mapping[str, Any] = field(default_factory=dict)
    memory: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    warnings: Sequence[str] = ()
    records: tuple[Record, ...] = ()

    @property
    def score(self) -> float:
        """The primary score."""
        return float(self.scores[self.primary]["value"])

    def confused(self, most: int = 5) -> list[tuple[str, str, int]]:
        """The commonest mistakes: (target, answer, how often)."""
        found = [(t, a, n) for t, row in self.confusion.items() for a, n in row.items() if a != t]
        return sorted(found, key=lambda x: (-x[2], x[0], x[1]))[:most]

    def as_dict(self) -> dict[str, Any]:
        """Plain form for JSON, without the records."""
        return {"run": self.run.id, "model": self.model, "split": self.split, **_plain(self)}

    @staticmethod
    def from_run(run: Run, records: Sequence[Record]) -> EvalResult:
        """A result as a finished run's summary holds it."""
        summary = dict(run.summary)
        return EvalResult(run=run, records=tuple(records), **{k: summary[k] for k in _SUMMARY if k in summary})


_SUMMARY = (
    "model", "task", "split", "strategy", "primary", "scores", "labels", "confusion", "counts", "lower_is_better", "slices",
    "latency", "memory", "seconds", "warnings",
)  # fmt: skip


def _plain(result: EvalResult) -> dict[str, Any]:
    return {key: getattr(result, key) for key in _SUMMARY}


def summarise(task: Task, records: Sequence[Record]) -> dict[str, Any]:
    """The part of a run's summary that follows from its records: primary, scores, labels, confusion, counts, slices.

    Raises EvaluationError when the primary scorer could say nothing about any answer.
    """
    scorers = scorers_of(task)
    figures = [statistic_of(scorer, records) for scorer in scorers]
    replicates = bootstrap(figures, len(records), RESAMPLES)
    scores = {
        scorer.label: interval(
            figure.value,
            drawn,
            statistic=figure,
            scores=[record.scores.get(scorer.label) for record in records],
            bounds=scorer.entry.optional("BOUNDS"),
        ).as_dict()
        for scorer, figure, drawn in zip(scorers, figures, replicates, strict=True)
        if not np.isnan(figure.value)
    }
    primary = scorers[0].label
    if primary not in scores:
        raise EvaluationError(
            f"scorer {primary} could score none of the {len(records)} answers",
            hint="luthier show RUN --wrong lists the answers and why",
        )
    targets = [r.target for r in records]
    classify = task.kind == "classify"
    shown = [r.answer if r.answer in task.labels else UNPARSED for r in records] if classify else []
    return {
        "primary": primary,
        "scores": scores,
        "labels": per_label(shown, targets, task.labels) if classify else {},
        "confusion": _confusion(shown, targets) if classify else {},
        "counts": {
            "examples": len(records),
            "unparsed": sum(not r.parsed and not r.error for r in records),
            "ties": sum(r.tie for r in records),
            "errors": sum(bool(r.error) for r in records),
            "unscored": sum(primary not in r.scores for r in records),
        },
        "lower_is_better": [s.label for s in scorers if s.lower_is_better],
        "slices": _slices(task, scorers[0], records),
    }


def _slices(task: Task, scorer: Scorer, records: Sequence[Record]) -> dict[str, dict[str, dict[str, float | None]]]:
    """The primary figure of each part, by each key that the task names, with its interval and whether it differs from the rest."""
    from luthier.evaluation.slices import slice_figures

    out: dict[str, dict[str, dict[str, float | None]]] = {}
    for part in slice_figures(scorer, records, task.slices) if task.slices else ():
        told = {"examples": part.examples, **part.figure.as_dict(), "p_adjusted": part.p_adjusted}
        out.setdefault(part.key, {})[part.value] = told
    return out


def per_label(answers: Sequence[str], targets: Sequence[str], labels: Sequence[str]) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and support of each label; 0 where a ratio has no denominator (scikit-learn's ``zero_division=0``)."""
    given, wanted = Counter(answers), Counter(targets)
    hits = Counter(t for t, a in zip(targets, answers, strict=True) if t == a)
    out: dict[str, dict[str, float]] = {}
    for label in labels:
        total = wanted[label] + given[label]
        out[label] = {
            "precision": hits[label] / given[label] if given[label] else 0.0,
            "recall": hits[label] / wanted[label] if wanted[label] else 0.0,
            "f1": 2 * hits[label] / total if total else 0.0,
            "support": wanted[label],
        }
    return out


def _confusion(answers: Sequence[str], targets: Sequence[str]) -> dict[str, dict[str, int]]:
    out: dict[str, dict[str, int]] = {}
    for (target, answer), count in sorted(Counter(zip(targets, answers, strict=True)).items()):
        out.setdefault(target, {})[answer] = count
    return out


def statistic_of(scorer: Scorer, records: Sequence[Record]) -> Figure:
    """A scorer's figure over ``records`` and over resamples of them."""
    return Figure(
        scorer.entry,
        scorer.config,
        [r.as_answer() for r in records],
        [r.as_target() for r in records],
        [r.scores.get(scorer.label) for r in records],
        [r.details.get(scorer.label, {}) for r in records],
    )
