from __future__ import annotations

import os

import numpy as np
import pytest

from luthier.core.dataset import Dataset, Example, Splits
from luthier.core.engine import EngineInfo
from luthier.core.errors import InputError
from luthier.core.message import last_user_text, user
from luthier.core.model import ModelRecord
from luthier.core.run import no_progress
from luthier.core.task import PromptTemplate, Task
from luthier.engines.fake import Config, FakeEngine
from luthier.evaluation import latency
from luthier.evaluation.latency import measure, weights_mb
from luthier.store.artifacts import put, staged
from luthier.store.database import open_store
from luthier.store.models import register


class Slow(FakeEngine):
    """Takes 0.1 s for the first two requests, then 1 ms for each digit-worth of the row's number, on a clock of its own."""

    def __init__(self) -> None:
        super().__init__("slow", Config())
        self.now = 0.0
        self.asked: list[str] = []

    def score(self, requests, progress=no_progress):  # type: ignore[no-untyped-def]
        assert len(requests) == 1, "one at a time"
        text = last_user_text(requests[0].prompt)
        if text == "refused":
            raise InputError("too long")
        self.now += 0.1 if len(self.asked) < 2 else int(text) / 1000
        self.asked.append(text)
        return super().score(requests, progress)


def task_of(texts: list[str]) -> Task:
    rows = tuple(Example(str(i), user(text), "a") for i, text in enumerate(texts))
    data = Dataset("x", "labelled", rows)
    return Task("t", "classify", Splits(data, data, data), PromptTemplate(labels=("a", "b")), (("accuracy", {}),))


def timed(texts: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, object], Slow]:
    engine, task = Slow(), task_of(texts)
    monkeypatch.setattr(latency.time, "perf_counter", lambda: engine.now)
    return measure(engine, task, task.examples("test"), no_progress), engine


@pytest.mark.parametrize(("raw", "asked"), [(True, "1"), (False, "2")])
def test_what_is_timed_is_asked_as_the_evaluation_asked_it(raw: bool, asked: str) -> None:
    rows = (Example("x", user("2"), "a", raw=("1",)),)
    data = Dataset("x", "labelled", rows)
    task = Task("t", "classify", Splits(data, data, data), PromptTemplate(labels=("a", "b")), (("accuracy", {}),))
    engine = Slow()
    measure(engine, task, rows, no_progress, raw=raw)
    assert set(engine.asked) == {asked}


def test_quantiles_of_twenty_single_requests_after_two_that_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    found, engine = timed([str(i) for i in range(100)], monkeypatch)
    chosen = [int(text) for text in engine.asked[2:]]
    assert len(chosen) == 20
    assert (chosen[0], chosen[-1]) == (0, 99), "spread over all examples"
    assert found == {
        "p50_s": pytest.approx(np.quantile(chosen, 0.5) / 1000),
        "p95_s": pytest.approx(np.quantile(chosen, 0.95) / 1000),
        "requests": 20,
    }


def test_few_examples_are_each_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found, engine = timed(["5"], monkeypatch)
    assert found["requests"] == 1
    assert engine.asked == ["5", "5"]
    assert timed(["3", "7", "9"], monkeypatch)[0]["requests"] == 3


def test_refused_requests_have_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = timed(["1", "2", "refused", "4"], monkeypatch)
    assert found["requests"] == 3
    assert timed(["refused"] * 5, monkeypatch)[0] == {"p50_s": None, "p95_s": None, "requests": 0}


def test_weights_are_what_the_files_hold_when_the_engine_does_not_say(home: object) -> None:
    store = open_store()

    def add(name: str, size: int, **more: object) -> None:
        with staged(store) as place:
            (place / "model.safetensors").write_bytes(os.urandom(size))
            (place / "tokenizer.json").write_text("{}")
            digest, _ = put(store, place)
        register(store, ModelRecord(name, digest=digest, architecture="decoder", **more))  # type: ignore[arg-type]

    add("base", 2_000_000, kind="base")
    add("light", 500_000, kind="adapter", base="base", meta={"saves": "adapter"})
    add("whole", 2_000_000, kind="adapter", base="base", meta={"saves": "weights"})
    add("served", 1, kind="endpoint", meta={"target": "light"})

    def held(name: str, *meta: tuple[str, object]) -> float | None:
        return weights_mb(store, EngineInfo(name, "torch", frozenset(), meta=meta))

    assert held("base") == 2.0
    assert held("light") == 2.5 == held("served")
    assert held("whole") == 2.0
    assert held("openai:x@http://y") is None
    assert held("base", ("weights_mb", 4.5)) == 4.5
