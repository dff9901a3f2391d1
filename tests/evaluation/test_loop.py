from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from luthier.core.dataset import Dataset, Example, Splits
from luthier.core.engine import GENERATE, ContinuationScore, Generation
from luthier.core.errors import EngineError, InputError, MismatchError, UnsupportedError
from luthier.core.message import last_user_text, user
from luthier.core.run import no_progress
from luthier.core.task import PromptTemplate, Task
from luthier.engines.fake import Config, FakeEngine
from luthier.evaluation.loop import check_labels, run_loop, scorers_of
from luthier.evaluation.records import Record

LABELS = ("billing", "refund")


def rows(texts: Sequence[str], targets: Sequence[str]) -> tuple[Example, ...]:
    pairs = zip(texts, targets, strict=True)
    return tuple(Example(f"id{i}", user(text), target, source=f"f:{i + 1}") for i, (text, target) in enumerate(pairs))


def task_of(examples: tuple[Example, ...], kind: str = "classify", scorers: tuple = (("accuracy", {}),)) -> Task:  # type: ignore[type-arg]
    data = Dataset("f", "labelled" if kind == "classify" else "question", examples)
    empty = Dataset("f", data.kind, ())
    prompt = PromptTemplate(labels=LABELS if kind == "classify" else ())
    return Task("t", kind, Splits(empty, empty, data), prompt, scorers, 8)  # type: ignore[arg-type]


def ask(engine: FakeEngine, task: Task, done: Sequence[int] = (), progress=no_progress) -> list[Record]:  # type: ignore[no-untyped-def]
    out: list[Record] = []
    run_loop(engine, task, task.examples("test"), done=done, keep=out.extend, progress=progress)
    return sorted(out, key=lambda r: r.index)


EXAMPLES = rows(
    ["billing please", "a refund now", "billing or so it seems", "nothing"], ["billing", "refund", "refund", "billing"]
)


def test_classification_takes_the_likeliest_label_and_keeps_all_log_probabilities() -> None:
    records = ask(FakeEngine("fake", Config()), task_of(EXAMPLES))
    assert [r.answer for r in records[:3]] == ["billing", "refund", "billing"]
    assert [r.scores for r in records[:3]] == [{"accuracy": 1.0}, {"accuracy": 1.0}, {"accuracy": 0.0}]
    assert set(records[0].logprobs) == set(LABELS)
    assert records[0].logprobs["billing"] == max(records[0].logprobs.values())
    assert (records[2].id, records[2].source, records[2].input) == ("id2", "f:3", "billing or so it seems")


class Scores(FakeEngine):
    """Gives the same log-probabilities for every request."""

    def __init__(self, *values: float) -> None:
        super().__init__("scores", Config())
        self.values = values

    def score(self, requests, progress=no_progress):  # type: ignore[no-untyped-def]
        return [tuple(ContinuationScore(v, 1) for v in self.values) for _ in requests]


def test_ties_take_the_first_label_and_are_marked() -> None:
    assert [(r.answer, r.tie) for r in ask(Scores(-1.0, -1.0), task_of(EXAMPLES[:1]))] == [("billing", True)]
    assert [(r.answer, r.tie) for r in ask(Scores(-2.0, -1.0), task_of(EXAMPLES[:1]))] == [("refund", False)]


def test_a_log_probability_that_is_not_a_number_is_an_error_of_that_example() -> None:
    with pytest.raises(EngineError, match="not a number"):
        ask(Scores(math.nan, -1.0), task_of(EXAMPLES[:1]))


class Talker(FakeEngine):
    """Only generates, as a remote API does."""

    def __init__(self, answers: dict[str, str], limit: int = 8192) -> None:
        super().__init__("talker", Config(answers=answers, context_length=limit))
        self._info = self._info.with_(capabilities=frozenset({GENERATE}))
        self.sizes: list[int] = []

    def generate(self, prompts, sampling, progress=no_progress) -> list[Generation]:  # type: ignore[no-untyped-def]
        self.sizes.append(len(prompts))
        return super().generate(prompts, sampling, progress)


def test_an_engine_that_cannot_score_writes_its_label() -> None:
    talker = Talker({"billing please": " Billing.", "a refund": "refund", "billing or": "It is billing", "nothing": ""})
    records = ask(talker, task_of(EXAMPLES))
    assert [(r.answer, r.parsed) for r in records] == [
        ("billing", True),
        ("refund", True),
        ("It is billing", False),
        ("", False),
    ]
    assert [r.scores["accuracy"] for r in records] == [1.0, 1.0, 0.0, 0.0]
    assert all(r.prompt_tokens > 0 and r.prompt_digest for r in records)


def test_generation_is_scored_by_every_scorer_with_its_options() -> None:
    examples = rows(["How much?", "When?"], ["42 EUR", "Monday"])
    scorers = (("exact", {"casefold": True}), ("exact", {}))
    task = task_of(examples, "generate", scorers)
    records = ask(Talker({"How much": "42 eur", "When": "on Monday"}), task)
    assert [s.label for s in scorers_of(task)] == ["exact(casefold=True)", "exact"]
    assert records[0].scores == {"exact(casefold=True)": 1.0, "exact": 0.0}
    assert records[0].details["exact"] == {"answer": "42 eur", "target": "42 EUR"}
    assert records[1].scores["exact"] == 0.0


def test_what_is_done_is_not_asked_again_and_blocks_are_kept_one_by_one() -> None:
    examples = rows([f"text {i:03} " + "x" * i for i in range(80)], ["billing"] * 80)
    talker, task = Talker({}), task_of(examples)
    blocks: list[list[Record]] = []
    seen: list[tuple[int, int]] = []
    done = list(range(75, 80))
    run_loop(talker, task, examples, done=done, keep=blocks.append, progress=lambda stage, n, of: seen.append((n, of)))
    assert [len(b) for b in blocks] == [27, 32, 16] == talker.sizes
    assert {r.index for b in blocks for r in b} == set(range(75))
    assert [r.index for r in blocks[0]] == list(range(74, 47, -1)), "longest first"
    assert seen[0] == (5, 80)
    assert seen[-1] == (80, 80)
    assert [n for n, _ in seen] == sorted(n for n, _ in seen)


def test_an_input_over_the_context_is_one_wrong_answer_and_the_others_count() -> None:
    examples = rows(["short", "word " * 50, "brief"], ["billing"] * 3)
    records = ask(Talker({"short": "billing", "brief": "billing"}, limit=20), task_of(examples))
    assert [r.scores["accuracy"] for r in records] == [1.0, 0.0, 1.0]
    assert "takes at most 20" in records[1].error
    assert [r.error for r in (records[0], records[2])] == ["", ""]


def test_when_every_input_is_refused_the_reason_is_raised() -> None:
    with pytest.raises(EngineError, match=r"refused every example.*at most 1"):
        ask(Talker({}, limit=1), task_of(EXAMPLES))


def test_an_engine_that_dies_keeps_what_was_answered() -> None:
    class Dies(Talker):
        def generate(self, prompts, sampling, progress=no_progress):  # type: ignore[no-untyped-def]
            if any("text 000" in last_user_text(p) for p in prompts):
                raise EngineError("connection lost")
            return super().generate(prompts, sampling, progress)

    examples = rows([f"text {i:03} " + "x" * i for i in range(40)], ["billing"] * 40)
    kept: list[Record] = []
    with pytest.raises(EngineError, match="connection lost"):
        run_loop(Dies({}), task_of(examples), examples, done=(), keep=kept.extend, progress=no_progress)
    assert len(kept) == 32


def test_labels_of_a_classification_head_must_be_the_tasks() -> None:
    task = task_of(EXAMPLES)
    check_labels(FakeEngine("fake:refund,billing", Config(labels=("refund", "billing"))).info, task)
    with pytest.raises(MismatchError, match="it lacks refund; it has other"):
        ask(FakeEngine("fake", Config(labels=("billing", "other"))), task)


def test_an_engine_that_can_do_neither_is_refused() -> None:
    engine = FakeEngine("fake", Config())
    engine._info = engine._info.with_(capabilities=frozenset({"embed"}))
    with pytest.raises(UnsupportedError, match="cannot generate; it can: embed"):
        ask(engine, task_of(EXAMPLES))


def test_an_unsupported_call_is_not_blamed_on_the_inputs() -> None:
    class Refuses(FakeEngine):
        def score(self, requests, progress=no_progress):  # type: ignore[no-untyped-def]
            raise UnsupportedError("no scores with this quantization")

    with pytest.raises(UnsupportedError, match="quantization"):
        ask(Refuses("fake", Config()), task_of(EXAMPLES))
    assert issubclass(UnsupportedError, InputError)
