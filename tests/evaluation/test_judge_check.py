"""Judges with a known fault are found out, good ones are not accused."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from luthier.core.engine import GENERATE, EngineInfo, Generation, Sampling
from luthier.core.errors import DataError, EvaluationError
from luthier.core.message import Prompt, last_user_text
from luthier.core.run import Progress, no_progress
from luthier.evaluation.judge_check import (
    Judged,
    JudgeReport,
    LabelledPair,
    check_judge,
    draw,
    logistic_regression,
    read_pairs,
    summarise,
)
from luthier.strategies._judge import Judge


class Reader:
    """An engine that reads both answers in the prompt and replies what ``decide(a, b)`` says."""

    def __init__(self, decide: Callable[[str, str], str]) -> None:
        self.decide = decide
        self.info = EngineInfo("reader", "fake", frozenset({GENERATE}))

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, progress: Progress = no_progress
    ) -> list[Generation]:
        out = []
        for prompt in prompts:
            text = last_user_text(prompt)
            a, b = (re.search(rf"<answer_{side}>\n(.*?)\n</answer_{side}>", text, re.DOTALL)[1] for side in "ab")  # type: ignore[index]
            out.append(Generation(self.decide(a, b), (), (), "stop"))
        return out


def pairs(count: int = 60, seed: int = 0) -> list[LabelledPair]:
    """The better answer holds "good"; its length is drawn apart from that."""
    draw_ = random.Random(seed)
    out = []
    for number in range(count):
        answers = [("good " + "x" * draw_.randint(1, 200)), ("poor " + "x" * draw_.randint(1, 200))]
        first_wins = draw_.random() < 0.5
        first, second = answers if first_wins else answers[::-1]
        winner = "first" if first_wins else "second"
        out.append(LabelledPair(f"f:{number}", f"question {number}", first, second, winner))  # type: ignore[arg-type]
    return out


def ask(decide: Callable[[str, str], str], given: Sequence[LabelledPair] | None = None) -> JudgeReport:
    return check_judge(Judge(Reader(decide), retries=0), given or pairs())  # type: ignore[arg-type]


def winner(side: str) -> str:
    return json.dumps({"winner": side, "reason": "so"})


def test_a_judge_that_is_right() -> None:
    report = ask(lambda a, b: winner("A" if a.startswith("good") else "B"))
    assert report.accuracy is not None and report.kappa is not None and report.consistent is not None
    assert report.first_place is not None
    assert (report.accuracy["value"], report.kappa["value"], report.consistent["value"]) == (1.0, 1.0, 1.0)
    assert report.first_place["value"] == 0.5
    assert report.findings == () and report.unparsable == 0
    assert report.counts["asked"] == 120


def test_a_judge_that_takes_the_first() -> None:
    report = ask(lambda a, b: winner("A"))
    assert report.first_place is not None and report.consistent is not None
    assert (report.first_place["value"], report.consistent["value"]) == (1.0, 0.0)
    assert report.confusion["first"] == {"first": 0, "second": 0, "tie": sum(p.winner == "first" for p in pairs())}
    assert any("shown first" in finding for finding in report.findings)
    assert any("not above chance" in finding for finding in report.findings)
    assert report.longer_wins is None and report.length_coefficient is None, "nothing but ties"


def test_a_judge_that_takes_the_longer() -> None:
    report = ask(lambda a, b: winner("A" if len(a) >= len(b) else "B"))
    assert report.longer_wins is not None and report.longer_wins["value"] == 1.0
    assert report.longer_wins_people is not None and 0.3 < report.longer_wins_people["value"] < 0.7
    assert report.length_coefficient is not None and report.length_coefficient["low"] > 0
    assert any("prefers longer" in finding for finding in report.findings)
    assert not any("shown" in finding for finding in report.findings)


def test_a_noisy_but_fair_judge_is_not_accused() -> None:
    accused = 0
    for seed in range(12):
        noise = random.Random(seed)
        wrong = {f"question {i}": noise.random() < 0.2 for i in range(80)}
        given = pairs(80, seed)
        lookup = {p.first: wrong[p.question] for p in given} | {p.second: wrong[p.question] for p in given}
        report = ask(lambda a, b, lookup=lookup: winner("A" if a.startswith("good") != lookup[a] else "B"), given)
        accused += bool(report.findings)
        assert report.accuracy is not None and report.accuracy["low"] < 0.8 < report.accuracy["high"] + 0.1
    assert accused <= 2, "two intervals at 95% each"


def test_unreadable_verdicts_are_counted_and_a_judge_of_nonsense_is_an_error() -> None:
    report = ask(lambda a, b: "hm" if "x" * 150 in a else winner("A" if a.startswith("good") else "B"))
    assert 0 < report.unparsable < 60
    assert report.accuracy is not None and report.accuracy["value"] == 1.0
    assert sum(sum(row.values()) for row in report.confusion.values()) == 60 - report.unparsable
    assert any("could not be read" in finding for finding in report.findings)
    with pytest.raises(EvaluationError, match="none of 60 verdicts of reader"):
        ask(lambda a, b: "purple")


def test_kappa_and_accuracy_are_scikit_learns_and_intervals_hold_them() -> None:
    from sklearn.metrics import accuracy_score, cohen_kappa_score

    draw_ = random.Random(3)
    sides = ("first", "second", "tie")
    judged = []
    for number in range(90):
        human = draw_.choice(sides)
        said = human if draw_.random() < 0.6 else draw_.choice(sides)
        judged.append(Judged(str(number), human, said, said, said, 0.1))  # type: ignore[arg-type]
    report = summarise("j", judged)
    human, said = [j.human for j in judged], [j.winner for j in judged]
    assert report.accuracy is not None and report.kappa is not None
    assert report.accuracy["value"] == pytest.approx(accuracy_score(human, said))
    assert report.kappa["value"] == pytest.approx(cohen_kappa_score(human, said))
    assert report.kappa["low"] < report.kappa["value"] < report.kappa["high"]
    assert report.majority == max(human.count(side) for side in sides) / 90
    assert summarise("j", [Judged("1", "first", "first", "first", "first", 0.0)]).kappa is None


def test_few_pairs_prove_nothing() -> None:
    from statsmodels.stats.proportion import proportion_confint

    report = ask(lambda a, b: winner("A"), pairs(3))
    assert report.first_place is not None and report.consistent is not None
    low, high = proportion_confint(3, 3, method="wilson")
    assert (report.first_place["low"], report.first_place["high"]) == pytest.approx((low, high), abs=1e-4)
    assert not any("shown" in finding for finding in report.findings)
    report = ask(lambda a, b: winner("A"), pairs(20))
    assert any("contradicts itself" in finding for finding in report.findings)
    assert report.consistent is not None and report.consistent["high"] > 0.1


def test_logistic_regression_is_that_of_statsmodels() -> None:
    api = pytest.importorskip("statsmodels.api")
    draw_ = np.random.default_rng(0)
    x = np.column_stack([np.ones(200), draw_.normal(size=200), draw_.choice([-1.0, 1.0], 200)])
    y = (draw_.random(200) < 1 / (1 + np.exp(-(x @ [0.3, 0.8, -0.5])))).astype(float)
    weights, errors = logistic_regression(x, y)
    peer = api.Logit(y, x).fit(disp=0)
    np.testing.assert_allclose(weights, peer.params, atol=1e-5)
    np.testing.assert_allclose(errors, peer.bse, atol=1e-4)
    apart, _ = logistic_regression(x, (x[:, 1] > 0).astype(float), ridge=0.02)
    assert np.isfinite(apart).all() and apart[1] > 1


def test_pairs_of_every_spelling(tmp_path: Path) -> None:
    rows = [
        {"prompt": "q", "response_a": "a", "response_b": "b", "winner": said, "model_a": "x"}
        for said in ("response_a", "model_b", "tie", "A", "second")
    ]
    rows[0]["votes"] = ["model_a", "model_a", "tie"]  # type: ignore[assignment]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_pairs(path)
    assert [p.winner for p in found] == ["first", "second", "tie", "first", "second"]
    assert found[0].votes == ("first", "first", "tie") and found[0].place == f"{path}:1"
    assert len(read_pairs(path, limit=2)) == 2
    report = ask(lambda a, b: winner("A" if a == "a" else "B"), found)
    assert report.people == pytest.approx(1 / 3)


def test_rows_that_are_no_pairs(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    good = {"prompt": "q", "response_a": "a", "response_b": "b", "winner": "tie"}
    bad = [{**good, "winner": "nobody"}, {k: v for k, v in good.items() if k != "prompt"}, {**good, "response_b": 3}]
    path.write_text("".join(json.dumps(row) + "\n" for row in [good, *bad]) + "{\n")
    with pytest.raises(DataError) as caught:
        read_pairs(path)
    said = str(caught.value)
    assert "4 rows cannot be used" in said and "pairs.jsonl:2: winner must be" in said and "'nobody'" in said
    assert "pairs.jsonl:3: prompt is missing" in said and "pairs.jsonl:4: response_b must be text" in said


def test_the_picture(tmp_path: Path) -> None:
    draw(ask(lambda a, b: winner("A")), tmp_path / "judge.png")
    assert (tmp_path / "judge.png").read_bytes().startswith(b"\x89PNG")
