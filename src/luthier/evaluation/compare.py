"""The verb ``compare``: two evaluations of the same examples, side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from luthier.core.errors import InputError, MismatchError
from luthier.core.run import Run
from luthier.evaluation.loop import Scorer, scorers_from
from luthier.evaluation.records import Record, find, load_records
from luthier.evaluation.result import statistic_of
from luthier.evaluation.statistics import mcnemar, paired_bootstrap, permutation_test
from luthier.store.database import Store, open_store
from luthier.store.runs import folder


@dataclass(frozen=True)
class RunComparison:
    """``first`` minus ``second`` in ``scorer``, with the 95% interval of the difference.

    Three two-sided p-values of no difference: ``bootstrap_p`` (paired bootstrap, what tournaments use), ``permutation_p`` (approximate
    randomisation), ``mcnemar_p`` (exact; None where an answer is not simply right or wrong). ``only_first`` and ``only_second`` are the
    places of the examples that exactly one of them scores better on.
    """

    first: str
    second: str
    models: tuple[str, str]
    scorer: str
    lower_is_better: bool
    examples: int
    values: tuple[float, float]
    difference: float
    low: float
    high: float
    bootstrap_p: float
    permutation_p: float
    mcnemar_p: float | None
    only_first: tuple[int, ...]
    only_second: tuple[int, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        return asdict(self)


def compare(first: str, second: str, *, scorer: str | None = None, store: Store | None = None) -> RunComparison:
    """Compare two finished ``eval`` runs (ids, starts of ids or names) on the examples that both answered: all of them.

    ``scorer`` is one that both have; left out, the first run's primary one. Raises NotFoundError for unknown runs, MismatchError for runs of
    other examples, InputError for runs without a scorer in common or not finished.
    """
    store = store or open_store()
    runs = [find(store, name) for name in (first, second)]
    records = [load_records(store, run) for run in runs]
    for run in runs:
        if run.status != "done":
            raise InputError(f"run {run.id} is {run.status}: it has no score yet", hint="type its command again")
    require_same_examples(runs, records)
    chosen = _scorer(store, runs, scorer)
    figures = [statistic_of(chosen, each) for each in records]
    count = len(records[0])
    found = paired_bootstrap(figures[0], figures[1], count)
    scores = [[r.scores.get(chosen.label) for r in each] for each in records]
    better = [_better(a, b, chosen.lower_is_better) for a, b in zip(*scores, strict=True)]
    binary = all(s in (0.0, 1.0) for each in scores for s in each)
    return RunComparison(
        runs[0].id,
        runs[1].id,
        (str(runs[0].summary["model"]), str(runs[1].summary["model"])),
        chosen.label,
        chosen.lower_is_better,
        count,
        (figures[0].value, figures[1].value),
        found.value,
        found.low,
        found.high,
        found.p,
        permutation_test(statistic_of(chosen, [*records[0], *records[1]]), count),
        mcnemar([s == 1.0 for s in scores[0]], [s == 1.0 for s in scores[1]]) if binary else None,
        tuple(i for i, way in enumerate(better) if way > 0),
        tuple(i for i, way in enumerate(better) if way < 0),
    )


def changed(comparison: RunComparison, store: Store | None = None) -> list[tuple[Record, Record]]:
    """The records of the examples that exactly one of the two scores better on, first those of the first."""
    store = store or open_store()
    first, second = (load_records(store, find(store, name)) for name in (comparison.first, comparison.second))
    return [(first[i], second[i]) for i in (*comparison.only_first, *comparison.only_second)]


def _better(first: float | None, second: float | None, lower: bool) -> int:
    """1 where the first score is better, -1 where the second is; an answer that could not be scored is neither."""
    if first is None or second is None or first == second:
        return 0
    return 1 if (first > second) != lower else -1


def require_same_examples(runs: Sequence[Run], records: Sequence[Sequence[Record]]) -> None:
    """Raise MismatchError unless two runs answered the same examples, so that their answers form pairs."""
    if [(r.index, r.id) for r in records[0]] != [(r.index, r.id) for r in records[1]]:
        raise MismatchError(
            f"runs {runs[0].id} and {runs[1].id} did not answer the same examples: pairs cannot be formed",
            hint="evaluate both models on the same task and split, with the same --limit",
        )


def scorers_of_run(store: Store, run: Run) -> dict[str, Scorer]:
    """The scorers of an ``eval`` run as it was told them, by the name that its results carry; the primary one first."""
    told = json.loads((folder(store, run.id) / "config.json").read_text(encoding="utf-8"))["values"]["task"]
    return {s.label: s for s in scorers_from([(str(name), dict(options)) for name, options in told["scorers"]])}


def _scorer(store: Store, runs: Sequence[Run], wanted: str | None) -> Scorer:
    """The scorer called ``wanted``, or the first run's primary one, when both runs have it alike."""
    listed = [scorers_of_run(store, run) for run in runs]
    name = wanted or next(iter(listed[0]))
    for run, known in zip(runs, listed, strict=True):
        if name not in known:
            raise InputError(f"scorer must be one that both runs have; {run.id} has {', '.join(known)}; got {name!r}")
    if listed[0][name].config != listed[1][name].config:
        raise InputError(f"the two runs have scorer {name} with different options, so their figures are not comparable")
    return listed[0][name]
