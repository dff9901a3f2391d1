"""Ratings from matches of two: win rates, Elo, Bradley-Terry and TrueSkill.

Bradley-Terry is the one to rank by: it does not depend on the order of the matches, and it comes with an interval. Elo and TrueSkill
are what people know from games; both are computed match by match.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from luthier.core.errors import EvaluationError, InputError

Floats = npt.NDArray[np.float64]
Winner = Literal["first", "second", "tie"]
Ties = Literal["half", "davidson"]

CENTRE = 1000.0
SCALE = 400.0 / math.log(10.0)
"""Arena points in one nat of strength: 400 points are odds of ten to one."""

_STEPS = 100
_LARGEST_STEP = 2.0  # nats; Newton's method overshoots from far away
_BLOCK_CELLS = 4_000_000  # entries of the Hessians that are solved at once


@dataclass(frozen=True, slots=True)
class Match:
    """One comparison of two models."""

    first: str
    second: str
    winner: Winner

    def __post_init__(self) -> None:
        if self.winner not in ("first", "second", "tie"):
            raise InputError(f"winner must be first, second or tie; got {self.winner!r}")
        if self.first == self.second:
            raise InputError(f"a match needs two models; got {self.first!r} against itself")


@dataclass(frozen=True)
class Tally:
    """What happened between each two: ``wins[i, j]`` is how often i beat j, ``ties[i, j]`` (symmetric) how often neither did."""

    names: tuple[str, ...]
    wins: Floats
    ties: Floats

    @property
    def games(self) -> Floats:
        """Matches of each two, shape (models, models)."""
        games: Floats = self.wins + self.wins.T + self.ties
        return games

    @property
    def win_rates(self) -> Floats:
        """Share of the matches that the row won against the column, a tie as half; ``nan`` for those that never met."""
        games = self.games
        rates: Floats = np.full(games.shape, np.nan)
        np.divide(self.wins + self.ties / 2.0, games, out=rates, where=games > 0)
        return rates


@dataclass(frozen=True)
class Ratings:
    """Points of each model in the order of ``names``. ``low`` and ``high`` are of the same length where there are intervals.

    ``tie_parameter`` is Davidson's nu. ``steadied`` says that the matches alone have no finite answer, see ``bradley_terry``.
    """

    names: tuple[str, ...]
    values: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    tie_parameter: float | None = None
    steadied: bool = False

    def of(self, name: str) -> float:
        """The points of one model."""
        return self.values[self.names.index(name)]


@dataclass(frozen=True, slots=True)
class Skill:
    """TrueSkill's belief about a model: a normal distribution."""

    mean: float
    deviation: float

    @property
    def conservative(self) -> float:
        """What it almost surely is at least (Herbrich et al. rank by it)."""
        return self.mean - 3.0 * self.deviation


def names_of(matches: Sequence[Match]) -> tuple[str, ...]:
    """The models of the matches, sorted."""
    return tuple(sorted({name for match in matches for name in (match.first, match.second)}))


def tally(matches: Sequence[Match]) -> Tally:
    """Count wins and ties. Raises EvaluationError when there is no match."""
    if not matches:
        raise EvaluationError(
            "there are no matches to rate", hint="luthier arena import FILE, or luthier arena play A B"
        )
    names = names_of(matches)
    cells, counts = _cells(matches, names)
    return Tally(names, *(part[0] for part in _matrices(cells, counts[None, :], len(names))))


# ---- Elo


def elo(
    matches: Sequence[Match], *, k: float = 16.0, start: float = CENTRE, orders: int = 200, seed: int = 0
) -> Ratings:
    """Elo points (Elo, 1978): after each match the winner takes ``k`` times the surprise from the loser; a tie is half a win.

    The points depend on the order of the matches, so they are the mean over ``orders`` random orders; 0 takes the order given, as a
    league would. ``k`` 16 lets one upset move 8 to 16 points.
    """
    if k <= 0 or orders < 0:
        raise InputError(f"k must be above 0 and orders at least 0; got k={k}, orders={orders}")
    names = names_of(matches)
    place = {name: i for i, name in enumerate(names)}
    first = np.array([place[m.first] for m in matches], dtype=np.int64)
    second = np.array([place[m.second] for m in matches], dtype=np.int64)
    won = np.array([{"first": 1.0, "tie": 0.5, "second": 0.0}[m.winner] for m in matches])
    draw = np.random.default_rng(seed)
    order = np.array([draw.permutation(len(matches)) for _ in range(orders)] or [np.arange(len(matches))])
    points = np.full((len(order), len(names)), float(start))
    rows = np.arange(len(order))
    for at in order.T:
        i, j = first[at], second[at]
        expected = 1.0 / (1.0 + 10.0 ** ((points[rows, j] - points[rows, i]) / 400.0))
        change = k * (won[at] - expected)
        points[rows, i] += change
        points[rows, j] -= change
    return Ratings(names, tuple(points.mean(axis=0).tolist()))


# ---- Bradley-Terry


def bradley_terry(
    matches: Sequence[Match],
    *,
    ties: Ties = "half",
    groups: Sequence[Hashable] | None = None,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Ratings:
    """Maximum-likelihood strengths on the arena scale (400 / ln 10 points a nat, mean 1,000) with bootstrap intervals.

    P(i beats j) = 1 / (1 + exp(s_j - s_i)) (Bradley and Terry, 1952). A tie counts as half a win each, or ``ties="davidson"`` models
    it: P(tie) proportional to nu sqrt(e^s_i e^s_j) (Davidson, 1970). ``groups`` (one a match, for example its prompt) are what the
    bootstrap draws, because matches over one prompt are alike; without them single matches are drawn. ``resamples`` 0 leaves the
    intervals out.

    A model that never lost (or a group that never lost to the rest) has no finite strength (Ford, 1957). Then, and in resamples
    where that happens, each model is given one virtual tie against a model of average strength, and ``steadied`` is True.

    Raises EvaluationError when the models fall into groups that never met: no points can compare them.
    """
    if ties not in ("half", "davidson"):
        raise InputError(f"ties must be half or davidson; got {ties!r}")
    counted = tally(matches)
    _refuse_strangers(counted)
    davidson = ties == "davidson" and bool(counted.ties.any())
    strengths, nu, steadied = _fit(counted.wins[None], counted.ties[None], davidson)
    values = tuple((CENTRE + SCALE * strengths[0]).tolist())
    parameter = float(nu[0]) if davidson else None
    if not resamples:
        return Ratings(counted.names, values, tie_parameter=parameter, steadied=bool(steadied[0]))
    drawn = CENTRE + SCALE * _resampled(matches, counted.names, groups, resamples, davidson, seed)
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(drawn, [tail, 1.0 - tail], axis=0)
    return Ratings(
        counted.names,
        values,
        tuple(np.minimum(low, values).tolist()),
        tuple(np.maximum(high, values).tolist()),
        parameter,
        bool(steadied[0]),
    )


def _resampled(
    matches: Sequence[Match],
    names: tuple[str, ...],
    groups: Sequence[Hashable] | None,
    resamples: int,
    davidson: bool,
    seed: int,
) -> Floats:
    """Strengths in resamples of the groups, shape (resamples, models)."""
    if groups is None:
        groups = range(len(matches))
    if len(groups) != len(matches):
        raise InputError(f"groups must name one group a match; got {len(groups)} for {len(matches)} matches")
    index = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    member = np.array([index[group] for group in groups], dtype=np.int64)
    cells, which = np.unique(_codes(matches, names), axis=0, return_inverse=True)
    draw = np.random.default_rng(seed)
    rows = max(1, min(resamples, _BLOCK_CELLS // (max(len(names), 2) ** 2)))
    out = []
    for start in range(0, resamples, rows):
        some = min(rows, resamples - start)
        times = draw.multinomial(len(index), np.full(len(index), 1.0 / len(index)), size=some)
        counts = np.zeros((some, len(cells)))
        for cell in range(len(cells)):
            counts[:, cell] = times[:, member[which.ravel() == cell]].sum(axis=1)
        out.append(_fit(*_matrices(cells, counts, len(names)), davidson)[0])
    return np.concatenate(out)


def _codes(matches: Sequence[Match], names: tuple[str, ...]) -> npt.NDArray[np.int64]:
    """(winner, loser, 0) or (one, other, 1) for a tie, shape (matches, 3)."""
    place = {name: i for i, name in enumerate(names)}
    codes = []
    for match in matches:
        i, j = place[match.first], place[match.second]
        if match.winner == "tie":
            codes.append((min(i, j), max(i, j), 1))
        else:
            codes.append((i, j, 0) if match.winner == "first" else (j, i, 0))
    return np.array(codes, dtype=np.int64).reshape(-1, 3)


def _cells(matches: Sequence[Match], names: tuple[str, ...]) -> tuple[npt.NDArray[np.int64], Floats]:
    cells, counts = np.unique(_codes(matches, names), axis=0, return_counts=True)
    return cells, counts.astype(np.float64)


def _matrices(cells: npt.NDArray[np.int64], counts: Floats, models: int) -> tuple[Floats, Floats]:
    """Wins and ties, each of shape (rows, models, models), from counts of shape (rows, cells)."""
    wins, ties = np.zeros((2, len(counts), models, models))
    for (i, j, tied), column in zip(cells.tolist(), counts.T, strict=True):
        if tied:
            ties[:, i, j] += column
            ties[:, j, i] += column
        else:
            wins[:, i, j] += column
    return wins, ties


def _fit(wins: Floats, ties: Floats, davidson: bool) -> tuple[Floats, Floats, npt.NDArray[np.bool_]]:
    """Newton's method on a stack of tallies: strengths (rows, models) of mean 0, nu (rows,), and which rows had to be steadied."""
    rows, models, _ = wins.shape
    steadied = ~_beatable(wins + ties)
    prior = steadied.astype(np.float64)[:, None]
    games = wins + wins.transpose(0, 2, 1) + ties
    strengths, log_nu = np.zeros((rows, models)), np.full(rows, -1.0)
    for _ in range(_STEPS):
        slope, curve = (
            _davidson(strengths, log_nu, wins, ties, games) if davidson else _half(strengths, wins, ties, games)
        )
        virtual = 1.0 / (1.0 + np.exp(-strengths))
        slope[:, :models] += prior * (0.5 - virtual)
        diagonal = np.arange(models)
        curve[:, diagonal, diagonal] += prior * virtual * (1.0 - virtual)
        curve[:, :models, :models] += np.where(steadied, 0.0, 1.0)[
            :, None, None
        ]  # only differences count: keep the mean
        step = np.linalg.solve(curve, slope[..., None])[..., 0]
        largest = np.abs(step).max(axis=1, keepdims=True)
        step *= np.minimum(1.0, _LARGEST_STEP / np.maximum(largest, 1e-300))
        strengths += step[:, :models]
        if davidson:
            log_nu += step[:, models]
        if np.abs(slope).max() < 1e-9 * max(1.0, float(games.max())):
            break
    return strengths - strengths.mean(axis=1, keepdims=True), np.exp(log_nu), steadied


def _half(strengths: Floats, wins: Floats, ties: Floats, games: Floats) -> tuple[Floats, Floats]:
    """Slope and negative curvature of the log-likelihood; a tie is half a win."""
    p = 1.0 / (1.0 + np.exp(-(strengths[:, :, None] - strengths[:, None, :])))
    slope = (wins + ties / 2.0 - games * p).sum(axis=2)
    return slope, _laplacian(games * p * (1.0 - p))


def _davidson(strengths: Floats, log_nu: Floats, wins: Floats, ties: Floats, games: Floats) -> tuple[Floats, Floats]:
    """The same for Davidson's model; the last coordinate is log nu."""
    half = (strengths[:, :, None] - strengths[:, None, :]) / 2.0
    nu = np.exp(log_nu)[:, None, None]
    total = np.exp(half) + np.exp(-half) + nu
    won, lost, tied = np.exp(half) / total, np.exp(-half) / total, nu / total
    rows, models = strengths.shape
    slope = np.empty((rows, models + 1))
    slope[:, :models] = ((wins - wins.transpose(0, 2, 1)) / 2.0 - games * (won - lost) / 2.0).sum(axis=2)
    slope[:, models] = (ties - games * tied).sum(axis=(1, 2)) / 2.0
    curve = np.zeros((rows, models + 1, models + 1))
    curve[:, :models, :models] = _laplacian(games * ((won + lost) / 4.0 - ((won - lost) / 2.0) ** 2))
    cross = -(games * tied * (won - lost) / 2.0).sum(axis=2)
    curve[:, :models, models] = curve[:, models, :models] = cross
    curve[:, models, models] = (games * tied * (1.0 - tied)).sum(axis=(1, 2)) / 2.0 + 1e-12
    return slope, curve


def _laplacian(weights: Floats) -> Floats:
    diagonal = np.arange(weights.shape[1])
    out = -weights
    out[:, diagonal, diagonal] = 0.0
    out[:, diagonal, diagonal] = -out.sum(axis=2)
    return out


def _beatable(held: Floats) -> npt.NDArray[np.bool_]:
    """Whether every model held its own, through others, against every other one: the condition for finite strengths (Ford, 1957)."""
    reach = (held > 0) | np.eye(held.shape[1], dtype=bool)
    for _ in range(max(1, math.ceil(math.log2(max(held.shape[1], 2))))):
        reach = np.matmul(reach.astype(np.float32), reach.astype(np.float32)) > 0
    return np.asarray(reach.all(axis=(1, 2)))


def _refuse_strangers(counted: Tally) -> None:
    met = counted.games > 0
    left, parts = set(range(len(counted.names))), []
    while left:
        part, frontier = set(), {min(left)}
        while frontier:
            part |= frontier
            frontier = {int(j) for i in frontier for j in np.flatnonzero(met[i])} - part
        parts.append(sorted(part))
        left -= part
    if len(parts) > 1:
        told = " | ".join(", ".join(counted.names[i] for i in part) for part in parts)
        raise EvaluationError(
            f"the models fall into {len(parts)} groups that never met, so no points can compare them: {told}",
            hint="add matches between the groups, or rate one group at a time",
        )


# ---- TrueSkill


def trueskill(
    matches: Sequence[Match],
    *,
    mean: float = 25.0,
    deviation: float = 25.0 / 3.0,
    beta: float = 25.0 / 6.0,
    dynamics: float = 25.0 / 300.0,
    draw_probability: float | None = None,
) -> dict[str, Skill]:
    """Skills after the matches in their order (Herbrich, Minka and Graepel, 2006; two players, closed form).

    ``beta`` is the deviation of a performance around the skill, ``dynamics`` what a skill may drift between matches.
    ``draw_probability`` of equal models is the share of ties among the matches when it is not given.
    """
    tied = sum(match.winner == "tie" for match in matches)
    share = tied / max(len(matches), 1) if draw_probability is None else draw_probability
    if not 0.0 <= share <= 1.0 or (tied and share == 0.0):
        raise InputError(f"draw_probability must be between 0 and 1, and above 0 where there are ties; got {share}")
    from scipy.special import ndtri

    margin = float(ndtri((min(share, 1.0 - 1e-9) + 1.0) / 2.0)) * math.sqrt(2.0) * beta
    skills = {name: Skill(mean, deviation) for name in names_of(matches)}
    for match in matches:
        one, other = (match.second, match.first) if match.winner == "second" else (match.first, match.second)
        skills[one], skills[other] = _update(
            skills[one], skills[other], margin, beta, dynamics, tied=match.winner == "tie"
        )
    return skills


def _update(
    winner: Skill, loser: Skill, margin: float, beta: float, dynamics: float, *, tied: bool
) -> tuple[Skill, Skill]:
    """Both skills after one match: the truncated normal's moments (section 4 of the paper: v and w)."""
    ours, theirs = winner.deviation**2 + dynamics**2, loser.deviation**2 + dynamics**2
    spread = math.sqrt(ours + theirs + 2.0 * beta**2)
    lead, gap = (winner.mean - loser.mean) / spread, margin / spread
    v, w = _moments_tie(lead, gap) if tied else _moments_win(lead - gap)

    def moved(skill: Skill, variance: float, sign: float) -> Skill:
        shrunk = variance * max(1.0 - w * variance / spread**2, 1e-12)
        return Skill(skill.mean + sign * v * variance / spread, math.sqrt(shrunk))

    return moved(winner, ours, 1.0), moved(loser, theirs, -1.0)


def _moments_win(x: float) -> tuple[float, float]:
    """Mean shift v and variance loss w of a standard normal that is known to be above ``-x``."""
    from scipy.special import log_ndtr

    v = math.exp(-x * x / 2.0 - math.log(2.0 * math.pi) / 2.0 - float(log_ndtr(x)))
    return v, v * (v + x)


def _moments_tie(lead: float, gap: float) -> tuple[float, float]:
    """The same for one that is known to be within ``gap`` of zero."""
    from scipy.special import ndtr

    low, high = -gap - abs(lead), gap - abs(lead)
    within = max(float(ndtr(high) - ndtr(low)), 1e-300)
    density = (
        math.exp(-low * low / 2.0) / math.sqrt(2 * math.pi),
        math.exp(-high * high / 2.0) / math.sqrt(2 * math.pi),
    )
    v = (density[0] - density[1]) / within
    w = v * v + (high * density[1] - low * density[0]) / within
    return (-v if lead < 0 else v), w
