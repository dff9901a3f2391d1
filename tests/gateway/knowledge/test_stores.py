"""Vector stores through the official client."""

from __future__ import annotations

import threading

import httpx
import pytest
from openai import BadRequestError, NotFoundError, OpenAI, PermissionDeniedError

from luthier.engines._target import EngineTarget
from luthier.engines.fake import Config
from luthier.engines.fake import open as open_fake
from luthier.gateway.serve import running
from luthier.knowledge import ingest
from luthier.knowledge.base import create_base
from luthier.store.database import open_store
from luthier.store.keys import create_key

LEAVE = "Parental leave is sixteen weeks."


KEYS = {
    "other": ("other", {}),
    "acme": ("acme", {}),
    "board": ("acme", {"labels": ["board"]}),
    "narrow": ("other", {"models": ["gpt-*"]}),
    "reader": ("acme", {"scopes": ("inference",)}),
    "watcher": ("acme", {"scopes": ("traces",)}),
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A server with the operator's base ``handbook``: a document for all, one for acme, one for the board; clients by the names of their keys."""
    root = tmp_path_factory.mktemp("stores")
    store = open_store(root / "home")
    with create_base("handbook", embedder="fake", answer={"model": "fake"}, description="Rules", store=store) as base:
        for name, text, labels in (
            ("leave.md", f"# Leave\n\n{LEAVE}", []),
            ("acme.txt", "The leave secret of acme is 41.", ["acme"]),
            ("board.txt", "The leave secret of the board is 42.", ["board"]),
        ):
            (root / name).write_text(text)
            base.add([root / name], labels=labels, meta={"year": 2026, "team": name[0]})
    create_base("hidden", embedder="fake", store=store).close()
    config = {"knowledge": {"bases": ["handbook"], "create": True, "embedder": "fake"}}
    rights = {"scopes": ("inference", "admin")}
    secrets = {name: create_key(store, tenant, **{**rights, **more})[1] for name, (tenant, more) in KEYS.items()}
    with running({"fake": open_fake(EngineTarget("fake"), Config())}, store=store, keys=True, config=config) as url:
        yield {name: OpenAI(base_url=url, api_key=key, max_retries=0, timeout=60) for name, key in secrets.items()}


def waited(client, store, file):
    """The file, once it is no more in progress; the client asks again."""
    for _ in range(600):
        found = client.vector_stores.files.retrieve(file.id, vector_store_id=store)
        if found.status != "in_progress":
            return found
        threading.Event().wait(0.05)
    raise AssertionError("it was never read")


def test_bases_are_listed_and_searched(shop):
    client = shop["other"]
    (listed,) = client.vector_stores.list().data
    assert (listed.id, listed.name, listed.status) == ("handbook", "handbook", "completed")
    assert listed.file_counts.completed == listed.file_counts.total == 1
    assert client.vector_stores.retrieve("handbook").id == "handbook"
    page = client.vector_stores.search("handbook", query="How long is parental leave?")
    (hit,) = page.data
    assert LEAVE in hit.content[0].text and hit.filename == "leave.md" and hit.score > 0
    assert hit.attributes["year"] == 2026 and "lines 1-3" in hit.attributes["place"]
    (file,) = client.vector_stores.files.list("handbook").data
    assert (file.id, file.status) == (hit.file_id, "completed")
    assert client.vector_stores.files.retrieve(file.id, vector_store_id="handbook").usage_bytes > 0
    both = client.vector_stores.search("handbook", query=["parental", "leave"], max_num_results=1)
    assert len(both.data) == 1


def test_nobody_sees_the_documents_of_others(shop):
    board = shop["board"]
    for client, seen in ((shop["other"], 1), (shop["acme"], 2), (board, 3)):
        for k in (1, 50):
            found = client.vector_stores.search(
                "handbook", query="leave secret of acme and the board", max_num_results=k
            )
            assert len(found.data) == min(k, seen)
        assert len(client.vector_stores.files.list("handbook").data) == seen
    ids = {each.id for each in board.vector_stores.files.list("handbook").data}
    mine = {each.id for each in shop["other"].vector_stores.files.list("handbook").data}
    for each in ids - mine:
        with pytest.raises(NotFoundError):
            shop["other"].vector_stores.files.retrieve(each, vector_store_id="handbook")
        where = {"type": "eq", "key": "file_id", "value": each}
        assert not shop["other"].vector_stores.search("handbook", query="secret", filters=where).data


def test_bases_that_are_not_served_are_not_there(shop):
    for name in ("hidden", "none", "é\n", "x" * 200):
        with pytest.raises(NotFoundError):
            shop["other"].vector_stores.search(name, query="leave")
    with pytest.raises(NotFoundError):
        shop["narrow"].vector_stores.retrieve("handbook")


def test_filters(shop):
    client = shop["board"]

    def found(*parts):
        where = parts[0] if len(parts) == 1 else {"type": "and", "filters": list(parts)}
        return {each.filename for each in client.vector_stores.search("handbook", query="leave", filters=where)}

    year, team = {"type": "eq", "key": "year", "value": 2026}, {"type": "eq", "key": "team", "value": "a"}
    assert found(year) == {"leave.md", "acme.txt", "board.txt"}
    assert found(year, team) == {"acme.txt"}
    assert found({"type": "eq", "key": "filename", "value": "leave.md"}) == {"leave.md"}
    assert found({"type": "lte", "key": "date", "value": "2001-01-01"}) == set()
    assert len(found({"type": "gte", "key": "date", "value": "2001-01-01"})) == 3


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "query"),
        ({"query": " "}, "query"),
        ({"query": "x", "max_num_results": 51}, "max_num_results"),
        ({"query": "x", "rewrite_query": True}, "rewrite_query"),
        ({"query": "x", "colour": 1}, "colour"),
        ({"query": "x", "ranking_options": {"ranker": "best"}}, "ranking_options"),
        ({"query": "x", "filters": {"type": "or", "filters": []}}, "filters"),
        ({"query": "x", "filters": {"type": "ne", "key": "a", "value": 1}}, "filters"),
        ({"query": "x", "filters": {"type": "gte", "key": "year", "value": 1}}, "filters"),
        ({"query": "x", "filters": {"type": "gte", "key": "date", "value": "soon"}}, "filters"),
        ({"query": "x", "filters": {"type": "and", "filters": [{"type": "eq", "key": "a", "value": []}]}}, "filters"),
    ],
)
def test_what_cannot_be_searched_is_named(shop, body, said):
    client = shop["acme"]
    url, key = f"{client.base_url}vector_stores/handbook/search", client.api_key
    answer = httpx.post(url, json=body, headers={"Authorization": f"Bearer {key}"})
    assert answer.status_code == 400 and said in answer.json()["error"]["message"] + str(
        answer.json()["error"]["param"]
    )


def test_a_store_of_ones_own_is_made_filled_searched_and_deleted(shop):
    client, other = shop["acme"], shop["other"]
    made = client.vector_stores.create(name="FAQ", metadata={"a": "b"})
    assert (made.name, made.metadata, made.file_counts.total) == ("FAQ", {"a": "b"}, 0)
    good = client.files.create(file=("trips.md", b"# Trips\n\nHotels above 500 need approval."), purpose="assistants")
    bad = client.files.create(file=("broken.pdf", b"%PDF-1.4 broken \xff\xfe"), purpose="assistants")
    first = client.vector_stores.files.create(made.id, file_id=good.id, attributes={"year": 2026})
    assert (first.id, first.vector_store_id) == (good.id, made.id)
    client.vector_stores.files.create(made.id, file_id=bad.id)
    assert waited(client, made.id, good).status == "completed"
    failed = waited(client, made.id, bad)
    assert failed.status == "failed" and "PDF" in failed.last_error.message
    where = {"type": "eq", "key": "year", "value": 2026}
    (hit,) = client.vector_stores.search(made.id, query="hotel approval", filters=where).data
    assert (hit.file_id, hit.filename) == (good.id, "trips.md") and "Hotels" in hit.content[0].text
    counts = client.vector_stores.retrieve(made.id).file_counts
    assert (counts.completed, counts.failed, counts.total) == (1, 1, 2)
    assert [each.id for each in client.vector_stores.files.list(made.id, filter="failed")] == [bad.id]
    again = client.vector_stores.files.create(made.id, file_id=good.id)
    waited(client, made.id, again)
    assert len(client.vector_stores.search(made.id, query="hotel approval").data) == 1, "twice added, once there"
    for ask in (
        lambda: other.vector_stores.retrieve(made.id),
        lambda: other.vector_stores.search(made.id, query="hotel"),
        lambda: other.vector_stores.files.create(made.id, file_id=good.id),
        lambda: other.vector_stores.delete(made.id),
        lambda: client.vector_stores.files.create(made.id, file_id="file-none"),
    ):
        with pytest.raises(NotFoundError):
            ask()
    assert client.vector_stores.files.delete(bad.id, vector_store_id=made.id).deleted
    assert client.vector_stores.files.delete(good.id, vector_store_id=made.id).deleted
    assert client.vector_stores.search(made.id, query="hotel approval").data == []
    assert client.vector_stores.delete(made.id).deleted
    with pytest.raises(NotFoundError):
        client.vector_stores.retrieve(made.id)
    assert client.files.retrieve(good.id).id == good.id


def test_while_a_file_is_read_it_is_in_progress(shop, monkeypatch):
    client, going = shop["acme"], threading.Event()
    real = ingest.parse_bytes

    def slow(*given, **named):
        assert going.wait(60)
        return real(*given, **named)

    monkeypatch.setattr(ingest, "parse_bytes", slow)
    made = client.vector_stores.create(name="FAQ")
    file = client.files.create(file=("a.txt", b"Slowly."), purpose="assistants")
    assert client.vector_stores.files.create(made.id, file_id=file.id).status == "in_progress"
    assert client.vector_stores.retrieve(made.id).status == "in_progress"
    going.set()
    assert waited(client, made.id, file).status == "completed"


def test_who_may_write(shop):
    reader = shop["reader"]
    with pytest.raises(PermissionDeniedError, match="admin"):
        reader.vector_stores.create(name="FAQ")
    with pytest.raises(PermissionDeniedError, match="operator"):
        shop["acme"].vector_stores.delete("handbook")
    with pytest.raises(PermissionDeniedError, match="inference"):
        shop["watcher"].vector_stores.list()
    with pytest.raises(BadRequestError, match="expires_after"):
        shop["acme"].vector_stores.create(name="x", expires_after={"anchor": "last_active_at", "days": 1})


def test_a_server_that_makes_none(start, make_fake):
    server = start({"fake": make_fake("fake")})
    with pytest.raises(PermissionDeniedError, match="create: true"):
        server.client().vector_stores.create(name="x")
    assert server.client().vector_stores.list().data == []


def test_pages(shop):
    client = shop["board"]
    every = [each.id for each in client.vector_stores.files.list("handbook", order="asc")]
    first = client.vector_stores.files.list("handbook", limit=2, order="asc")
    assert [each.id for each in first.data] == every[:2] and first.has_more
    assert [each.id for each in client.vector_stores.files.list("handbook", limit=1, order="asc")] == every
    assert client.vector_stores.files.list("handbook", limit=2, order="asc", before=every[2]).data[0].id == every[0]
    with pytest.raises(BadRequestError, match="limit"):
        client.vector_stores.list(limit=0)
