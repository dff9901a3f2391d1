"""The verdict: who leads, what a paired test can tell apart, and which entrant to keep.

The rule, also printed with every verdict: of all entrants that the test cannot tell from the leader, keep the simplest. Simpler is
what needs no training before what does; then the smaller base model; then fewer trained parameters; then about half the latency (less
is noise, and the verdict should be the same tomorrow). Of equally simple ones, the better score.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from luthier.tournament.board import Comparison, Standing
from luthier.tournament.figures import count, interval, megabytes, metric, milliseconds, probability, score, signed

LEVEL = 0.05
RULE = (
    "Of all entrants that a paired test cannot tell from the leader, keep the simplest: no training before training, then the "
    "smaller base model, then fewer trained parameters, then half the latency."
)
TEST = (
    "paired bootstrap over the test examples, two-sided, Holm-adjusted over all pairs of entrants (the leader is picked by looking), "
    f"level {LEVEL:g}"
)
SEEDS_TEST = (
    "Student's t over test examples and seeds, both random effects, two-sided, Holm-adjusted over all pairs of entrants (the leader is "
    f"picked by looking), level {LEVEL:g}"
)
_POWER = 2.8  # 1.96 + 0.84: standard errors between no difference and one that is found in 80% of tournaments


@dataclass(frozen=True)
class Verdict:
    """``leader`` has the best score, ``keep`` is the advice. ``level_with`` are the entrants that cannot be told from the leader."""

    sentence: str
    leader: str = ""
    keep: str = ""
    level_with: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    rule: str = RULE
    test: str = TEST

    def as_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        return asdict(self)


def simplicity(standing: Standing) -> tuple[float, ...]:
    """Sorts simpler entrants first; what is not known counts as the most."""

    def known(value: float | None) -> float:
        return math.inf if value is None else float(value)

    return (
        float(standing.trained),
        known(standing.base_mb),
        known(standing.trainable_parameters),
        known(standing.latency_p50_s and round(math.log2(standing.latency_p50_s))),
    )


def decide(
    standings: Sequence[Standing],
    comparisons: Sequence[Comparison],
    scorer: str,
    *,
    lower_is_better: bool = False,
    frontiers: Mapping[str, Sequence[str]] | None = None,
) -> Verdict:
    """The verdict over ranked standings; failed ones are left out of it.

    ``lower_is_better`` only changes words: the standings are ranked already. ``frontiers`` are told as reasons.
    """
    done = [s for s in standings if s.status == "done"]
    if not done:
        return Verdict("No entrant finished, so there is nothing to compare.")
    leader = done[0]
    scorer = f"{metric(scorer)} (lower is better)" if lower_is_better else metric(scorer)
    opening = f"{_called(leader)}: {scorer} {_score(leader)}"
    if len(done) == 1:
        return Verdict(f"Only {opening} finished; there is nothing to compare it with.", leader.name, leader.name)
    against = {s.name: _between(leader.name, s.name, comparisons) for s in done[1:]}
    level = [s for s in done[1:] if against[s.name].p_adjusted >= LEVEL]
    keep = min([leader, *level], key=simplicity)
    beaten = [s for s in done[1:] if s not in level]
    parts = [f"{_called(leader)} {'wins' if not level else 'leads'}: {scorer} {_score(leader)}"]
    parts += _over(leader, beaten, against, "against" if lower_is_better else "over")
    sentence = ", ".join(parts)
    if level:
        told = " and ".join(f"{s.name} ({_gap(against[s.name])})" for s in level[:3])
        told += f" and {len(level) - 3} more" if len(level) > 3 else ""
        sentence += f"; no detectable difference to {told}: " + (
            f"keep the simplest, {keep.name}"
            if keep is not leader
            else f"keep {leader.name}, which is also the simplest of them"
        )
    return Verdict(
        sentence + ".",
        leader.name,
        keep.name,
        tuple(s.name for s in level),
        (*_reasons(leader, keep, done, level, against), *_told(done, keep, frontiers or {})),
        test=SEEDS_TEST if any(s.seeds for s in done) else TEST,
    )


def _over(leader: Standing, beaten: Sequence[Standing], against: dict[str, Comparison], word: str) -> list[str]:
    """By how much the leader beats the next entrant, and the best that was not trained."""
    if not beaten:
        return []
    shown = [beaten[0]]
    untrained = next((s for s in beaten if not s.trained), None)
    if leader.trained and untrained is not None and untrained is not beaten[0]:
        shown.append(untrained)
    return [
        f"{signed(against[s.name].value)} {word} {s.name} ({probability(against[s.name].p_adjusted)})" for s in shown
    ]


def _reasons(
    leader: Standing,
    keep: Standing,
    done: Sequence[Standing],
    level: Sequence[Standing],
    against: dict[str, Comparison],
) -> list[str]:
    out = []
    if keep is not leader:
        out.append(f"{keep.name} is simpler than {leader.name}: {_simpler(keep, leader)}.")
    if level:
        widest = max(against[s.name].high - against[s.name].low for s in level)
        visible = _POWER * widest / (2 * 1.96)
        examples = leader.counts.get("examples", 0)
        out.append(
            f"Their answers score alike on all {examples} test examples."
            if widest == 0
            else f"No detectable difference is not proof of equality: with {examples} test examples, a true difference under about "
            f"{visible:.2f} would often go unnoticed."
        )
    for standing in done:
        unparsed, refused = standing.counts.get("unparsed", 0), standing.counts.get("errors", 0)
        if unparsed:
            out.append(f"{standing.name}: {unparsed} of its answers were none of the labels and count as wrong.")
        if refused:
            out.append(f"{standing.name}: {refused} of the examples were refused by its engine and count as wrong.")
    return out


def _told(done: Sequence[Standing], keep: Standing, frontiers: Mapping[str, Sequence[str]]) -> list[str]:
    """What else went into the figures: seeds, searches, and who is not beaten at its cost."""
    out = []
    seeded = [s for s in done if s.seeds]
    if seeded:
        counts = sorted({len(s.seeds) for s in seeded})
        told = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        out.append(
            f"Scores of {_names(seeded)} are means over {told} seeds, and their intervals hold the spread between seeds; promoted is the "
            "seed that is best on the validation split."
        )
    searched = [s for s in done if s.trials]
    if searched:
        trials = ", ".join(f"{s.name} {len(s.trials)}" for s in searched)
        out.append(f"Settings were searched on the validation split only (trials: {trials}).")
    costs = [cost for cost, names in frontiers.items() if keep.name in names]
    if costs and len(done) > 1:
        out.append(f"Nobody scores better than {keep.name} at its {' or '.join(costs)} or less.")
    return out


def _names(standings: Sequence[Standing], most: int = 4) -> str:
    names = [s.name for s in standings]
    shown = ", ".join(names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def _simpler(keep: Standing, leader: Standing) -> str:
    if keep.trained != leader.trained:
        return "it needs no training"
    if keep.base_mb != leader.base_mb:
        return f"its base model is smaller ({megabytes(keep.base_mb)} against {megabytes(leader.base_mb)})"
    if keep.trainable_parameters != leader.trainable_parameters:
        return f"it trains {count(keep.trainable_parameters)} parameters against {count(leader.trainable_parameters)}"
    return f"it answers in {milliseconds(keep.latency_p50_s)} against {milliseconds(leader.latency_p50_s)}"


def _between(leader: str, other: str, comparisons: Sequence[Comparison]) -> Comparison:
    for c in comparisons:
        if (c.first, c.second) == (leader, other):
            return c
        if (c.second, c.first) == (leader, other):
            return Comparison(leader, other, -c.value, -c.high, -c.low, c.p, c.p_adjusted)
    raise KeyError(f"{leader} and {other} were not compared")


def _called(standing: Standing) -> str:
    return standing.name if standing.model in standing.name else f"{standing.name} on {standing.model}"


def _score(standing: Standing) -> str:
    s = standing.score
    return f"{score(s['value'])} {interval(s['low'], s['high'])}"


def _gap(c: Comparison) -> str:
    """Without the interval, which is of this pair alone: beside an adjusted p the two could seem to contradict each other."""
    return f"{signed(-c.value)}, {probability(c.p_adjusted)}"
