from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from luthier.core.engine import ContinuationScore, Engine, EngineInfo, Generation, Sampling, ScoreRequest
from luthier.core.errors import DataError, EngineError, InputError, NotFoundError, UnsupportedError
from luthier.core.message import last_user_text
from luthier.core.run import no_progress
from luthier.scorers._score import Answer, Resources, Target
from luthier.scorers.judge import Config, score, score_many
from luthier.store.database import open_store
from luthier.store.runs import folder, start

pytestmark = pytest.mark.usefixtures("home")


class Writes:
    """A judge that replies with what ``reply`` makes of the last user turn, and finds every label as likely as its number."""

    def __init__(self, reply: Callable[[str], str]) -> None:
        self.reply, self.calls = reply, 0
        self.info = EngineInfo(model="test-judge", engine="test", capabilities=frozenset({"generate", "score"}))

    def generate(self, prompts: Sequence[Any], sampling: Sampling, progress: Any = no_progress) -> list[Generation]:
        self.calls += len(prompts)
        return [Generation(self.reply(last_user_text(prompt)), (), (), "stop") for prompt in prompts]

    def score(self, requests: Sequence[ScoreRequest], progress: Any = no_progress) -> list[tuple[Any, ...]]:
        return [
            tuple(ContinuationScore(0.0 if text in "45" else -50.0, 1) for text in r.continuations) for r in requests
        ]

    def close(self) -> None:
        """Nothing to free."""


class Bench(Resources):
    """Resources whose judge is the given engine."""

    def __init__(self, judge: Writes, place: Path | None = None) -> None:
        super().__init__(open_store(), place)
        self.judge = judge

    def engine(self, name: str, kind: str = "auto") -> Engine:
        assert (name, kind) == ("test-judge", "auto")
        return self.judge  # type: ignore[return-value]


def graded(
    writes: Callable[[str], str], answers: Sequence[str], place: Path | None = None, **options: Any
) -> list[Any]:
    targets = [Target(f"reference {i}", input=f"question {i}", meta={"id": f"row-{i}"}) for i in range(len(answers))]
    bench = Bench(Writes(writes), place)
    config = Config(judge="test-judge", **options)
    return score_many([Answer(text) for text in answers], targets, config, bench)


def test_grades_are_on_the_scale_and_logged_in_full(tmp_path: Path) -> None:
    one, two = graded(lambda text: "Rating: [[7]]" if "good" in text else "quack", ["good", "bad"], tmp_path, retries=1)
    assert (one.value, one.detail["attempts"]) == (7.0, 1)
    assert two.value is None
    assert two.detail["unparsable"]
    assert two.detail["reply"] == "quack"
    log = [json.loads(line) for line in (tmp_path / "judge.jsonl").read_text().splitlines()]
    assert [(row["input"], row["answer"], row["attempt"], row["value"]) for row in log] == [
        ("question 0", "good", 0, 7.0),
        ("question 1", "bad", 0, None),
        ("question 1", "bad", 1, None),
    ]
    assert all(row["prompt"] and row["judge"] == "test-judge" for row in log)


def test_options_reach_the_judge() -> None:
    seen: list[str] = []
    graded(lambda text: seen.append(text) or "[[2]]", ["x"])  # type: ignore[func-returns-value]
    graded(lambda text: seen.append(text) or "[[2]]", ["x"], reference=True)  # type: ignore[func-returns-value]
    assert ["reference 0" in text for text in seen] == [False, True]
    assert graded(lambda _: "[[2]]", ["x"], scale=(1, 5), normalised=True)[0].value == 0.25
    assert graded(lambda _: "", ["x"], reply="score")[0].value == pytest.approx(4.5)
    assert graded(lambda _: "[[7]]", ["x"], scale=(1, 5), retries=0)[0].value is None


def test_pairs_against_the_target() -> None:
    def longer(text: str) -> str:
        parts = [part.split("</")[0] for part in text.split("<answer_")[1:]]
        return "[[A]]" if len(parts[0]) > len(parts[1]) else "[[B]]" if len(parts[0]) < len(parts[1]) else "[[C]]"

    better, worse, same = graded(longer, ["a much longer answer", "short", "reference x"], mode="pairwise")
    assert [s.value for s in (better, worse, same)] == [1.0, 0.0, 0.5]
    assert better.detail["consistent"]
    biased = graded(lambda _: "[[A]]", ["x"], mode="pairwise")[0]
    assert (biased.value, biased.detail["consistent"]) == (0.5, False)
    assert (biased.detail["forward"], biased.detail["backward"]) == ("first", "second")
    assert graded(lambda _: "[[A]]", ["x"], mode="pairwise", swap=False)[0].value == 1.0
    assert graded(lambda _: "?", ["x"], mode="pairwise", retries=0)[0].value is None


def test_pairs_against_a_baseline_file_and_against_a_run(tmp_path: Path) -> None:
    file = tmp_path / "other.jsonl"
    file.write_text(
        '{"id": "row-0", "answer": "theirs"}\n\n{"input": "question 1", "answer": "theirs"}\n', encoding="utf-8"
    )
    run = start(open_store(), "eval", "earlier", {}, {})
    (folder(open_store(), run.id) / "records.jsonl").write_text(file.read_text(), encoding="utf-8")
    for baseline in (str(file), run.id, "earlier"):
        seen: list[str] = []

        def prefers_a(text: str, seen: list[str] = seen) -> str:
            seen.append(text)
            return "[[A]]"

        scores = graded(prefers_a, ["x", "y", "z"], mode="pairwise", swap=False, baseline=baseline)
        assert [s.value for s in scores] == [1.0, 1.0, None]
        assert "no answer" in scores[2].detail["reason"]
        assert len(seen) == 2
        assert all("theirs" in text and "reference" not in text for text in seen)


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        ('{"answer": 1', DataError, "other.jsonl:1"),
        ('{"id": "x"}', DataError, "other.jsonl:1"),
        ('["x"]', DataError, "other.jsonl:1"),
        ("", DataError, "no answers"),
        (None, DataError, "no such file"),
    ],
)
def test_a_baseline_that_cannot_be_used_is_an_error(
    content: str | None, error: type[Exception], said: str, tmp_path: Path
) -> None:
    file = tmp_path / "other.jsonl"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    with pytest.raises(error, match=said):
        graded(lambda _: "[[A]]", ["x"], mode="pairwise", baseline=str(file))


def test_a_baseline_run_must_be_an_evaluation() -> None:
    with pytest.raises(NotFoundError):
        graded(lambda _: "[[A]]", ["x"], mode="pairwise", baseline="nothing")
    run = start(open_store(), "tune", "tuned", {}, {})
    with pytest.raises(InputError, match="evaluation"):
        graded(lambda _: "[[A]]", ["x"], mode="pairwise", baseline=run.id)


def test_a_judge_that_dies_midway_leaves_the_rest_unscored_and_is_left_alone_in_later_blocks() -> None:
    left = iter(range(4))

    def reply(text: str) -> str:
        if next(left, None) is None:
            raise EngineError("connection refused")
        return "[[9]]"

    judge = Writes(reply)
    bench, config = Bench(judge), Config(judge="test-judge", retries=0)
    answers, targets = [Answer("x")] * 32, [Target("", input=f"q{i}") for i in range(32)]
    first = score_many(answers[:4], targets[:4], config, bench)
    assert [s.value for s in first] == [9.0] * 4
    for _ in range(3):
        assert {s.value for s in score_many(answers, targets, config, bench)} == {None}
    assert judge.calls <= 4 + 32 + 24 + 2 * 8


def test_a_judge_that_hangs_is_counted_too() -> None:
    hold = threading.Event()
    one, two = graded(
        lambda text: "[[9]]" if "fine" in text else str(hold.wait(20)), ["fine", "slow"], retries=0, timeout_s=0.05
    )
    hold.set()
    assert (one.value, two.value) == (9.0, None)
    assert "within" in two.detail["reason"]


def test_wrong_options_are_named() -> None:
    with pytest.raises(ValueError, match="judge"):
        Config(judge="")
    with pytest.raises(NotFoundError, match="rubric"):
        graded(lambda _: "", ["x"], rubric="rubric_qualty")
    with pytest.raises(InputError, match="scale"):
        graded(lambda _: "", ["x"], scale=(5, 1))


def test_any_model_by_name_can_judge() -> None:
    got = score(Answer("x"), Target("y", input="q"), Config(judge="fake", reply="score"))
    assert got.value is not None
    assert 1 <= got.value <= 10
    with pytest.raises(NotFoundError):
        score(Answer("x"), Target("y"), Config(judge="no-such-model"))


def test_an_encoder_cannot_judge(tiny_encoder: str) -> None:
    with pytest.raises(UnsupportedError, match="generate"):
        score(Answer("x"), Target("y"), Config(judge=tiny_encoder))


def test_a_local_decoder_judges(tiny_decoder: str) -> None:
    target = Target("y", input="q")
    written = score(Answer("x"), target, Config(judge=tiny_decoder, retries=0, max_new_tokens=4))
    assert written.value is None  # a random model writes no grade
    scored = score(Answer("x"), target, Config(judge=tiny_decoder, reply="score", scale=(1, 3)))
    assert scored.value is not None
    assert 1 < scored.value < 3
