"""Can this judge be trusted? Its verdicts on pairs of answers that people have judged.

Each pair is shown in both orders. Reported are the agreement with people (accuracy and Cohen's kappa, 1960), how often the answer that is
shown first wins, whether the verdict survives the swap (Zheng et al. 2023, "Judging LLM-as-a-Judge", section 3.3), and whether longer
answers win more often than people let them: as rates, and as the coefficient of the length in a logistic regression that also holds
people's own choice (as Dubois et al. 2024, "Length-Controlled AlpacaEval", do with models in the place of people).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from luthier.core.errors import DataError, EvaluationError
from luthier.core.run import Progress, no_progress

if TYPE_CHECKING:
    from luthier.strategies._judge import Judge, Preference

Winner = Literal["first", "second", "tie"]
WINNERS: tuple[Winner, ...] = ("first", "second", "tie")
FIELDS = ("prompt", "response_a", "response_b", "winner")
_FIRST, _SECOND = ("response_a", "model_a", "a", "first", "1"), ("response_b", "model_b", "b", "second", "2")
_TIES = ("tie", "both", "neither", "equal", "draw")
_UNKNOWN = "winner must be response_a, response_b or tie; got {!r}"
_SHOWN_PROBLEMS = 20
_RESAMPLES = 4000
_BLOCK = 16

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LabelledPair:
    """A question, two answers, and which one people preferred. ``votes`` are the single people's choices, where they are known."""

    place: str
    question: str
    first: str
    second: str
    winner: Winner
    votes: tuple[Winner, ...] = ()


@dataclass(frozen=True)
class Judged:
    """One pair with what the judge said: in the given order, in the swapped one (both told in the given order), and in the end."""

    place: str
    human: Winner
    forward: Winner | None
    backward: Winner | None
    winner: Winner | None
    log_length_ratio: float  # of the first answer to the second, in characters


@dataclass(frozen=True)
class JudgeReport:
    """Figures as ``{value, low, high}`` (95%), None where nothing can be said.

    ``accuracy`` and ``kappa`` are over the pairs with a readable verdict; ``majority`` is the accuracy of always saying people's
    commonest choice, ``people`` that of one person against the others where votes are known. ``first_place`` is how often the answer shown
    first wins (0.5 is fair), ``consistent`` how often both orders agree. ``longer_wins`` is how often the longer answer wins, and
    ``longer_wins_people`` the same by people's choice; ``length_coefficient`` the change of the log-odds when an answer is twice as long
    as the other, people's choice held fixed. ``confusion[human][judge]`` counts.
    """

    judge: str
    pairs: int
    unparsable: int
    accuracy: Mapping[str, float] | None
    kappa: Mapping[str, float] | None
    majority: float
    people: float | None
    first_place: Mapping[str, float] | None
    consistent: Mapping[str, float] | None
    longer_wins: Mapping[str, float] | None
    longer_wins_people: Mapping[str, float] | None
    length_coefficient: Mapping[str, float] | None
    confusion: Mapping[str, Mapping[str, int]]
    counts: Mapping[str, int]
    findings: tuple[str, ...]
    judged: tuple[Judged, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        return asdict(self)


# ---- pairs


def read_pairs(path: str | Path, limit: int | None = None) -> list[LabelledPair]:
    """Rows with ``prompt``, ``response_a``, ``response_b`` and ``winner`` (response_a, model_a, a, first; so for b; tie), of any file kind.

    ``votes`` may list single people's choices. Raises DataError that names each row that cannot be used.
    """
    from luthier.data.files import Broken, rows_of

    pairs: list[LabelledPair] = []
    problems: list[str] = []
    for line, row in rows_of(Path(path).expanduser()):
        place = f"{path}:{line}"
        found = row.reason if isinstance(row, Broken) else _pair(place, row)
        if isinstance(found, str):
            problems.append(f"{place}: {found}")
        else:
            pairs.append(found)
        if limit is not None and len(pairs) == limit:
            break
    if problems:
        more = f"\n  ... and {len(problems) - _SHOWN_PROBLEMS} more" if len(problems) > _SHOWN_PROBLEMS else ""
        shown = "\n  ".join(problems[:_SHOWN_PROBLEMS])
        raise DataError(
            f"{len(problems)} rows cannot be used:\n  {shown}{more}",
            hint=f"each row needs the fields {', '.join(FIELDS)}",
        )
    if not pairs:
        raise DataError(f"{path}: no rows")
    return pairs


def _pair(place: str, row: Mapping[str, Any]) -> LabelledPair | str:
    """The pair, or why the row holds none."""
    for field in FIELDS:
        if not isinstance(row.get(field), str):
            return f"{field} {'is missing' if field not in row else 'must be text'}"
    winner = _winner(row["winner"])
    if winner is None:
        return _UNKNOWN.format(row["winner"])
    votes = []
    for given in row.get("votes") or ():
        vote = _winner(given)
        if vote is None:
            return _UNKNOWN.format(given)
        votes.append(vote)
    return LabelledPair(place, row["prompt"], row["response_a"], row["response_b"], winner, tuple(votes))


def _winner(value: Any) -> Winner | None:
    text = str(value).strip().lower()
    return "first" if text in _FIRST else "second" if text in _SECOND else "tie" if text in _TIES else None


# ---- the check


def check_judge(judge: Judge, pairs: Sequence[LabelledPair], *, progress: Progress = no_progress) -> JudgeReport:
    """Ask ``judge`` about every pair in both orders and compare it with people.

    Raises EvaluationError when no verdict could be read.
    """
    from luthier.strategies._judge import Question

    said: list[Preference] = []
    for start in range(0, len(pairs), _BLOCK):
        block = pairs[start : start + _BLOCK]
        said += judge.compare([(Question(pair.question), pair.first, pair.second) for pair in block])
        progress("judge", len(said), len(pairs))
    judged = tuple(
        Judged(p.place, p.winner, s.forward, s.backward, s.winner, _log_ratio(p))
        for p, s in zip(pairs, said, strict=True)
    )
    return summarise(judge.name, judged, counts=dict(judge.counts), people=_people(pairs))


def _log_ratio(pair: LabelledPair) -> float:
    return math.log((len(pair.first) + 1) / (len(pair.second) + 1))


def _people(pairs: Sequence[LabelledPair]) -> float | None:
    """How often one person agrees with another one on the same pair."""
    same = total = 0
    for pair in pairs:
        for i, vote in enumerate(pair.votes):
            for other in pair.votes[i + 1 :]:
                same, total = same + (vote == other), total + 1
    return same / total if total else None


def summarise(
    judge: str, judged: Sequence[Judged], *, counts: Mapping[str, int] | None = None, people: float | None = None
) -> JudgeReport:
    """All figures of verdicts that are there. Raises EvaluationError when none can be read."""
    read = [j for j in judged if j.winner is not None]
    if not read:
        raise EvaluationError(
            f"none of {len(judged)} verdicts of {judge} could be read, so nothing can be said about it",
            hint="see what it wrote: --log FILE; a small model may do better with --mode score",
        )
    human = np.array([WINNERS.index(j.human) for j in read])
    verdict = np.array([WINNERS.index(j.winner) for j in read if j.winner is not None])
    both = [j for j in judged if j.forward is not None and j.backward is not None]
    report = JudgeReport(
        judge=judge,
        pairs=len(judged),
        unparsable=len(judged) - len(read),
        accuracy=_mean(human == verdict),
        kappa=_kappa(human, verdict),
        majority=float(np.bincount(human, minlength=3).max() / len(human)),
        people=people,
        first_place=_first_place(judged),
        consistent=_mean(np.array([j.forward == j.backward for j in both])),
        **_length(read),
        confusion=_confusion(read),
        counts=dict(counts or {}),
        findings=(),
        judged=tuple(judged),
    )
    return JudgeReport(**{**_shallow(report), "findings": tuple(_findings(report))})


def _shallow(report: JudgeReport) -> dict[str, Any]:
    return {name: getattr(report, name) for name in report.__dataclass_fields__}


def _confusion(read: Sequence[Judged]) -> dict[str, dict[str, int]]:
    return {h: {w: sum(j.human == h and j.winner == w for j in read) for w in WINNERS} for h in WINNERS}


def _first_place(judged: Sequence[Judged]) -> dict[str, float] | None:
    """Per pair, the share of its decided verdicts in which the answer that was shown first won."""
    rows = []
    for j in judged:
        won = [side == place for side, place in ((j.forward, "first"), (j.backward, "second")) if side in WINNERS[:2]]
        if won:
            rows.append((sum(won), len(won)))
    if not rows:
        return None
    return _wilson(sum(won / decided for won, decided in rows) / len(rows), len(rows))


def _length(read: Sequence[Judged]) -> dict[str, dict[str, float] | None]:
    unequal = [j for j in read if j.log_length_ratio]
    longer: list[Winner] = ["first" if j.log_length_ratio > 0 else "second" for j in unequal]

    def rate(of: Callable[[Judged], str | None]) -> dict[str, float] | None:
        decided = [(of(j) == side) for j, side in zip(unequal, longer, strict=True) if of(j) in WINNERS[:2]]
        return _mean(np.array(decided))

    return {
        "longer_wins": rate(lambda j: j.winner),
        "longer_wins_people": rate(lambda j: j.human),
        "length_coefficient": _length_coefficient(unequal),
    }


def _length_coefficient(unequal: Sequence[Judged]) -> dict[str, float] | None:
    """Log-odds that the judge prefers the first answer, for each doubling of its length against the other's."""
    decided = [j for j in unequal if j.winner in WINNERS[:2]]
    if len({j.winner for j in decided}) < 2 or len(decided) < 10:
        return None
    sides = {"first": 1.0, "second": -1.0, "tie": 0.0}
    x = np.array([(1.0, j.log_length_ratio / math.log(2), sides[j.human]) for j in decided])
    y = np.array([j.winner == "first" for j in decided], dtype=np.float64)
    weights, errors = logistic_regression(x, y, ridge=0.02)
    value, error = float(weights[1]), float(errors[1])
    return {"value": value, "low": value - 1.96 * error, "high": value + 1.96 * error}


def logistic_regression(x: Floats, y: Floats, *, ridge: float = 0.0, steps: int = 100) -> tuple[Floats, Floats]:
    """Maximum likelihood by Newton's method: (coefficients, standard errors). ``ridge`` keeps separable data finite; it acts on all
    columns but the first, the constant."""
    weights = np.zeros(x.shape[1])
    penalty = np.diag([0.0, *[ridge] * (x.shape[1] - 1)])
    penalty[0, 0] = 1e-9
    for _ in range(steps):
        chance = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
        hessian = (x * (chance * (1 - chance))[:, None]).T @ x + penalty
        step = np.linalg.solve(hessian, x.T @ (y - chance) - penalty @ weights)
        weights = weights + step
        if np.abs(step).max() < 1e-10:
            break
    return weights, np.sqrt(np.diag(np.linalg.inv(hessian)))


def _findings(report: JudgeReport) -> list[str]:
    """What speaks against the judge, each by an interval that leaves no doubt."""
    out = []
    if report.kappa is None or report.kappa["low"] <= 0:
        out.append("its agreement with people is not above chance")
    first = report.first_place
    if first is not None and not first["low"] <= 0.5 <= first["high"]:
        place = "first" if first["value"] > 0.5 else "second"
        out.append(
            f"it prefers the answer that is shown {place} ({first['value']:.0%} of decided verdicts go to the first place)"
        )
    orders = report.consistent
    if orders is not None and orders["high"] < 0.5:
        out.append(
            f"it contradicts itself when the answers are swapped ({orders['value']:.0%} of pairs get the same verdict)"
        )
    length = report.length_coefficient
    if length is not None and not length["low"] <= 0 <= length["high"]:
        kind = "longer" if length["value"] > 0 else "shorter"
        out.append(
            f"it prefers {kind} answers beyond what people's choices explain ({length['value']:+.2f} log-odds a doubling)"
        )
    if report.unparsable:
        out.append(f"{report.unparsable} of {report.pairs} verdicts could not be read")
    return out


# ---- figures with intervals


def _ratio(above: Floats, below: Floats) -> Floats:
    out: Floats = np.full(np.shape(above), np.nan)
    np.divide(above, below, out=out, where=below > 0)
    return out


def _mean(values: npt.NDArray[Any]) -> dict[str, float] | None:
    return _wilson(float(values.mean()), len(values)) if len(values) else None


def _wilson(share: float, pairs: int) -> dict[str, float]:
    """A share with Wilson's interval (1927), which stays honest at 0, at 1 and for few pairs. One pair is one observation, however many
    verdicts it has."""
    z = 1.96
    middle = (share + z * z / (2 * pairs)) / (1 + z * z / pairs)
    reach = z * math.sqrt(share * (1 - share) / pairs + z * z / (4 * pairs**2)) / (1 + z * z / pairs)
    return {"value": share, "low": max(0.0, middle - reach), "high": min(1.0, middle + reach)}


def _kappa(human: npt.NDArray[np.int64], verdict: npt.NDArray[np.int64]) -> dict[str, float] | None:
    """Cohen's kappa over the three outcomes; None where only one of them occurs."""
    size = len(WINNERS)
    if len(set(human.tolist()) | set(verdict.tolist())) < 2:
        return None
    cells = np.zeros((len(human), size * size))
    cells[np.arange(len(human)), human * size + verdict] = 1.0

    def kappa(counts: Floats) -> Floats:
        table = (counts @ cells).reshape(-1, size, size)
        total = table.sum(axis=(1, 2))
        observed = np.trace(table, axis1=1, axis2=2) / total
        chance = (table.sum(axis=2) * table.sum(axis=1)).sum(axis=1) / total**2
        return _ratio(observed - chance, 1 - chance)

    return _interval(kappa, len(human))


def _interval(statistic: Callable[[Floats], Floats], examples: int) -> dict[str, float]:
    from luthier.evaluation.statistics import bootstrap_interval

    found = bootstrap_interval(lambda counts: statistic(counts.astype(np.float64)), examples, resamples=_RESAMPLES)
    return {"value": found.value, "low": found.low, "high": found.high}


# ---- picture


def draw(report: JudgeReport, path: Path) -> None:
    """A PNG: judge against people, what position does, what length does. Raises StoreError when the disk refuses."""
    from io import BytesIO

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from luthier.store.home import write_atomic

    figure = Figure(figsize=(11, 3.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    agreement, position, length = figure.subplots(1, 3)
    _draw_agreement(agreement, report)
    _draw_rates(
        position,
        "position",
        [("first place wins", report.first_place), ("both orders agree", report.consistent)],
    )
    rates = [("judge", report.longer_wins), ("people", report.longer_wins_people)]
    _draw_rates(length, "the longer answer wins", rates)
    accuracy = f"accuracy {report.accuracy['value']:.2f}" if report.accuracy else ""
    kappa = f", kappa {report.kappa['value']:.2f}" if report.kappa else ""
    figure.suptitle(f"{report.judge} on {report.pairs} pairs: {accuracy}{kappa}", x=0.01, ha="left", fontweight="bold")
    content = BytesIO()
    figure.savefig(content, format="png")
    write_atomic(path, content.getvalue())


def _draw_agreement(axes: Any, report: JudgeReport) -> None:
    table = np.array([[report.confusion[h][w] for w in WINNERS] for h in WINNERS])
    axes.imshow(table, cmap="Blues", vmin=0)
    for row, values in enumerate(table):
        for column, value in enumerate(values):
            dark = value > table.max() / 2
            axes.text(column, row, str(value), ha="center", va="center", color="white" if dark else "black")
    axes.set_xticks(range(3), WINNERS)
    axes.set_yticks(range(3), WINNERS)
    axes.set_xlabel("judge")
    axes.set_ylabel("people")
    axes.set_title("who wins", loc="left")


def _draw_rates(axes: Any, title: str, rates: Sequence[tuple[str, Mapping[str, float] | None]]) -> None:
    for row, (name, rate) in enumerate(rates):
        if rate is not None:
            axes.plot([rate["low"], rate["high"]], [row, row], color="#8d99ae", linewidth=3)
            axes.plot([rate["value"]], [row], "o", color="#2f6f8f", markersize=8)
            axes.annotate(f"{rate['value']:.0%}", (rate["value"], row), (0, 8), textcoords="offset points", ha="center")
        else:
            axes.annotate(f"{name}: nothing to say", (0.5, row), ha="center")
    axes.axvline(0.5, color="#d1495b", linewidth=1, linestyle=":")
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(len(rates) - 0.4, -0.6)
    axes.set_yticks(range(len(rates)), [name for name, _ in rates])
    axes.set_title(title, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
