from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from luthier.core.trace import Trace
from luthier.store.database import open_store
from luthier.store.feedback import record_feedback
from luthier.store.keys import create_key
from luthier.store.traces import record_traces


def traces(count: int, **changes: Any) -> list[Trace]:
    asked = ({"role": "user", "content": "where is it"},)
    given = {"model": "m", "operation": "chat", "messages": asked, "answer": "here"} | changes
    return [
        Trace(f"{given.get('tenant', 'local')}-{n}", f"2026-01-01T00:00:0{n}.000Z", **given, latency_s=float(n))
        for n in range(count)
    ]


@pytest.fixture
def filled(start: Callable[..., Any], make_fake: Callable[..., Any], tmp_path: Any) -> Any:
    store = open_store(tmp_path / "home")
    record_traces(store, traces(5))
    record_traces(store, traces(3, tenant="acme", model="theirs", answer="a secret of acme"))
    return start({"fake": make_fake("fake")}, store=store)


def get(server: Any, path: str = "", **query: Any) -> httpx.Response:
    return httpx.get(f"{server.base_url}/traces{path}", params=query)


def ids(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [each["id"] for each in answer.json()["data"]]


def test_pages(filled: Any) -> None:
    first = get(filled, limit=2)
    body = first.json()
    assert ids(first) == ["local-4", "local-3"]
    assert (body["first_id"], body["last_id"], body["has_more"]) == ("local-4", "local-3", True)
    rest = get(filled, limit=10, after=body["last_id"])
    assert ids(rest) == ["local-2", "local-1", "local-0"]
    assert not rest.json()["has_more"]
    empty = get(filled, model="none").json()
    assert (empty["data"], empty["first_id"], empty["has_more"]) == ([], None, False)


def test_filters(filled: Any) -> None:
    record_feedback(filled.store, "local-1", rating=1)
    assert ids(get(filled, min_latency_s=3)) == ["local-4", "local-3"]
    assert ids(get(filled, feedback="good")) == ["local-1"]
    assert ids(get(filled, since="2026-01-01T00:00:03", text="HERE")) == ["local-4", "local-3"]
    assert ids(get(filled, errors="true")) == []


def test_what_is_refused_names_the_parameter(filled: Any) -> None:
    for query, named in (
        ({"limit": 0}, "limit"),
        ({"limit": 5000}, "limit"),
        ({"limit": "many"}, "limit"),
        ({"since": "yesterday"}, "since"),
        ({"feedback": "meh"}, "feedback"),
        ({"min_latency_s": "nan"}, "min_latency_s"),
        ({"modle": "m"}, "modle"),
        ({"errors": "perhaps"}, "errors"),
        ({"model": ["a", "b"]}, "model"),
    ):
        answer = get(filled, **query)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, named), answer.text
    assert get(filled, after="trace_none").status_code == 404


def test_an_operator_may_ask_for_all_tenants(filled: Any) -> None:
    assert len(ids(get(filled, tenant="*"))) == 8
    assert ids(get(filled, tenant="acme")) == ["acme-2", "acme-1", "acme-0"]


def test_a_tenant_sees_its_own_only(start: Callable[..., Any], make_fake: Callable[..., Any], tmp_path: Any) -> None:
    """Every way to another tenant's traces ends as if there were none."""
    store = open_store(tmp_path / "home")
    record_traces(store, traces(5, tenant="globex"))
    record_traces(store, traces(3, tenant="acme", answer="a secret of acme"))
    record_feedback(store, "acme-0", rating=1, comment="a secret of acme")
    _, key = create_key(store, "globex", scopes=("inference", "traces", "feedback"))
    server = start({"fake": make_fake("fake")}, store=store, keys=True)

    def ask(path: str, **query: Any) -> httpx.Response:
        return httpx.get(f"{server.base_url}{path}", params=query, headers={"Authorization": f"Bearer {key}"})

    assert len(ids(ask("/traces"))) == 5
    assert ids(ask("/traces", text="secret of acme")) == []
    assert ids(ask("/traces", tenant="globex")) == ids(ask("/traces"))
    unknown = ask("/traces/acme-9")
    for attack in (ask("/traces/acme-0"), ask("/traces", after="acme-1")):
        assert attack.status_code == 404
        assert attack.json()["error"]["code"] == unknown.json()["error"]["code"]
    for tenant in ("acme", "no-such-tenant", "*"):
        assert ask("/traces", tenant=tenant).status_code == 403, "the same whether there is such a tenant"
    for body in ({"trace_id": "acme-0", "rating": -1}, {"trace_id": "globex-0", "over": "acme-0"}):
        answer = httpx.post(f"{server.base_url}/feedback", json=body, headers={"Authorization": f"Bearer {key}"})
        assert answer.status_code == 404, answer.text


def test_reading_traces_needs_its_scope(
    start: Callable[..., Any], make_fake: Callable[..., Any], tmp_path: Any
) -> None:
    store = open_store(tmp_path / "home")
    _, key = create_key(store, "globex", scopes=("inference",))
    server = start({"fake": make_fake("fake")}, store=store, keys=True)
    for path in ("", "/t"):
        answer = httpx.get(f"{server.base_url}/traces{path}", headers={"Authorization": f"Bearer {key}"})
        assert answer.status_code == 403
