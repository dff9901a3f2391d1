"""The store on PostgreSQL: run when LUTHIER_TEST_POSTGRES names an empty database that may be written."""

import os

import pytest
from sqlalchemy import text

URL = os.environ.get("LUTHIER_TEST_POSTGRES", "")
pytestmark = pytest.mark.skipif(not URL, reason="set LUTHIER_TEST_POSTGRES=postgresql://user@host/database")


@pytest.fixture
def store(home, monkeypatch):
    from luthier.store.database import Store, metadata

    monkeypatch.setenv("LUTHIER_DATABASE_URL", URL)
    opened = Store.open()
    yield opened
    with opened.write() as connection:
        metadata.drop_all(connection)
        connection.execute(text("DROP TABLE alembic_version"))


def test_the_migrated_schema_is_the_metadata(store):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    from luthier.store.database import HEAD, Store, metadata

    assert store.version() == HEAD
    assert Store.open().version() == HEAD
    with store.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_models_runs_traces_feedback_and_lineage(store):
    from luthier.core.model import ModelRecord
    from luthier.core.trace import Trace
    from luthier.store import feedback, models, runs, traces
    from luthier.store.home import now
    from luthier.store.lineage import Node, lineage, record_edge

    run = runs.start(store, "tune", "support", {"a": 1}, {}, key="k")
    models.register(store, ModelRecord("base", "base", "decoder", "d0", 1))
    models.register(
        store, ModelRecord("support", "adapter", "decoder", "d1", 2, base="base", run_id=run.id, meta={"x": [1]})
    )
    record_edge(store, Node("dataset", "ds", "tickets"), "train", Node("run", run.id))
    record_edge(store, Node("dataset", "ds", "tickets"), "train", Node("run", run.id))
    assert runs.finish(store, run.id, "done", {"loss": float("nan")}).summary == {"loss": None}
    assert runs.find_run(store, "supp").id == run.id and runs.by_key(store, "k")[0].id == run.id
    assert models.find(store, "support").meta == {"x": [1]}
    traces.record_trace(store, Trace("trace_1", now(), "support", "chat", ({"role": "user", "content": "hi ü"},), "yo"))
    said = feedback.record_feedback(store, "trace_1", rating=-1)
    record_edge(store, Node("feedback", said.id), "collected", Node("dataset", "ds2", "more"))
    assert feedback.list_feedback(store, "support")[0][1] == said
    tree = lineage("tickets", store).tree("descendants")
    found = str(tree)
    assert "support" in found and "more" in found and "hi ü" in found
    assert "tickets" in str(lineage("more", store).tree("ancestors"))
