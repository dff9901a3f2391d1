"""Datasets of a model's own answers: what is asked, what is kept, and going on after an interruption."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from luthier.cli import main
from luthier.core.dataset import Dataset, Example
from luthier.core.engine import EMBED, GENERATE, EngineInfo, Generation, Sampling
from luthier.core.errors import ConflictError, DataError, InputError, UnsupportedError
from luthier.core.message import Conversation, Message, user
from luthier.core.score import Reward
from luthier.data.answers import BLOCK, answers
from luthier.data.read import read
from luthier.data.reasons import rationale_of
from luthier.store.lineage import lineage


class Parrot:
    """Says the last turn again; stops for good before the prompt number ``breaks``."""

    def __init__(self, breaks: int = 10**9, can: str = GENERATE, digest: str = "d1") -> None:
        self.info: Any = EngineInfo("parrot", "test", frozenset({can}), model_digest=digest)
        self.asked: list[Conversation] = []
        self.breaks = breaks

    def generate(self, prompts: Sequence[Any], sampling: Sampling, *_: Any) -> list[Generation]:
        if len(self.asked) + len(prompts) > self.breaks:
            raise KeyboardInterrupt
        self.asked += prompts
        return [self._say(prompt[-1].content) for prompt in prompts]

    def _say(self, text: str) -> Generation:
        said = "" if "silent" in text else f"you say {text}"
        return Generation(said, (), (), "length" if "endless" in text else "stop")


def dataset(texts: Sequence[str]) -> Dataset:
    return Dataset("p", "question", tuple(Example(str(i), user(t), source=f"p:{i}") for i, t in enumerate(texts)))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rows_are_conversations_that_say_where_they_are_from(tmp_path: Path) -> None:
    engine, out = Parrot(), tmp_path / "new" / "out.jsonl"
    made = answers(dataset(["一", "two", "一"]), engine, out, sampling=Sampling(seed=3), system="Be brief.")  # type: ignore[arg-type]
    assert (made.rows, made.earlier, made.cut, made.empty) == (2, 0, 0, 0)
    first = lines(out)[0]
    assert [m["role"] for m in first["messages"]] == ["system", "user", "assistant"]
    assert first["messages"][2]["content"] == "you say 一" and "一" in out.read_text(encoding="utf-8")
    assert (first["answered_by"], first["model_digest"], first["engine"], first["sampling"]["seed"]) == (
        "parrot",
        "d1",
        "test",
        3,
    )
    again = read(out)
    assert again.kind == "chat" and again.examples[1].messages[-1] == Message("assistant", "you say two")


def test_a_conversation_is_asked_without_its_last_answer(tmp_path: Path) -> None:
    talk = (
        Message("system", "S"),
        Message("user", "a"),
        Message("assistant", "b"),
        Message("user", "c"),
        Message("assistant", "d"),
    )
    engine = Parrot()
    answers(Dataset("t", "chat", (Example("0", talk),)), engine, tmp_path / "o.jsonl", system="Other")  # type: ignore[arg-type]
    assert engine.asked == [talk[:4]]


def test_cut_and_empty_answers_are_left_out(tmp_path: Path) -> None:
    made = answers(dataset(["fine", "endless", "silent"]), Parrot(), tmp_path / "o.jsonl")  # type: ignore[arg-type]
    assert (made.rows, made.cut, made.empty, len(lines(made.path))) == (1, 1, 1, 1)


def test_an_interrupted_call_goes_on_where_it_was(tmp_path: Path) -> None:
    texts, out = [f"number {i}" for i in range(3 * BLOCK)], tmp_path / "o.jsonl"
    with pytest.raises(KeyboardInterrupt):
        answers(dataset(texts), Parrot(breaks=2 * BLOCK), out)  # type: ignore[arg-type]
    assert len(lines(out)) == 2 * BLOCK
    out.write_bytes(out.read_bytes()[:-9])  # killed while it wrote: half a line
    engine, told = Parrot(), []
    made = answers(dataset(texts), engine, out, progress=lambda *at: told.append(at))  # type: ignore[arg-type]
    assert (made.rows, made.earlier, len(engine.asked)) == (3 * BLOCK, 2 * BLOCK - 1, BLOCK + 1)
    assert told[0] == ("answers", 2 * BLOCK - 1, 3 * BLOCK) and told[-1][1:] == (3 * BLOCK, 3 * BLOCK)
    assert [row["messages"][0]["content"] for row in lines(out)] == texts
    engine = Parrot()
    assert answers(dataset(texts), engine, out).earlier == 3 * BLOCK and not engine.asked  # type: ignore[arg-type]


def test_a_file_of_something_else_is_not_touched(tmp_path: Path) -> None:
    out = tmp_path / "o.jsonl"
    answers(dataset(["a"]), Parrot(), out)  # type: ignore[arg-type]
    before = out.read_bytes()
    for engine, sampling in ((Parrot(digest="d2"), Sampling()), (Parrot(), Sampling(temperature=0.5))):
        with pytest.raises(ConflictError, match=r"o\.jsonl:1: is not an answer of parrot with these settings"):
            answers(dataset(["a", "b"]), engine, out, sampling=sampling)  # type: ignore[arg-type]
    assert out.read_bytes() == before
    out.write_text('{"text": "something"}\n')
    with pytest.raises(ConflictError):
        answers(dataset(["a"]), Parrot(), out)  # type: ignore[arg-type]


def test_what_cannot_be_asked(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="cannot generate"):
        answers(dataset(["a"]), Parrot(can=EMBED), tmp_path / "o.jsonl")  # type: ignore[arg-type]
    empty = Dataset("t", "chat", (Example("0", (Message("assistant", "x"),), source="t:7"),))
    with pytest.raises(DataError, match="t:7: there is nothing to answer"):
        answers(empty, Parrot(), tmp_path / "o.jsonl")  # type: ignore[arg-type]
    assert not (tmp_path / "o.jsonl").exists()


def test_the_command(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"question": f"number {i}?", "answer": "x"}) + "\n" for i in range(3)))
    for said in ("3 answers of fake", "3 of them there before"):
        with pytest.raises(SystemExit) as done:
            main(["data", "answers", str(source), "--model", "fake", "--out", str(out), "--max-tokens", "64"])
        assert not done.value.code
        assert said in capsys.readouterr().err.replace("\n", " ")
    assert read(out).kind == "chat" and len(lines(out)) == 3


class Counter(Parrot):
    """Says how many calls there were, and so something else each time."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.seeds: list[int | None] = []

    def generate(self, prompts: Sequence[Any], sampling: Sampling, *_: Any) -> list[Generation]:
        self.seeds.append(sampling.seed)
        self.asked += prompts
        if len(self.asked) > self.breaks:
            raise KeyboardInterrupt
        return [self._say(f"{sampling.seed} {prompt[-1].content}") for prompt in prompts]


class Liking:
    """Likes the seeds that it is told to."""

    spec = ({"name": "liking"},)

    def __init__(self, *liked: int) -> None:
        self.liked = liked

    def __call__(self, prompts: Sequence[Any], targets: Sequence[Any], texts: Sequence[str]) -> list[Reward]:
        values = [float(int(text.split()[2]) in self.liked) for text in texts]
        return [Reward(value, {"liking": value}) for value in values]


DRAWN = Sampling(temperature=1.0, seed=2)


def test_the_best_of_several_answers_is_kept_with_its_reward(tmp_path: Path) -> None:
    engine, out = Counter(), tmp_path / "o.jsonl"
    made = answers(dataset(["a", "b"]), engine, out, sampling=DRAWN, samples=3, rewards=Liking(7, 8))  # type: ignore[arg-type]
    assert engine.seeds == [6, 7, 8] and (made.rows, made.mean_reward, made.best_reward) == (2, 2 / 3, 1.0)
    first = lines(out)[0]
    assert first["messages"][-1]["content"] == "you say 7 a" and (first["reward"], first["of"]) == (1.0, 3)
    assert first["best_of"] == {"samples": 3, "rewards": [{"name": "liking"}], "keep": "best", "least": None}
    assert first["reward_parts"] == {"liking": 1.0} and read(out).kind == "chat"
    with pytest.raises(ConflictError, match="with these settings"):
        answers(dataset(["c"]), engine, out, sampling=DRAWN, samples=2, rewards=Liking(7))  # type: ignore[arg-type]


def test_answers_that_were_cut_or_empty_never_win(tmp_path: Path) -> None:
    class Half(Counter):
        def _say(self, text: str) -> Generation:
            return Generation(f"you say {text}", (), (), "length" if text.startswith("0") else "stop")

    made = answers(
        dataset(["a"]),
        Half(),
        tmp_path / "o.jsonl",  # type: ignore[arg-type]
        sampling=Sampling(temperature=1.0, seed=0),
        samples=2,
        rewards=Liking(0),
    )
    assert (made.rows, made.cut, made.best_reward) == (1, 1, 0.0)
    assert lines(made.path)[0]["messages"][-1]["content"] == "you say 1 a"


def test_pairs_of_best_and_worst_are_preference_rows(tmp_path: Path) -> None:
    out = tmp_path / "o.jsonl"
    settings: dict[str, Any] = {"sampling": DRAWN, "samples": 3, "keep": "pair"}
    made = answers(dataset(["a", "b"]), Counter(), out, rewards=Liking(8), **settings)  # type: ignore[arg-type]
    assert made.rows == 2 and read(out).kind == "preference"
    example = read(out).examples[1]
    assert (example.chosen[0].content, example.rejected[0].content) == ("you say 8 b", "you say 6 b")
    none = answers(dataset(["a", "b"]), Counter(), tmp_path / "p.jsonl", rewards=Liking(), **settings)  # type: ignore[arg-type]
    assert (none.rows, none.refused) == (0, 2)


def test_prompts_without_a_good_answer_are_left_out(tmp_path: Path) -> None:
    made = answers(
        dataset(["a"]),
        Counter(),
        tmp_path / "o.jsonl",  # type: ignore[arg-type]
        sampling=DRAWN,
        samples=2,
        rewards=Liking(),
        least=0.5,
    )
    assert (made.rows, made.refused, made.mean_reward) == (0, 1, 0.0)


def test_rejection_sampling_goes_on_where_it_was(tmp_path: Path) -> None:
    texts, settings = [f"n{i}" for i in range(2 * BLOCK)], {"sampling": DRAWN, "samples": 2, "rewards": Liking(5)}
    whole = answers(dataset(texts), Counter(), tmp_path / "whole.jsonl", **settings)  # type: ignore[arg-type]
    out = tmp_path / "o.jsonl"
    with pytest.raises(KeyboardInterrupt):
        answers(dataset(texts), Counter(breaks=3 * BLOCK), out, **settings)  # type: ignore[arg-type]
    assert len(lines(out)) == BLOCK
    made = answers(dataset(texts), Counter(), out, **settings)  # type: ignore[arg-type]
    assert (made.earlier, made.rows) == (BLOCK, whole.rows) and out.read_bytes() == whole.path.read_bytes()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"samples": 0, "rewards": Liking()}, "samples must be >= 1"),
        ({"samples": 2}, "choose among answers by rewards; got none"),
        ({"least": 0.0}, "choose among answers by rewards"),
        ({"samples": 2, "rewards": Liking(), "sampling": Sampling()}, "2 samples need temperature above 0"),
        ({"samples": 2, "rewards": Liking(), "keep": "worst"}, "keep must be best or pair; got 'worst'"),
        ({"rewards": Liking(), "keep": "pair"}, "keep pair needs samples >= 2"),
    ],
)
def test_settings_that_do_not_fit_together(tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        answers(dataset(["a"]), Counter(), tmp_path / "o.jsonl", **({"sampling": DRAWN} | settings))  # type: ignore[arg-type]
    assert not (tmp_path / "o.jsonl").exists()


def test_the_command_keeps_the_best(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"question": f"number {i}?", "answer": "x"}) + "\n" for i in range(3)))
    command = ["data", "answers", str(source), "--model", "fake", "--out", str(out), "--max-tokens", "64"]
    with pytest.raises(SystemExit) as done:
        main([*command, "--samples", "2", "--reward", "{name: overlong, most: 1, margin: 50}", "--reward", "answered"])
    said = capsys.readouterr().err
    assert not done.value.code, said
    assert "3 answers of fake" in said and "mean of the best" in said
    row = lines(out)[0]
    assert row["best_of"]["rewards"] == [{"name": "overlong", "most": 1, "margin": 50}, {"name": "answered"}]
    parents = [edge.relation for edge in lineage(read(out).digest).edges]
    assert sorted(parents) == ["answered", "asked in"]
    for bad, wanted in (("exakt", "Did you mean 'exact'"), ("{name: number}", "the target has no number")):
        with pytest.raises(SystemExit) as done:
            main([*command, "--samples", "2", "--reward", bad])
        assert done.value.code == 2 and wanted in " ".join(capsys.readouterr().err.split())


class Thinker(Parrot):
    """Thinks, then answers; of silent prompts it only answers."""

    def _say(self, text: str) -> Generation:
        return Generation("5", (), (), "stop", reasoning="" if "quick" in text else f"{text} makes five")


def test_what_a_teacher_thought_is_a_rationale(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    made = answers(dataset(["2 and 3", "quick 5"]), Thinker(), out, rationale=True)  # type: ignore[arg-type]
    assert made.rows == 2
    first, second = lines(out)
    assert (first["question"], first["answer"], first["rationale"]) == ("2 and 3", "5", "2 and 3 makes five")
    assert "rationale" not in second and second["answered_by"] == "parrot"
    again = read(out)
    assert again.kind == "question" and rationale_of(again.examples[0]) == "2 and 3 makes five"
    assert not rationale_of(again.examples[1])
    assert answers(dataset(["2 and 3", "quick 5"]), Thinker(), out, rationale=True).earlier == 2  # type: ignore[arg-type]


def test_rationales_that_cannot_be_had(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with pytest.raises(InputError, match="parrot answers at once"):
        answers(dataset(["2 and 3"]), Parrot(), out, rationale=True)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="a system turn or several turns"):
        answers(dataset(["2 and 3"]), Thinker(), out, system="Be brief.", rationale=True)  # type: ignore[arg-type]
    assert not lines(out)


def test_the_command_asks_with_a_strategy(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "p.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"question": f"{i} and {i}?", "answer": f"{2 * i}"}) + "\n" for i in range(3)))
    command = ["data", "answers", str(source), "--model", "fake", "--out", str(out), "--rationale"]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--strategy", "zero_shot_cot"])
    assert not ended.value.code
    rows = lines(out)
    assert len(rows) == 3 and all(row["rationale"] and row["answer"] and row["question"] for row in rows)
    with pytest.raises(SystemExit) as ended:
        main([*command[:-2], str(tmp_path / "other.jsonl"), "--rationale"])
    assert ended.value.code == 2 and "--strategy zero_shot_cot" in capsys.readouterr().err
