from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from luthier.core.dataset import Dataset, Example, Splits
from luthier.core.engine import GENERATE, ContinuationScore, Generation, Sampling, ScoreRequest
from luthier.core.errors import UnsupportedError
from luthier.core.message import user
from luthier.core.run import no_progress
from luthier.core.task import PromptTemplate, Task
from luthier.engines.fake import Config, FakeEngine
from luthier.evaluation.asking import AskLikelihood, AskOptions, AskText, choose, parse_option
from luthier.evaluation.loop import run_loop
from luthier.evaluation.records import Record
from luthier.evaluation.result import summarise


def task_of(kind: str, examples: Sequence[Example], **more: Any) -> Task:
    data, empty = Dataset("f", "question", tuple(examples)), Dataset("f", "question", ())
    scorers = more.pop("scorers", (("accuracy", {}),))
    return Task("t", kind, Splits(empty, empty, data), PromptTemplate(), scorers, 8, **more)  # type: ignore[arg-type]


class Scripted(FakeEngine):
    """Scores by a table of continuation -> nats, and keeps what it was asked."""

    def __init__(self, table: dict[str, float], greedy: bool | None = None) -> None:
        super().__init__("scripted", Config())
        self.table, self.greedy = table, greedy
        self.asked: list[ScoreRequest] = []
        self.drawn: list[Sampling] = []

    def score(self, requests, progress=no_progress):  # type: ignore[no-untyped-def]
        self.asked += requests
        return [
            tuple(
                ContinuationScore(self.table.get(str(r.prompt) + c, self.table.get(c, -9.0)), len(c), self.greedy)
                for c in r.continuations
            )
            for r in requests
        ]

    def generate(self, prompts, sampling, progress=no_progress):  # type: ignore[no-untyped-def]
        self.drawn.append(sampling)
        return [Generation(f"{sampling.seed}", (), (), "stop", completion_tokens=2) for _ in prompts]


CHOICE = Example(
    "q1",
    user("Which?"),
    " B",
    choices=(" A", " B"),
    correct=(1,),
    raw=("Which?\nAnswer:",),
    meta={"subject": "law", "n": 3},
)


def test_a_benchmark_prompt_is_asked_to_the_letter_and_a_strategy_asks_in_turns() -> None:
    engine = Scripted({" A": -2.0, " B": -1.0})
    (reply,) = AskOptions(engine, task_of("choice", [CHOICE]))([CHOICE], no_progress)
    assert engine.asked == [ScoreRequest("Which?\nAnswer:", (" A", " B"))]
    assert (reply.text, [(o.text, o.logprob, o.tokens) for o in reply.options]) == (
        " B",
        [(" A", -2.0, 2), (" B", -1.0, 2)],
    )
    engine.asked.clear()
    AskOptions(engine, task_of("choice", [CHOICE]), raw=False)([CHOICE], no_progress)
    assert engine.asked == [ScoreRequest(user("Which?"), ("A", "B"))]


def test_choices_that_differ_in_what_comes_before_them() -> None:
    two = Example("w", user("_ fell"), " fell", choices=(" fell", " fell"), correct=(1,), raw=("The cup", "The cat"))
    engine = Scripted({"The cup fell": -3.0, "The cat fell": -1.5})
    (reply,) = AskOptions(engine, task_of("choice", [two]))([two], no_progress)
    assert engine.asked == [ScoreRequest("The cup", (" fell",)), ScoreRequest("The cat", (" fell",))]
    assert [o.logprob for o in reply.options] == [-3.0, -1.5]


def test_likelihood_keeps_nats_tokens_and_whether_it_would_have_been_said() -> None:
    example = Example("l", user(""), " end", raw=("The",))
    (reply,) = AskLikelihood(Scripted({" end": -4.0}, True), task_of("likelihood", [example]))([example], no_progress)
    assert (reply.text, reply.options[0].logprob, reply.completion_tokens) == (" end", -4.0, 4)
    (reply,) = AskLikelihood(Scripted({" end": -4.0}, False), task_of("likelihood", [example]))([example], no_progress)
    assert reply.text == ""
    (reply,) = AskLikelihood(Scripted({" end": math.nan}), task_of("likelihood", [example]))([example], no_progress)
    assert "not a number" in reply.error


def test_samples_are_drawn_with_different_seeds_at_the_tasks_temperature() -> None:
    example = Example("c", user("write"), "x")
    engine = Scripted({})
    task = task_of("generate", [example], samples=3, temperature=0.8, stop=("END",))
    (reply,) = AskText(engine, task)([example], no_progress)
    assert [(s.seed, s.temperature, s.stop) for s in engine.drawn] == [
        (0, 0.8, ("END",)),
        (1, 0.8, ("END",)),
        (2, 0.8, ("END",)),
    ]
    assert (reply.text, reply.samples, reply.completion_tokens, reply.calls) == ("0", ("0", "1", "2"), 6, 3)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("B", "B"),
        (" b. ", "B"),
        ("B. because", "B"),
        ("(C) that", "C"),
        ("I think the answer is (D).", "D"),
        ("First A, but the answer is: B", "B"),
        ("答案是C", "C"),
        ("答案：D。", "D"),
        ("nothing of the kind", None),
        ("", None),
    ],
)
def test_letters_are_read_from_what_is_written(text: str, found: str | None) -> None:
    assert parse_option(text, ("A", "B", "C", "D")) == found


def test_longer_options_must_be_the_whole_answer() -> None:
    assert parse_option("Refund.", ("refund", "billing")) == "refund"
    assert parse_option("it may be refund", ("refund", "billing")) is None


def test_what_a_kind_needs_is_asked_of_the_engine() -> None:
    writes = Scripted({})
    writes._info = writes._info.with_(capabilities=frozenset({GENERATE}))
    assert isinstance(choose(writes, task_of("choice", [CHOICE])), AskText)
    with pytest.raises(UnsupportedError, match="score"):
        choose(writes, task_of("likelihood", [CHOICE]))


def test_records_carry_options_and_slices_through_to_the_summary() -> None:
    other = Example(
        "q2", user("Which now?"), " A", choices=(" A", " B"), correct=(0,), raw=("Which now?",), meta={"subject": "art"}
    )
    task = task_of("choice", [CHOICE, other], slices=("subject",))
    records: list[Record] = []
    run_loop(
        Scripted({" A": -2.0, " B": -1.0}), task, [CHOICE, other], done=(), keep=records.extend, progress=no_progress
    )
    records.sort(key=lambda r: r.index)
    assert [r.slices for r in records] == [{"subject": "law"}, {"subject": "art"}]
    assert Record.from_dict(records[0].as_dict()) == records[0]
    assert records[0].as_target().correct == (1,)
    found = summarise(task, records)
    assert found["scores"]["accuracy"]["value"] == 0.5
    parts = found["slices"]["subject"]
    assert {name: (part["examples"], part["value"]) for name, part in parts.items()} == {
        "art": (1, 0.0),
        "law": (1, 1.0),
    }
    assert all(part["low"] <= part["value"] <= part["high"] for part in parts.values())
