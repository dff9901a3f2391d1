from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import DataError, InputError
from luthier.core.model import ModelRecord
from luthier.core.trace import Trace
from luthier.data.feedback import from_feedback, learn_from
from luthier.data.gates import Gates, Sight
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


def test_the_better_of_two_answers_is_a_pair_and_no_target(store: Store) -> None:
    turns = ({"role": "user", "content": "hi"},)
    one, two = (answered(store, n, "writer", None, text, messages=turns) for n, text in ((1, "fine"), (2, "meh")))
    said = record_feedback(store, one, over=two, said_by="ann")
    (example,) = from_feedback(store, kind="preference").examples
    assert (example.chosen[0].content, example.rejected[0].content) == ("fine", "meh")
    assert example.meta["feedback"] == said.id
    with pytest.raises(DataError, match=r"a pair \(--kind preference\)"):
        from_feedback(store)


def test_a_comment_does_not_take_back_what_was_said_before(store: Store) -> None:
    trace = answered(store, 1, "tickets", "where is it", "billing")
    record_feedback(store, trace, label="delivery")
    record_feedback(store, trace, comment="thanks")
    assert [e.target for e in from_feedback(store).examples] == ["delivery"]


def test_what_people_did_counts_only_when_asked_for_and_never_against_what_they_said(store: Store) -> None:
    ids = [answered(store, n, "writer", f"question number {n} about something", f"answer {n}") for n in range(5)]
    for trace, event in zip(ids, ("copied", "copied", "dismissed", "accepted", "copied"), strict=True):
        record_feedback(store, trace, event=event)
    record_feedback(store, ids[1], rating=-1)
    record_feedback(store, ids[4], event="dismissed")
    with pytest.raises(DataError, match="none of 1 statements"):
        from_feedback(store)
    dataset = from_feedback(store, implicit=True)
    assert [(e.messages[-1].content, e.meta["implicit"]) for e in dataset.examples] == [
        ("answer 0", "copied"),
        ("answer 3", "accepted"),
    ]
    assert len(dataset.problems) == 3


def test_pairs_of_what_a_session_went_on_with(store: Store) -> None:
    asked = {"role": "user", "content": "where is my parcel"}
    for number, text in ((1, "no idea"), (2, "on its way")):
        answered(store, number, "writer", None, text, messages=(asked,), session="s")
    turns = (asked, {"role": "assistant", "content": "on its way"}, {"role": "user", "content": "thank you so much"})
    answered(store, 3, "writer", None, "you are welcome", messages=turns, session="s")
    dataset = from_feedback(store, kind="preference", implicit=True)
    (example,) = dataset.examples
    assert (example.chosen[0].content, example.rejected[0].content) == ("on its way", "no idea")
    assert example.meta["implicit"] == "preferred"
    record_feedback(store, "trace_0001", over="trace_0002")  # somebody says the opposite
    (example,) = from_feedback(store, kind="preference", implicit=True).examples
    assert (example.chosen[0].content, "implicit" in example.meta) == ("no idea", False)


def test_one_tenant(store: Store) -> None:
    for number, tenant in ((1, "acme"), (2, "globex")):
        record_feedback(store, answered(store, number, "writer", f"question {number}", "x", tenant=tenant), rating=1)
    assert len(from_feedback(store, tenant="acme")) == 1
    assert learn_from(store).tenants == ("acme", "globex")


def test_gates_are_shut_unless_opened_and_say_why(store: Store) -> None:
    for number in range(3):
        record_feedback(store, answered(store, number, "writer", "mail me at ann@example.com", "done"), rating=1)
    learned = learn_from(store)
    assert [e.messages[0].content for e in learned.dataset.examples] == ["mail me at [EMAIL]"]
    assert [p.reason for p in learned.dataset.problems] == ["duplicates: a copy of trace_0002"] * 2
    assert [report.name for report in learned.gates] == [
        "overlap",
        "attacks",
        "personal",
        "duplicates",
        "poisoning",
        "caps",
    ]
    assert len(from_feedback(store, gates=Gates.off())) == 3
    sources = {
        e.source.id for e in lineage(learned.dataset.digest, store).edges if e.target.id == learned.dataset.digest
    }
    assert sources == {"writer:*"}
    with pytest.raises(DataError, match=r"none of 3 examples passes the gates(.|\n)*overlap: it is in exam"):
        from_feedback(store, sight=Sight(held_out={"exam": ["mail me at ann@example.com"]}))


def test_texts_that_were_taken_out_of_traces_teach_nothing(store: Store) -> None:
    record_feedback(
        store, answered(store, 1, "writer", "[REDACTED: 28 characters]", "[REDACTED: 4 characters]"), rating=1
    )
    with pytest.raises(DataError, match="keeps no text"):
        from_feedback(store)
