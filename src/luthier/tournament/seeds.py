"""Entrants that were trained with several seeds: their score, their comparisons, and which seed is promoted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.core.task import Task
from luthier.evaluation.loop import scorers_of
from luthier.evaluation.result import EvalResult, statistic_of
from luthier.evaluation.seeds import Seeds, compare_over_seeds, over_seeds
from luthier.evaluation.statistics import RESAMPLES, TEST_RESAMPLES, Difference, bootstrap, compare


def score_over_seeds(task: Task, results: Sequence[EvalResult], scorer: str) -> Seeds:
    """The mean of a scorer's figure over results that differ in the seed, with an interval that knows of seeds and examples."""
    chosen = next(s for s in scorers_of(task) if s.label == scorer)
    figures = [statistic_of(chosen, result.records) for result in results]
    drawn = bootstrap(figures, len(results[0].records), RESAMPLES)
    return over_seeds([float(result.scores[scorer]["value"]) for result in results], drawn)


def scores_over_seeds(task: Task, results: Sequence[EvalResult]) -> dict[str, dict[str, float]]:
    """Every scorer's figure: that of the one result, or the mean over several, with ``seed_std`` between them."""
    if len(results) == 1:
        return {name: dict(score) for name, score in results[0].scores.items()}
    out = {}
    for name in results[0].scores:
        if all(name in result.scores for result in results):
            found = score_over_seeds(task, results, name)
            out[name] = {
                "value": found.value,
                "low": found.low,
                "high": found.high,
                "level": found.level,
                "seed_std": found.seed_std,
                "seeds": float(len(results)),
            }
    return out


def labels_over_seeds(results: Sequence[EvalResult]) -> dict[str, dict[str, float]]:
    """Each label's figures, averaged."""
    first = results[0].labels
    return {
        label: {key: sum(r.labels[label][key] for r in results) / len(results) for key in figures}
        for label, figures in first.items()
    }


def compare_entrants(task: Task, results: Mapping[str, Sequence[EvalResult]]) -> list[Difference]:
    """Every pair of entrants in the primary score on the examples that all answered; places are those of the names."""
    scorer = scorers_of(task)[0]
    listed = list(results.values())
    examples = len(listed[0][0].records)
    figures = [[statistic_of(scorer, result.records) for result in each] for each in listed]
    values = [[result.score for result in each] for each in listed]
    if all(len(each) == 1 for each in listed):
        return compare([each[0] for each in figures], examples, values=[each[0] for each in values])
    drawn = bootstrap([figure for each in figures for figure in each], examples, TEST_RESAMPLES)
    parts, at = [], 0
    for each in figures:
        parts.append(drawn[at : at + len(each)])
        at += len(each)
    return compare_over_seeds(values, parts)


def best_seed(validation: Sequence[float | None], *, lower_is_better: bool) -> int:
    """The place of the seed to promote: the best on the validation split (never the test split); the first where nothing is known."""
    known = [(value, place) for place, value in enumerate(validation) if value is not None]
    if not known:
        return 0
    sign = 1.0 if lower_is_better else -1.0
    return min(known, key=lambda pair: (sign * pair[0], pair[1]))[1]


def metric_falls(name: str) -> bool:
    """Whether a smaller value of a validation metric is the better one, as the training loop has it."""
    return "loss" in name or "perplexity" in name


def validation_value(tuned: Mapping[str, Any], metric: str) -> float | None:
    """A run's kept value of ``metric``; None without a validation split."""
    value = tuned.get(metric)
    return float(value) if isinstance(value, int | float) else None
