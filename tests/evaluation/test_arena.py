from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from luthier.core.errors import DataError, InputError, MismatchError
from luthier.engines.fake import Config, FakeEngine
from luthier.evaluation.arena import (
    JUDGE_BLOCK,
    Answers,
    Pair,
    collect,
    import_battles,
    judge_pairs,
    open_judge,
    pairs_of,
    prompts_task,
    references_of,
    rounds,
    stored_pairs,
    voter_of,
)
from luthier.store.battles import Battle, list_battles, record_battles
from luthier.store.database import Store, open_store
from luthier.store.runs import list_runs
from luthier.strategies._judge import Judge, Preference


@pytest.fixture
def store(home: Path) -> Store:
    return open_store()


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"question {i}", **({"reference": f"right {i}"} if i % 2 else {})} for i in range(6)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def pair(number: int, **changes: str) -> Pair:
    values = {
        "prompt": f"q{number}",
        "model_a": "a",
        "model_b": "b",
        "answer_a": f"x{number}",
        "answer_b": f"y{number}",
    }
    return Pair(**values | changes)  # type: ignore[arg-type]


class Scripted:
    """Stands for a Judge: says what ``verdict`` says of (question, first, second)."""

    def __init__(self, verdict: object = None, most: int | None = None) -> None:
        self.verdict = verdict or (lambda q, first, second: "first")
        self.asked: list[tuple[str, str, str]] = []
        self.most = most
        self.counts: dict[str, int] = {}

    def compare(self, items: Sequence[tuple[object, str, str]], *, swap: bool = True) -> list[Preference]:
        if self.most is not None and len(self.asked) >= self.most:
            raise KeyboardInterrupt
        out = []
        for question, first, second in items:
            self.asked.append((question.input, first, second))  # type: ignore[attr-defined]
            said = self.verdict(question, first, second)  # type: ignore[operator]
            both = said if said != "torn" else "tie"
            forward, backward = ("first", "second") if said == "torn" else (said, said)
            out.append(Preference(both, forward, backward, "because", 1))  # type: ignore[arg-type]
        return out


# ---- prompts and answers


def test_prompts_come_from_rows_or_lines(prompts: Path, tmp_path: Path) -> None:
    task = prompts_task(prompts, max_new_tokens=9)
    assert [e.text for e in task.examples("test")] == [f"question {i}" for i in range(6)]
    assert (task.kind, task.max_new_tokens, task.name) == ("generate", 9, "prompts")
    assert references_of(task) == {f"question {i}": f"right {i}" for i in (1, 3, 5)}
    lines = tmp_path / "lines.txt"
    lines.write_text("one?\n\n  two?  \n第三?\n", encoding="utf-8")
    assert [e.text for e in prompts_task(lines, limit=2).examples("test")] == ["one?", "  two?  "]


def test_a_task_of_free_answers_is_taken_as_it_is_and_others_are_refused(tmp_path: Path, home: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"question": "why?", "answer": "so"}\n{"question": "who?", "answer": "me"}\n')
    (tmp_path / "q.yaml").write_text("data: {test: q.jsonl}\n")
    assert prompts_task(tmp_path / "q.yaml").scorers[0][0] == "exact"
    rows = [{"text": f"t{i}", "label": "ab"[i % 2]} for i in range(20)]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "c.yaml").write_text("name: sort\ndata: {path: c.jsonl}\n")
    with pytest.raises(InputError, match="task sort is of kind classify"):
        prompts_task(tmp_path / "c.yaml")


def test_rows_without_a_prompt_are_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"prompt": "good"}\n{"other": 1}\nnot json\n{"prompt": " "}\n')
    with pytest.raises(DataError, match=r"3 rows cannot be used") as raised:
        prompts_task(path)
    assert "bad.jsonl:2: none of the fields prompt" in str(raised.value)
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    with pytest.raises(DataError, match="no prompt"):
        prompts_task(empty)


def test_answers_are_asked_once(store: Store, prompts: Path) -> None:
    task = prompts_task(prompts)
    first = collect("fake", task, store=store)
    again = collect("fake", task, store=store)
    assert first == again and len(list_runs(store)) == 1
    assert set(first.texts) == {f"question {i}" for i in range(6)} and all(first.texts.values())
    assert len(first.digest) == 64
    assert list_runs(store)[0].summary["scores"]["answered"]["value"] == 1.0


def test_every_two_models_meet_on_every_prompt_that_both_answered() -> None:
    answers = [
        Answers("b", "db", "", {"p": "1", "q": "2"}),
        Answers("a", "da", "", {"p": "3"}),
        Answers("c", "dc", "", {"q": "4", "p": "5"}),
    ]
    found = pairs_of(answers, {"q": "right"})
    assert [(x.prompt, x.model_a, x.model_b, x.answer_a, x.answer_b) for x in found] == [
        ("p", "a", "b", "3", "1"),
        ("p", "a", "c", "3", "5"),
        ("p", "b", "c", "1", "5"),
        ("q", "b", "c", "2", "4"),
    ]
    assert (found[0].digest_a, found[0].digest_b, found[3].reference) == ("da", "db", "right")
    assert set(pairs_of(answers[::-1])) == set(pairs_of(answers))
    with pytest.raises(InputError, match="two different models; got a, a"):
        pairs_of([answers[1], answers[1]])


# ---- judges


def test_votes_are_kept_with_what_the_judge_said(store: Store) -> None:
    verdicts = {"q0": "first", "q1": "second", "q2": "tie", "q3": "torn", "q4": None}
    judge = Scripted(lambda q, first, second: verdicts[q.input])
    done = judge_pairs([pair(i) for i in range(5)], judge, "j 1", store=store)  # type: ignore[arg-type]
    assert (done.votes, done.new, done.inconsistent, done.unparsable) == (4, 4, 1, 1)
    found = {b.prompt: b for b in list_battles(store)}
    assert {p: b.winner for p, b in found.items()} == {"q0": "model_a", "q1": "model_b", "q2": "tie", "q3": "tie"}
    assert (found["q0"].source, found["q0"].voter, found["q0"].shown) == ("judge", "j 1", "")
    assert found["q3"].detail == {"reason": "because", "forward": "first", "backward": "second"}


def test_equal_answers_are_a_tie_that_nobody_is_asked_about(store: Store) -> None:
    judge = Scripted()
    judge_pairs([pair(0, answer_a=" same\n", answer_b="same")], judge, "j", store=store)  # type: ignore[arg-type]
    assert not judge.asked
    assert list_battles(store)[0].winner == "tie"


def test_an_interrupted_judge_goes_on_where_it_stopped(store: Store) -> None:
    pairs = [pair(i) for i in range(3 * JUDGE_BLOCK)]
    with pytest.raises(KeyboardInterrupt):
        judge_pairs(pairs, Scripted(most=JUDGE_BLOCK), "j", store=store)  # type: ignore[arg-type]
    assert len(list_battles(store)) == JUDGE_BLOCK
    rest = Scripted()
    seen: list[tuple[str, int, int]] = []
    done = judge_pairs(pairs, rest, "j", store=store, progress=lambda *at: seen.append(at))  # type: ignore[arg-type]
    assert (len(rest.asked), done.new, done.votes) == (2 * JUDGE_BLOCK, 2 * JUDGE_BLOCK, 3 * JUDGE_BLOCK)
    assert (seen[0], seen[-1]) == (("judge", JUDGE_BLOCK, 3 * JUDGE_BLOCK), ("judge", 3 * JUDGE_BLOCK, 3 * JUDGE_BLOCK))
    again = Scripted()
    assert judge_pairs(pairs, again, "j", store=store).new == 0  # type: ignore[arg-type]
    assert not again.asked
    assert judge_pairs(pairs[:2], again, "another", store=store).new == 2  # type: ignore[arg-type]
    assert judge_pairs(pairs[:2], again, "j", arena="elsewhere", store=store).new == 2  # type: ignore[arg-type]


KILLED = """
import os, signal, sys
from luthier.evaluation.arena import JUDGE_BLOCK, Pair, judge_pairs
from luthier.store.database import open_store
from luthier.strategies._judge import Preference
class J:
    counts = {}
    calls = 0
    def compare(self, items, swap=True):
        J.calls += 1
        if J.calls == 3 and sys.argv[1] == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        return [Preference("first", "first", "first", "", 1) for _ in items]
pairs = [Pair(f"q{i}", "a", "b", f"x{i}", f"y{i}") for i in range(4 * JUDGE_BLOCK)]
print(judge_pairs(pairs, J(), "j", store=open_store()).new)
"""


def judging(home: Path, how: str) -> subprocess.Popen[str]:
    env = {**os.environ, "LUTHIER_HOME": str(home)}
    return subprocess.Popen([sys.executable, "-c", KILLED, how], env=env, stdout=subprocess.PIPE, text=True)


def test_a_killed_judge_loses_no_vote_and_two_at_once_count_none_twice(store: Store, home: Path) -> None:
    killed = judging(home, "die")
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert len(list_battles(store)) == 2 * JUDGE_BLOCK
    both = [judging(home, "live") for _ in range(2)]
    new = [int(process.communicate(timeout=60)[0]) for process in both]
    assert sum(new) == 2 * JUDGE_BLOCK
    assert len(list_battles(store)) == 4 * JUDGE_BLOCK


def test_a_real_judge_over_a_fake_engine_writes_a_log(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"good answer": '{"reason": "r", "winner": "tie"}'}
    engine = FakeEngine("fake", Config(answers=answers))
    monkeypatch.setattr("luthier.strategies._load.load", lambda *a, **k: engine)
    judge, voter, opened = open_judge("fake", arena="t", store=store)
    assert opened is engine and voter == voter_of("fake", engine.info.model_digest, "rubric_quality", "write")
    done = judge_pairs([pair(0, answer_a="good answer")], judge, voter, arena="t", store=store)
    assert (done.votes, done.unparsable) == (1, 0)
    log = [json.loads(line) for line in Path(done.log).read_text().splitlines()]
    assert [r["order"] for r in log] == ["forward", "backward"] and all(r["reply"] and r["prompt"] for r in log)
    assert voter_of("fake", "d", "other", "write") != voter_of("fake", "d", "rubric_quality", "write")


def test_a_judge_that_answers_nonsense_is_counted(store: Store) -> None:
    judge = Judge(FakeEngine("fake", Config()), retries=1)
    done = judge_pairs([pair(i) for i in range(3)], judge, "j", store=store)
    assert (done.votes, done.new, done.unparsable) == (0, 0, 3)
    assert done.counts["asked"] == 12
    assert list_battles(store) == []


# ---- people


def test_a_round_hides_the_models_and_maps_the_vote_back(store: Store) -> None:
    left = rounds([pair(i) for i in range(40)], "ana", store=store)
    assert {r.swapped for r in left} == {True, False}
    for each in left:
        shown_a = each.answers[0]
        battle = each.battle("a", "ana")
        won = battle.answer_a if battle.winner == "model_a" else battle.answer_b
        assert won == shown_a and battle.winner in ("model_a", "model_b")
        other = each.battle("b", "ana")
        assert {battle.winner, other.winner} == {"model_a", "model_b"}
        assert battle.shown == ("ba" if each.swapped else "ab")
    assert (left[0].battle("tie", "x").winner, left[0].battle("skip", "x").winner) == ("tie", "skip")
    with pytest.raises(InputError, match="a, b, tie or skip; got 'c'"):
        left[0].battle("c", "ana")  # type: ignore[arg-type]


def test_what_was_voted_on_does_not_come_again(store: Store) -> None:
    pairs = [pair(i) for i in range(8)]
    first = rounds(pairs, "ana", store=store)
    assert first == rounds(pairs, "ana", store=store), "the same order every time"
    assert [r.pair for r in first] != [r.pair for r in rounds(pairs, "bo", store=store)]
    record_battles(store, [first[0].battle("a", "ana"), first[1].battle("skip", "ana")])
    left = {r.pair.prompt for r in rounds(pairs, "ana", store=store)}
    assert left == {p.prompt for p in pairs} - {first[0].pair.prompt, first[1].pair.prompt}
    assert len(rounds(pairs, "bo", store=store)) == 8


# ---- votes from elsewhere


def row(**changes: object) -> dict[str, object]:
    return {
        "id": "1", "prompt": "p", "model_a": "a", "model_b": "b", "response_a": "x", "response_b": "y", "winner": "tie",
        "votes": ["tie", "model_a", "tie"],
    } | changes  # fmt: skip


def test_votes_of_a_file_are_taken_over_once(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "people.jsonl"
    rows = [row(), row(id="2", winner="model_b"), row(id="3", prompt="q", winner="tie (bothbad)")]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    done = import_battles(path, store=store)
    assert (done.arena, done.rows, done.new) == ("people", 3, 3)
    assert import_battles(path, store=store).new == 0
    found = list_battles(store, "people")
    assert [b.winner for b in found] == ["tie", "model_b", "tie"]
    assert found[0].detail == {"id": "1", "votes": ["tie", "model_a", "tie"]}
    assert len({b.pair for b in found}) == 2, "two votes on one pair are two votes"
    assert [p.prompt for p in stored_pairs(store, "people")] == ["p", "q"]
    with pytest.raises(MismatchError, match="'other' has no human votes"):
        stored_pairs(store, "other")


def test_broken_votes_are_named_and_can_be_left_out(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "people.jsonl"
    bad = [row(winner="nobody"), row(model_b="a"), {"prompt": "p", "winner": "tie"}]
    path.write_text("".join(json.dumps(r) + "\n" for r in [*bad, row()]) + "{\n")
    with pytest.raises(DataError, match="4 rows cannot be used") as raised:
        import_battles(path, store=store)
    said = str(raised.value)
    assert "people.jsonl:1: winner must be model_a, model_b or tie; got 'nobody'" in said
    assert "people.jsonl:2: a battle needs two models" in said
    assert "people.jsonl:3: needs text in model_a, model_b, response_a, response_b" in said
    assert list_battles(store) == []
    done = import_battles(path, skip_bad=True, store=store)
    assert (done.rows, done.new, len(done.problems)) == (1, 1, 4)


def test_the_battle_of_a_pair_has_its_digests() -> None:
    made = Pair("p", "a", "b", "x", "y", "da", "db").battle("tie", "human", "ana", "arena")
    assert isinstance(made, Battle) and (made.digest_a, made.digest_b) == ("da", "db")
