"""The arena's board: ratings of the models, who beats whom, and how far judges agree with people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.core.errors import EvaluationError
from luthier.evaluation.ratings import Match, Ratings, Tally, Ties, bradley_terry, elo, tally, trueskill
from luthier.store.battles import DEFAULT_ARENA, Battle, Source, list_arenas, list_battles
from luthier.store.database import Store, open_store

if TYPE_CHECKING:
    from jinja2 import Template

_WINNER = {"model_a": "first", "model_b": "second", "tie": "tie"}
_COLOUR, _GRID = "#2f6f8f", "#e6e9ee"


@dataclass(frozen=True)
class ArenaStanding:
    """One model. ``rating`` is Bradley-Terry's on the arena scale with its 95% interval; ``skill`` and ``deviation`` are TrueSkill's."""

    name: str
    matches: int
    wins: int
    ties: int
    losses: int
    win_rate: float
    rating: float
    low: float
    high: float
    elo: float
    skill: float
    deviation: float


@dataclass(frozen=True)
class JudgeAgreement:
    """A judge against people on the ``n`` pairs that both voted on (of several people the majority); ``kappa`` is Cohen's."""

    judge: str
    n: int
    accuracy: float | None
    kappa: float | None


@dataclass(frozen=True)
class ArenaBoard:
    """Standings, best first. ``win_rates[i][j]`` is the share that model i won against model j, a tie as half (None: never met),
    ``games`` how often they met. ``source`` says whose votes are counted."""

    arena: str
    source: str
    votes: int
    skipped: int
    voters: Mapping[str, int]
    standings: tuple[ArenaStanding, ...]
    win_rates: tuple[tuple[float | None, ...], ...]
    games: tuple[tuple[int, ...], ...]
    agreement: tuple[JudgeAgreement, ...] = ()
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        return asdict(self)


def arena_board(
    arena: str | None = None,
    *,
    source: Source | None = None,
    ties: Ties = "half",
    resamples: int = 1000,
    store: Store | None = None,
) -> ArenaBoard:
    """The board of an arena; left out, of the only one that there is. ``source`` counts human or judge votes; left out, human ones where there are any.

    Intervals come from resampling prompts, because votes on answers to one prompt are alike. Raises EvaluationError for an arena
    without votes, or whose models fall into groups that never met.
    """
    store = store or open_store()
    known = list_arenas(store)
    if arena is None:
        arena = next(iter(known)) if len(known) == 1 else DEFAULT_ARENA
    every = list_battles(store, arena)
    if not every:
        there = f"; there are: {', '.join(known)}" if known else ""
        raise EvaluationError(
            f"arena {arena!r} has no votes{there}",
            hint="luthier arena import FILE, play A B, or judge A B --judge J FILE",
        )
    counted: Source = source or ("human" if any(b.source == "human" for b in every) else "judge")
    mine = [b for b in every if b.source == counted]
    votes = [b for b in mine if b.winner != "skip"]
    if not votes:
        raise EvaluationError(f"arena {arena!r} has no {counted} votes that say anything ({len(mine)} skipped)")
    matches = [Match(b.model_a, b.model_b, _WINNER[b.winner]) for b in votes]  # type: ignore[arg-type]
    table = tally(matches)
    ratings = bradley_terry(matches, ties=ties, groups=[b.prompt for b in votes], resamples=resamples)
    order = sorted(range(len(table.names)), key=lambda i: -ratings.values[i])
    rates, games = table.win_rates, table.games
    notes = []
    if ratings.steadied:
        notes.append(
            "One model or group never lost to the rest, which has no finite rating: each model was given one virtual tie."
        )
    fewest = min(int(n) for i, n in np.ndenumerate(games) if i[0] != i[1] and n) if len(order) > 1 else 0
    if fewest < 10:
        notes.append(
            f"Some pairs met only {fewest} times: more votes are needed before ratings and intervals mean much."
        )
    return ArenaBoard(
        arena,
        counted,
        len(votes),
        len(mine) - len(votes),
        dict(Counter(b.voter for b in mine)),
        _standings(matches, table, ratings, order),
        tuple(tuple(None if np.isnan(rates[i, j]) else float(rates[i, j]) for j in order) for i in order),
        tuple(tuple(int(games[i, j]) for j in order) for i in order),
        tuple(agreements(every)),
        tuple(notes),
    )


def _standings(
    matches: Sequence[Match], table: Tally, ratings: Ratings, order: Sequence[int]
) -> tuple[ArenaStanding, ...]:
    """A line for each model, in ``order``."""
    points, skills = elo(matches), trueskill(matches)
    out = []
    for i in order:
        name, won, tied = table.names[i], int(table.wins[i].sum()), int(table.ties[i].sum())
        met = int(table.games[i].sum())
        out.append(
            ArenaStanding(
                name,
                met,
                won,
                tied,
                met - won - tied,
                (won + tied / 2) / met,
                ratings.values[i],
                ratings.low[i],
                ratings.high[i],
                points.of(name),
                skills[name].mean,
                skills[name].deviation,
            )
        )
    return tuple(out)


def agreements(battles: Sequence[Battle]) -> list[JudgeAgreement]:
    """Each judge against the people, on the pairs that both voted on."""
    from luthier.strategies._judge import agreement

    people: dict[str, Counter[str]] = {}
    judges: dict[str, dict[str, str]] = {}
    for battle in battles:
        if battle.winner == "skip":
            continue
        won = {"model_a": battle.model_a, "model_b": battle.model_b, "tie": "tie"}[battle.winner]
        if battle.source == "human":
            people.setdefault(battle.pair, Counter())[won] += 1
        else:
            judges.setdefault(battle.voter, {})[battle.pair] = won
    # A judge does not know the names: what it says is which answer, as the people's row has them.
    first = {battle.pair: battle.model_a for battle in reversed(battles) if battle.source == "human"}
    out = []
    for judge, votes in sorted(judges.items()):
        shared = sorted(votes.keys() & people.keys())
        if shared:
            sides = [
                [_side(each, first[p]) for p, each in said]
                for said in ([(p, _majority(people[p])) for p in shared], [(p, votes[p]) for p in shared])
            ]
            found = agreement(*sides)
            out.append(JudgeAgreement(judge, found["n"], found["accuracy"], found["kappa"]))
    return out


def _side(won: str, first: str) -> str:
    return "tie" if won == "tie" else "first" if won == first else "second"


def _majority(votes: Counter[str]) -> str:
    """What most people said; a tie between them is a tie."""
    (top, count), *rest = votes.most_common()
    return "tie" if rest and rest[0][1] == count else top


# ---- pictures


def draw(board: ArenaBoard, path: Path) -> None:
    """Ratings with intervals beside the win rates, as a PNG. Raises StoreError."""
    from luthier.store.home import write_atomic

    write_atomic(path, picture(board))


def picture(board: ArenaBoard) -> bytes:
    """The PNG's bytes."""
    from io import BytesIO

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [s.name for s in board.standings]
    tall = max(3.2, 0.42 * len(names) + 1.6)
    figure = Figure(figsize=(11, tall), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    places = list(range(len(names)))
    reach = [[s.rating - s.low for s in board.standings], [s.high - s.rating for s in board.standings]]
    left.errorbar(
        [s.rating for s in board.standings], places, xerr=reach, fmt="o", color=_COLOUR, capsize=3, markersize=6
    )
    left.set_yticks(places, names)
    left.invert_yaxis()
    left.set_xlabel("Bradley-Terry rating, 95% interval")
    left.grid(axis="x", color=_GRID)
    left.set_axisbelow(True)
    left.spines[["top", "right"]].set_visible(False)
    left.set_title(f"{board.arena}: {board.votes:,} {board.source} votes", loc="left", fontweight="bold")
    rates = np.array([[np.nan if v is None else v for v in row] for row in board.win_rates])
    right.imshow(rates, cmap="RdBu", vmin=0, vmax=1, aspect="auto")
    right.set_xticks(places, names, rotation=35, ha="right")
    right.set_yticks(places, names)
    for (i, j), rate in np.ndenumerate(rates):
        if not np.isnan(rate):
            colour = "white" if abs(rate - 0.5) > 0.32 else "black"
            right.text(j, i, f"{rate:.0%}", ha="center", va="center", fontsize=8, color=colour)
    right.set_title("share of matches that the row won", loc="left", fontsize=10)
    content = BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def page(board: ArenaBoard) -> str:
    """The board as one HTML page: everything inline, no script, every text escaped."""
    import base64

    return _template().render(board=board, image=base64.b64encode(picture(board)).decode("ascii"))


def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(
        _PAGE
    )


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ board.arena }}: arena</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2rem auto; padding: 0 1rem; color: #1d2733; }
table { border-collapse: collapse; margin: 1rem 0; } th, td { padding: .3rem .8rem; border-bottom: 1px solid #e6e9ee; text-align: right; }
th:first-child, td:first-child { text-align: left; } img { max-width: 100%; } small { color: #5b6875; }
</style></head><body>
<h1>{{ board.arena }}</h1>
<p>{{ board.votes }} {{ board.source }} votes{% if board.skipped %}, {{ board.skipped }} skipped{% endif %}.</p>
<table><tr><th>model</th><th>rating</th><th>95% interval</th><th>matches</th><th>won</th><th>tied</th><th>lost</th><th>Elo</th>
<th>TrueSkill</th></tr>
{% for s in board.standings %}
<tr><td>{{ s.name }}</td><td><b>{{ "%.0f"|format(s.rating) }}</b></td><td>{{ "%.0f to %.0f"|format(s.low, s.high) }}</td>
<td>{{ s.matches }}</td><td>{{ s.wins }}</td><td>{{ s.ties }}</td><td>{{ s.losses }}</td><td>{{ "%.0f"|format(s.elo) }}</td>
<td>{{ "%.1f ± %.1f"|format(s.skill, s.deviation) }}</td></tr>
{% endfor %}</table>
<img alt="Ratings with intervals, and win rates" src="data:image/png;base64,{{ image }}">
{% if board.agreement %}
<h2>Judges against people</h2>
<table><tr><th>judge</th><th>pairs</th><th>accuracy</th><th>Cohen's kappa</th></tr>
{% for a in board.agreement %}
<tr><td>{{ a.judge }}</td><td>{{ a.n }}</td><td>{{ "-" if a.accuracy is none else "%.2f"|format(a.accuracy) }}</td>
<td>{{ "-" if a.kappa is none else "%.2f"|format(a.kappa) }}</td></tr>
{% endfor %}</table>
{% endif %}
{% for note in board.notes %}<p><small>{{ note }}</small></p>{% endfor %}
</body></html>
"""
