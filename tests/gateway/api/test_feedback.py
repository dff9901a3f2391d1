from __future__ import annotations

from typing import Any

import httpx
import pytest

from luthier.core.errors import InputError, NotFoundError
from luthier.core.model import ModelRecord
from luthier.core.trace import Trace
from luthier.gateway.api.feedback import ARENA, give_feedback
from luthier.store.battles import list_battles
from luthier.store.database import open_store
from luthier.store.feedback import list_feedback
from luthier.store.models import register
from luthier.store.traces import record_trace

HELLO = [{"role": "user", "content": "pay me back"}]


def post(server: Any, **body: Any) -> httpx.Response:
    return httpx.post(f"{server.base_url}/feedback", json=body)


def test_feedback_on_an_answer_of_a_moment_ago(server: Any) -> None:
    answer = server.client().chat.completions.create(model="desk", messages=HELLO)
    said = post(server, trace_id=answer.id, rating=-1, label="refund", corrected="refund", comment="money")
    assert said.status_code == 200
    body = said.json()
    assert (body["object"], body["trace_id"], body["rating"], body["label"]) == ("feedback", answer.id, -1, "refund")
    stored = {given.id: (trace, given) for trace, given in list_feedback(server.store, "desk")}
    trace, given = stored[body["id"]]
    assert (trace.id, given.comment) == (answer.id, "money")


def test_what_is_refused(server: Any) -> None:
    answer = server.client().chat.completions.create(model="desk", messages=HELLO)
    assert post(server, trace_id="trace_none", rating=1).status_code == 404
    nothing = post(server, trace_id=answer.id)
    assert nothing.status_code == 400
    assert "at least one" in nothing.json()["error"]["message"]
    wrong = post(server, trace_id=answer.id, label="refunds")
    assert wrong.status_code == 400
    assert "billing, refund, delivery" in wrong.json()["error"]["message"]
    assert post(server, trace_id=answer.id, rating=5).json()["error"]["param"] == "rating"
    assert post(server, trace_id=answer.id, ratings=1).json()["error"]["param"] == "ratings"
    assert post(server, trace_id=answer.id, corrected="  ").status_code == 400


def test_any_label_is_fine_where_the_answer_is_free(server: Any) -> None:
    answer = server.client().chat.completions.create(model="fake", messages=HELLO)
    assert post(server, trace_id=answer.id, label="anything").status_code == 200


@pytest.mark.parametrize(
    "meta",
    [
        {"labels": ["a", "b"]},
        {"prompt": {"instruction": "", "input": "{input}", "labels": ["a", "b"]}},
        {"strategy": {"name": "few_shot", "prompt": {"labels": ["a", "b"]}}},
        {"strategy": {"name": "few_shot", "config": {"prompt": {"labels": ["a", "b"]}}}},
        {"target": "trained"},
    ],
)
def test_labels_are_looked_up_in_the_store(home: Any, meta: dict[str, Any]) -> None:
    store = open_store()
    register(store, ModelRecord("trained", "adapter", "encoder", "d" * 64, meta={"labels": ["a", "b"]}))
    register(store, ModelRecord("desk", "endpoint", "encoder", "e" * 64, meta=meta))
    record_trace(store, Trace("t1", "2026-01-01T00:00:00.000Z", "desk", "chat", answer="a"))
    with pytest.raises(InputError, match="a, b"):
        give_feedback(store, "t1", label="c")
    assert give_feedback(store, "t1", label="b").label == "b"


def test_a_trace_of_a_model_that_is_gone_takes_any_label(home: Any) -> None:
    store = open_store()
    record_trace(store, Trace("t1", "2026-01-01T00:00:00.000Z", "gone", "chat"))
    assert give_feedback(store, "t1", label="c").label == "c"
    with pytest.raises(NotFoundError):
        give_feedback(store, "t2", label="c")
    with pytest.raises(InputError, match="65,536"):
        give_feedback(store, "t1", comment="x" * 70_000)


def test_events_and_choices_are_kept_apart_from_what_was_said(start: Any, make_fake: Any) -> None:
    server = start({"one": make_fake("one"), "two": make_fake("two")})
    ids = [server.client().chat.completions.create(model=name, messages=HELLO).id for name in ("one", "two", "one")]
    copied = post(server, trace_id=ids[0], event="copied", user="ann").json()
    assert (copied["kind"], copied["event"]) == ("implicit", "copied")
    assert "rating" not in copied
    chosen = post(server, trace_id=ids[0], over=ids[1], comment="clearer", user="ann").json()
    assert (chosen["kind"], chosen["over"]) == ("explicit", ids[1])
    assert [given.id for _, given in list_feedback(server.store)] == [chosen["id"]]
    ((_, given),) = list_feedback(server.store, kinds=("implicit",))
    assert (given.source, given.said_by, given.tenant) == ("client", "ann", "local")
    (battle,) = list_battles(server.store, ARENA)
    assert (battle.model_a, battle.model_b, battle.winner, battle.voter) == ("one", "two", "model_a", "ann")
    assert battle.prompt == HELLO[0]["content"]
    post(server, trace_id=ids[0], over=ids[2])  # of one model: no battle
    assert len(list_battles(server.store, ARENA)) == 1
    shown = httpx.get(f"{server.base_url}/traces/{ids[1]}").json()
    assert [said["over"] for said in shown["feedback"]] == [ids[1]]


def test_impossible_events_and_choices_are_refused(server: Any) -> None:
    one, two = (
        server.client().chat.completions.create(model="fake", messages=[{"role": "user", "content": text}]).id
        for text in ("first", "second")
    )
    for body, status, word in (
        ({"event": "liked"}, 400, "event"),
        ({"event": "copied", "rating": 1}, 400, "stands alone"),
        ({"over": two}, 400, "same question"),
        ({"over": one}, 400, "another trace"),
        ({"over": "trace_none"}, 404, "trace_none"),
        ({"over": ""}, 400, "over"),
    ):
        answer = post(server, trace_id=one, **body)
        assert (answer.status_code, word in answer.text) == (status, True), answer.text


def test_what_people_write_is_redacted_like_the_traces(start: Any, make_fake: Any) -> None:
    server = start({"fake": make_fake("fake")}, config={"watch": {"redact": "pii"}})
    answer = server.client().chat.completions.create(model="fake", messages=HELLO)
    mail = "ann.lee@example.com"
    said = post(server, trace_id=answer.id, corrected=f"to {mail}", comment=f"{mail}!", user=mail).json()
    assert (said["corrected"], said["comment"]) == ("to [EMAIL]", "[EMAIL]!")
    ((_, given),) = list_feedback(server.store)
    assert mail not in repr(given)
