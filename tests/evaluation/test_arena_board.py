from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from luthier.core.errors import EvaluationError
from luthier.evaluation.arena_board import ArenaBoard, agreements, arena_board, draw, page
from luthier.evaluation.ratings import Match, bradley_terry, elo, trueskill
from luthier.store.battles import Battle, record_battles
from luthier.store.database import Store, open_store

STRENGTH = {"<b>strong</b>": 1.2, "middle": 0.0, "weak": -1.0}


@pytest.fixture
def store(home: Path) -> Store:
    return open_store()


def battle(number: int, one: str, other: str, winner: str, **changes: str) -> Battle:
    values = {"prompt": f"q{number}", "answer_a": f"{one} {number}", "answer_b": f"{other} {number}", "source": "human"}
    return Battle(model_a=one, model_b=other, winner=winner, **{"voter": "ana", "arena": "t"} | values | changes)  # type: ignore[arg-type]


def fought(count: int = 120) -> list[Battle]:
    draw, names, out = np.random.default_rng(0), list(STRENGTH), []
    for number in range(count):
        one, other = draw.permutation(names)[:2]
        p = 1 / (1 + np.exp(STRENGTH[other] - STRENGTH[one]))
        winner = "tie" if draw.random() < 0.1 else "model_a" if draw.random() < p else "model_b"
        out.append(battle(number, str(one), str(other), winner))
    return out


@pytest.fixture
def board(store: Store) -> ArenaBoard:
    skipped = [battle(1000, "middle", "weak", "skip")]
    record_battles(store, [*fought(), *skipped])
    return arena_board("t", store=store, resamples=200)


def test_the_figures_are_those_of_the_ratings(board: ArenaBoard) -> None:
    winners = {"model_a": "first", "model_b": "second", "tie": "tie"}
    matches = [Match(b.model_a, b.model_b, winners[b.winner]) for b in fought()]  # type: ignore[arg-type]
    expected, points, skills = bradley_terry(matches, resamples=200), elo(matches), trueskill(matches)
    assert [s.name for s in board.standings] == ["<b>strong</b>", "middle", "weak"]
    for s in board.standings:
        assert s.rating == pytest.approx(expected.of(s.name))
        assert s.low < s.rating < s.high
        assert s.elo == pytest.approx(points.of(s.name))
        assert (s.skill, s.deviation) == pytest.approx((skills[s.name].mean, skills[s.name].deviation))
        assert s.wins + s.ties + s.losses == s.matches
        assert s.win_rate == pytest.approx((s.wins + s.ties / 2) / s.matches)
    assert (board.votes, board.skipped, board.source, board.voters) == (120, 1, "human", {"ana": 121})
    assert sum(s.matches for s in board.standings) == 240
    assert board.win_rates[0][0] is None
    assert board.win_rates[0][1] + board.win_rates[1][0] == pytest.approx(1.0)  # type: ignore[operator]
    assert sum(map(sum, board.games)) == 240


def test_judges_are_compared_with_people(store: Store) -> None:
    people = fought(80)
    record_battles(store, people)
    draw = np.random.default_rng(1)
    flip = {"model_a": "model_b", "model_b": "tie", "tie": "model_a"}
    human, judged, votes = [], [], []
    for number, b in enumerate(people[:60]):
        said = b.winner if draw.random() < 0.7 else flip[b.winner]
        human.append(b.winner)
        judged.append(said)
        if number % 2:  # the judge's row may have the answers the other way round
            said = {"model_a": "model_b", "model_b": "model_a", "tie": "tie"}[said]
            votes.append(
                Battle(b.prompt, b.model_b, b.model_a, b.answer_b, b.answer_a, said, "judge", "j", "t")  # type: ignore[arg-type]
            )
        else:
            votes.append(Battle(b.prompt, b.model_a, b.model_b, b.answer_a, b.answer_b, said, "judge", "j", "t"))  # type: ignore[arg-type]
    record_battles(store, votes)
    board = arena_board("t", store=store, resamples=20)
    assert board.source == "human" and board.votes == 80
    (found,) = board.agreement
    assert (found.judge, found.n) == ("j", 60)
    assert found.accuracy == pytest.approx(np.mean([h == j for h, j in zip(human, judged, strict=True)]))
    assert found.kappa == pytest.approx(cohen_kappa_score(human, judged))
    assert arena_board("t", source="judge", store=store, resamples=20).votes == 60


def test_of_several_people_the_majority_counts() -> None:
    said = {"ana": "model_a", "bo": "model_a", "cy": "model_b"}
    people = [battle(0, "a", "b", winner, voter=voter) for voter, winner in said.items()]
    split = [battle(1, "a", "b", winner, voter=winner) for winner in ("model_a", "model_b")]
    judge = [battle(n, "a", "b", w, source="judge", voter="j") for n, w in ((0, "model_a"), (1, "tie"))]
    assert agreements([*people, *split, *judge])[0].accuracy == 1.0


def test_an_arena_without_votes_or_with_skips_alone(store: Store) -> None:
    with pytest.raises(EvaluationError, match="'t' has no votes") as raised:
        arena_board("t", store=store)
    assert "luthier arena import" in str(raised.value)
    record_battles(store, [battle(0, "a", "b", "skip")])
    with pytest.raises(EvaluationError, match=r"no human votes that say anything \(1 skipped\)"):
        arena_board("t", store=store)
    with pytest.raises(EvaluationError, match="there are: t"):
        arena_board("u", store=store)


def test_the_board_says_when_a_rating_is_not_to_be_trusted(store: Store) -> None:
    record_battles(store, [battle(n, "a", "b", "model_a") for n in range(3)])
    notes = " ".join(arena_board("t", store=store, resamples=20).notes)
    assert "never lost" in notes and "met only 3 times" in notes


def test_the_page_shows_it_all_escaped_and_the_picture_is_a_png(board: ArenaBoard, tmp_path: Path) -> None:
    text = page(board)
    assert "&lt;b&gt;strong&lt;/b&gt;" in text and "<b>strong</b>" not in text
    assert "<script" not in text and "http" not in text.replace("http-equiv", "")
    assert f"{board.standings[0].rating:.0f}" in text
    draw(board, tmp_path / "arena.png")
    assert (tmp_path / "arena.png").read_bytes().startswith(b"\x89PNG")
    assert board.as_dict()["standings"][0]["name"] == "<b>strong</b>"
