from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import DataError, InputError
from luthier.core.model import ModelRecord
from luthier.core.trace import Trace
from luthier.data.feedback import from_feedback
from luthier.data.read import read, write
from luthier.store.database import Store, open_store
from luthier.store.feedback import record_feedback
from luthier.store.lineage import lineage
from luthier.store.models import register
from luthier.store.traces import record_trace


@pytest.fixture
def store(home: Path) -> Store:
    store = open_store(home)
    labels = {"labels": ["billing", "delivery"]}
    register(store, ModelRecord("sorter", "adapter", "decoder", "a" * 64, meta={"prompt": labels}))
    register(store, ModelRecord("tickets", "endpoint", "decoder", "b" * 64, meta={"target": "sorter"}))
    register(store, ModelRecord("writer", "base", "decoder", "c" * 64))
    return store


def answered(store: Store, number: int, model: str, question: str | None, answer: str, **more: Any) -> str:
    name = f"trace_{number:04d}"
    messages = () if question is None else ({"role": "user", "content": question},)
    trace = Trace(
        name,
        f"2025-01-01T00:00:{number:02d}.000Z",
        model,
        **{"operation": "chat", "messages": messages, **more},
        answer=answer,
    )
    record_trace(store, trace)
    return name


def test_labelled_examples_and_their_lineage(store: Store, tmp_path: Path) -> None:
    used = [
        record_feedback(store, answered(store, 1, "tickets", "where is it", "billing"), label="delivery"),
        record_feedback(store, answered(store, 2, "sorter", "refund me", "delivery"), corrected=" billing"),
        record_feedback(store, answered(store, 3, "tickets", "lost parcel", "delivery"), rating=1),
    ]
    record_feedback(store, answered(store, 4, "tickets", "hm", "delivery"), rating=-1)
    record_feedback(store, answered(store, 5, "tickets", "hm", "delivery"), label="returns")
    record_feedback(store, answered(store, 6, "tickets", None, "", operation="embedding"), rating=1)
    record_feedback(store, answered(store, 7, "tickets", "hm", "", error="out of memory"), label="billing")
    answered(store, 8, "tickets", "nobody said anything", "delivery")
    dataset = from_feedback(store)
    assert dataset.kind == "labelled"
    assert [(e.text, e.target) for e in dataset.examples] == [
        ("where is it", "delivery"),
        ("refund me", "billing"),
        ("lost parcel", "delivery"),
    ]
    assert dataset.examples[0].meta == {"trace": "trace_0001", "feedback": used[0].id, "model": "tickets"}
    assert [str(p).split(": ", 1)[1] for p in dataset.problems] == [
        "no label or corrected answer, and not rated 1: nothing to learn from",
        "label 'returns' is not one of the model's: billing, delivery",
        "the trace of this embedding keeps no text",
        "the request failed: out of memory",
    ]
    assert read(write(dataset, tmp_path / "again.jsonl")).digest == dataset.digest
    for each in used:
        assert dataset.digest in {e.target.id for e in lineage(each.id, store).edges if e.source.id == each.id}
    sources = {e.source.id for e in lineage(dataset.digest, store).edges if e.target.id == dataset.digest}
    assert sources == {"sorter:*", "tickets:*"}  # the lineage sums feedback up by model


def test_conversations_keep_their_turns_and_take_the_correction(store: Store) -> None:
    turns = ({"role": "system", "content": "s"}, {"role": "user", "content": "hi"})
    record_feedback(store, answered(store, 1, "writer", "x", "bad", messages=turns), rating=-1, corrected="good")
    record_feedback(store, answered(store, 2, "writer", "thanks", "welcome"), rating=1)
    record_feedback(store, answered(store, 3, "writer", "Once upon", "a time", operation="completion"), rating=1)
    dataset = from_feedback(store)
    assert dataset.kind == "chat"
    assert [[(m.role, m.content) for m in e.messages] for e in dataset.examples] == [
        [("system", "s"), ("user", "hi"), ("assistant", "good")],
        [("user", "thanks"), ("assistant", "welcome")],
    ]
    assert "a raw completion without a label is no conversation" in str(dataset.problems[0])


def test_latest_statement_on_a_trace_counts(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(["2025-01-02T00:00:00.000Z", "2025-01-02T00:00:01.000Z"])
    monkeypatch.setattr("luthier.store.feedback.now", lambda: next(clock))
    trace = answered(store, 1, "tickets", "where is it", "billing")
    record_feedback(store, trace, label="billing")
    record_feedback(store, trace, label="delivery")
    (example,) = from_feedback(store).examples
    assert example.target == "delivery"


def test_pairs(store: Store) -> None:
    record_feedback(store, answered(store, 1, "writer", "hi", "bad"), rating=-1, corrected="good")
    record_feedback(store, answered(store, 2, "writer", "hi", "same"), corrected="same")
    record_feedback(store, answered(store, 3, "writer", "hi", "fine"), rating=1)
    dataset = from_feedback(store, kind="preference")
    (example,) = dataset.examples
    assert (example.messages[0].content, example.chosen[0].content, example.rejected[0].content) == (
        "hi",
        "good",
        "bad",
    )
    assert len(dataset.problems) == 2


def test_both_sorts_need_a_choice(store: Store) -> None:
    record_feedback(store, answered(store, 1, "tickets", "where is it", "delivery"), rating=1)
    record_feedback(store, answered(store, 2, "writer", "thanks", "welcome"), rating=1)
    with pytest.raises(InputError, match="1 labelled examples and 1 conversations"):
        from_feedback(store)
    assert len(from_feedback(store, kind="labelled")) == 1
    chat = from_feedback(store, kind="chat")
    assert [e.messages[-1].content for e in chat.examples] == ["delivery", "welcome"]
    assert len(from_feedback(store, model="writer")) == 1


def test_nothing_to_learn_from(store: Store) -> None:
    with pytest.raises(DataError, match="there is no feedback yet"):
        from_feedback(store)
    record_feedback(store, answered(store, 1, "writer", "hi", "bad"), rating=-1)
    with pytest.raises(DataError, match="none of 1 statements for writer can be learned from"):
        from_feedback(store, model="writer")
    with pytest.raises(InputError, match="kind must be one of labelled, chat, preference"):
        from_feedback(store, kind="text")  # type: ignore[arg-type]


def test_answers_of_models_that_are_gone_are_conversations(store: Store) -> None:
    record_feedback(store, answered(store, 1, "gone", "hi", "hello"), rating=1)
    assert from_feedback(store).kind == "chat"
