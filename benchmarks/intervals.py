"""Do the statistics keep their word? Coverage of the 95% intervals, and how often a tournament without a difference finds one.

    python benchmarks/intervals.py [--quick]

Tables from data whose true figure is known. Accuracy: the exact probability that the interval holds the true share, over all outcomes
(no simulation). Macro F1: 2,000 simulated sets a cell, other figures 1,000; the percentile interval stands beside, as what it would be
otherwise. Verdict: 1,000 tournaments a row (4,000 of two entrants) whose entrants are equally good and answer partly alike; a false
find is a leader that beats anybody (adjusted p below 0.05). One core, about three minutes. The last line is the result as JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

SIZES = (50, 100, 280, 1000)
ACCURACIES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97)
PRIORS: dict[str, tuple[float, ...]] = {"4 equal labels": (0.25,) * 4, "3 labels 50/30/20": (0.5, 0.3, 0.2)}
RARE = {"3 labels 60/30/10": (0.6, 0.3, 0.1)}  # a label of 5 or 10 examples: shown, and no part of the bar
ENTRANTS = (2, 3, 5, 8)
LOW, HIGH, LEVEL = 0.93, 0.97, 0.05


class Summed:
    """A statistic that is a function of sums over examples, as scorers with ``sums`` and ``combine`` are."""

    def __init__(self, sums: Any, combine: Callable[[Any], Any]) -> None:
        self.sums, self.combine = sums, combine

    def __call__(self, counts: Any) -> Any:
        return self.combine(counts.astype(np.float64) @ self.sums)

    def left_out(self) -> Any:
        return self.combine(self.sums.sum(axis=0) - self.sums)


def macro_f1() -> Callable[[Any], Any]:
    """The scorer's own function of (hits, targets, answers) a label."""
    from luthier.core import catalog

    entry = catalog.load("scorers", "macro_f1")
    return lambda totals: entry.module.combine(totals, entry.configure())


def label_sums(targets: Any, answers: Any, labels: int) -> Any:
    """Columns hits, targets, answers of each label; shape (..., examples, 3 x labels)."""
    wanted, given = np.eye(labels)[targets], np.eye(labels)[answers]
    return np.concatenate([wanted * given, wanted, given], axis=-1)


def noisy(draw: Any, targets: Any, right: float, labels: int) -> Any:
    """Answers that are right with probability ``right``, else one of the other labels."""
    wrong = (targets + draw.integers(1, labels, targets.shape)) % labels
    return np.where(draw.random(targets.shape) < right, targets, wrong)


def accuracy_coverage() -> list[dict[str, Any]]:
    """Exact, over every number of right answers."""
    from scipy.stats import binom

    from luthier.evaluation.statistics import interval

    rows = []
    for size in SIZES:
        found = [interval(k / size, np.zeros(1), scores=[1.0] * k + [0.0] * (size - k)) for k in range(size + 1)]
        low, high = np.array([f.low for f in found]), np.array([f.high for f in found])
        percentile = binom.ppf([[0.025], [0.975]], size, np.arange(size + 1) / size) / size
        for share in ACCURACIES:
            weight = binom.pmf(np.arange(size + 1), size, share)
            rows.append(
                {
                    "figure": "accuracy",
                    "examples": size,
                    "true": share,
                    "coverage": float(weight[(low <= share) & (share <= high)].sum()),
                    "percentile": float(weight[(percentile[0] <= share) & (share <= percentile[1])].sum()),
                }
            )
    return rows


def f1_coverage(
    priors: dict[str, tuple[float, ...]], trials: int, sizes: Sequence[int] = SIZES
) -> list[dict[str, Any]]:
    """Macro F1 of systems with a given accuracy."""
    return [
        f1_cell(title, prior, size, right, trials)
        for title, prior in priors.items()
        for size in sizes
        for right in ACCURACIES[::2]
    ]


def f1_cell(title: str, prior: Sequence[float], size: int, right: float, trials: int) -> dict[str, Any]:
    """One setting; the true macro F1 follows from the probabilities of target and answer."""
    labels, combine, draw = len(prior), macro_f1(), np.random.default_rng(0)
    cells = np.full((labels, labels), (1 - right) / (labels - 1))
    np.fill_diagonal(cells, right)
    cells *= np.array(prior)[:, None]
    truth = float(combine(np.concatenate([np.diag(cells), cells.sum(axis=1), cells.sum(axis=0)])[None])[0])

    def make() -> Summed:
        targets = draw.choice(labels, size, p=prior)
        return Summed(label_sums(targets, noisy(draw, targets, right, labels), labels), combine)

    def own(statistic: Summed) -> Any:
        return statistic.sums[:, :labels].sum(axis=1)

    found = covered(make, own, truth, size, trials, slow=size <= 100, quickly=True)
    return {"figure": f"macro F1, {title}", "examples": size, "true": round(truth, 3)} | found


def other_coverage(trials: int) -> list[dict[str, Any]]:
    """Means of scores between 0 and 1 (token F1), of scores without bounds, perplexity, and a correlation."""
    mean = lambda totals: totals[:, 0] / totals[:, 1]  # noqa: E731
    perplexity = lambda totals: np.exp(totals[:, 0] / totals[:, 1])  # noqa: E731

    def pair(values: Any) -> Any:
        return np.stack([values, np.ones(len(values))], axis=1)

    def token_f1(draw: Any, size: int) -> Any:
        kind = draw.random(size)
        return pair(np.where(kind < 0.2, 0.0, np.where(kind < 0.55, 1.0, draw.beta(2, 2, size))))

    def correlated(draw: Any, size: int) -> Any:
        x, y = draw.multivariate_normal([0, 0], [[1, 0.8], [0.8, 1]], size).T
        return np.stack([np.ones(size), x, y, x * x, y * y, x * y], axis=1)

    def pearson(t: Any) -> Any:
        n, x, y, xx, yy, xy = t.T
        return (n * xy - x * y) / np.sqrt((n * xx - x * x) * (n * yy - y * y))

    kinds: dict[str, tuple[Any, Any, float, tuple[float, float] | None, bool]] = {
        "token F1 (mean)": (token_f1, mean, 0.575, None, True),
        "edit distance (mean)": (lambda d, n: pair(d.gamma(2.0, 10.0, n)), mean, 20.0, None, True),
        "perplexity": (lambda d, n: pair(d.gamma(4.0, 0.5, n)), perplexity, float(np.exp(2.0)), None, False),
        "Pearson": (correlated, pearson, 0.8, (-1.0, 1.0), False),
    }
    rows = []
    for title, (make, combine, truth, bounds, own_scores) in kinds.items():
        for size in SIZES[:3]:
            draw = np.random.default_rng(1)
            found = covered(
                lambda draw=draw, make=make, size=size, combine=combine: Summed(make(draw, size), combine),
                (lambda statistic: statistic.sums[:, 0])
                if own_scores
                else (lambda statistic: [float("nan")] * len(statistic.sums)),
                truth,
                size,
                trials,
                bounds=bounds,
                slow=True,
            )
            rows.append({"figure": title, "examples": size, "true": round(truth, 3)} | found)
    return rows


def covered(
    make: Callable[[], Summed],
    own: Callable[[Summed], Any],
    truth: float,
    size: int,
    trials: int,
    *,
    bounds: tuple[float, float] | None = None,
    slow: bool = False,
    quickly: bool = False,
) -> dict[str, float]:
    """Shares of simulated sets whose interval holds ``truth``. ``quickly``: the interval needs only the range of the resamples."""
    from luthier.evaluation.statistics import interval, resample_counts

    many, few = (np.concatenate(list(resample_counts(size, n))) for n in (1000, 100))
    hits = percentile = 0
    shown = min(trials, 500)  # of the percentile interval, which needs all resamples
    for trial in range(trials):
        beside = slow and trial < shown
        counts = many if beside or (bounds is None and not quickly) else few
        statistic = make()
        value = float(statistic(np.ones((1, size)))[0])
        drawn = statistic(counts)
        found = interval(value, drawn, statistic=statistic, scores=list(own(statistic)), bounds=bounds)
        hits += found.low <= truth <= found.high
        if beside:
            low, high = np.quantile(drawn, [0.025, 0.975])
            percentile += low <= truth <= high
    return {"coverage": hits / trials} | ({"percentile": percentile / shown} if slow else {})


def false_finds(tournaments: int, resamples: int = 2000) -> list[dict[str, Any]]:
    """Tournaments of equally good entrants that answer partly alike: number of entrants, of examples, how often right, labels."""
    settings = [(entrants, 280, right, 4) for entrants in ENTRANTS for right in (0.7, 0.9)]
    settings += [(2, 60, 0.75, 4), (5, 60, 0.75, 4), (2, 1000, 0.9, 4), (2, 60, 0.7, 20), (5, 120, 0.7, 8)]
    rows = []
    for entrants, size, right, labels in settings:
        runs = tournaments * (4 if entrants == 2 else 1)  # one pair has no correction to spare
        rows += false_rate(entrants, size, right, labels, runs, resamples)
    return rows


def false_rate(entrants: int, size: int, right: float, labels: int, runs: int, resamples: int) -> list[dict[str, Any]]:
    """One setting, ranked by macro F1 and by accuracy."""
    from luthier.evaluation.statistics import compare, resample_counts

    def share(totals: Any) -> Any:
        return totals[:, :labels].sum(axis=1) / totals[:, labels : 2 * labels].sum(axis=1)

    figures = {"macro_f1": macro_f1(), "accuracy": share}
    counts = np.concatenate(list(resample_counts(size, resamples)))
    draw, wrong = np.random.default_rng(entrants * size), dict.fromkeys(figures, 0)
    for _ in range(runs):
        targets = draw.integers(0, labels, size)
        shared = noisy(draw, targets, right, labels)
        answers = [
            np.where(draw.random(size) < 0.5, shared, noisy(draw, targets, right, labels)) for _ in range(entrants)
        ]
        parts = [label_sums(targets, answer, labels) for answer in answers]
        every = np.concatenate(parts, axis=1).astype(np.float32)
        totals = np.split((counts @ every).astype(np.float64), entrants, axis=1)
        for name, figure in figures.items():
            systems = [Summed(part, figure) for part in parts]
            values = [float(system(np.ones((1, size)))[0]) for system in systems]
            replicates = np.stack([figure(part) for part in totals])
            found = compare(systems, size, values=values, replicates=replicates)
            leader = int(np.argmax(values))
            wrong[name] += any(d.p_adjusted < LEVEL for d in found if leader in (d.first, d.second))
    common = {"labels": labels, "entrants": entrants, "examples": size, "right": right, "tournaments": runs}
    return [{"figure": name} | common | {"rate": number / runs} for name, number in wrong.items()]


def show(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """A table in plain text."""
    print(f"\n{title}")
    columns = list(rows[0])
    print("  " + "  ".join(f"{c:>12}" if c != "figure" else f"{c:<28}" for c in columns))
    for row in rows:
        cells = [row.get(c, "") for c in columns]
        print(
            "  "
            + "  ".join(
                f"{v:<28}" if c == "figure" else f"{v:>12}" if not isinstance(v, float) else f"{v:>12.3f}"
                for c, v in zip(columns, cells, strict=True)
            )
        )


def main() -> int:
    """Run, print, and say with the exit code whether the bars were met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="300 sets a cell and 200 tournaments a row")
    quick = parser.parse_args().quick
    begun = time.perf_counter()
    coverage = accuracy_coverage()
    show("Accuracy: exact probability that the 95% interval holds the true share", coverage)
    simulated = f1_coverage(PRIORS, 300 if quick else 2000)
    show("Macro F1: share of simulated sets whose 95% interval holds the true figure", simulated)
    others = f1_coverage(RARE, 300 if quick else 1000, SIZES[:2]) + other_coverage(300 if quick else 1000)
    show("Other figures", others)
    finds = false_finds(200 if quick else 1000)
    show("False finds: equal entrants, and yet the verdict names somebody beaten", finds)
    every = [round(row["coverage"], 3) for row in coverage + simulated]
    pooled = sum(f["rate"] for f in finds) / len(finds)
    worst = max(f["rate"] - 2.0 * math.sqrt(LEVEL * (1 - LEVEL) / f["tournaments"]) for f in finds)
    passed = min(every) >= LOW - quick * 0.02 and max(every) <= HIGH + quick * 0.02
    passed = passed and pooled <= LEVEL and worst <= LEVEL  # no row is over the level by more than chance
    seconds = time.perf_counter() - begun
    print(
        f"\ncoverage {min(every):.3f} to {max(every):.3f}; false finds {pooled:.3f} of all tournaments, at most "
        f"{max(f['rate'] for f in finds):.3f} in a row: {'met' if passed else 'MISSED'} ({seconds:.0f} s)"
    )
    figures = {"coverage": coverage + simulated + others, "false_finds": finds, "seconds": seconds}
    print(
        json.dumps(
            {
                "benchmark": "intervals",
                "ratios": {},
                "figures": figures | {"false_find_rate": pooled},
                "quality": {"passed": passed},
            }
        )
    )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
