from __future__ import annotations

import json
from pathlib import Path

from luthier.core.model import ModelRecord
from luthier.data.read import read
from luthier.evaluation.trained_on import chain, trained_documents, trained_examples
from luthier.store.database import Store, open_store
from luthier.store.models import register
from luthier.store.runs import record_trained_on, start


def tuned(store: Store, name: str, base: str, data: object, ids: list[str]) -> None:
    run = start(store, "tune", name, {"data": data}, {})
    record_trained_on(store, run.id, ids)
    register(store, ModelRecord(name, "adapter", "decoder", name[0] * 64, base=base, run_id=run.id))


def test_examples_of_a_model_its_base_and_what_it_points_at(home: Path) -> None:
    store = open_store()
    register(store, ModelRecord("base", "base", "decoder", "0" * 64))
    tuned(store, "first", "base", {}, ["a", "b"])
    tuned(store, "second", "first", {}, ["c"])
    register(store, ModelRecord("served", "endpoint", "decoder", "1" * 64, base="base", meta={"target": "second"}))
    assert [r.name for r in chain(store, "served")] == ["served", "second", "first", "base"]
    assert trained_examples(store, "served") == {"a", "b", "c"}
    assert trained_examples(store, "base") == trained_examples(store, "openai:gpt") == frozenset()


def test_only_rows_that_were_trained_on_are_training_data(home: Path, tmp_path: Path) -> None:
    store = open_store()
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"body": f"text {i}", "label": "ab"[i % 2]}) + "\n" for i in range(6)))
    columns = {"text": "body"}
    ids = [e.id for e in read(file, columns=columns).examples]
    register(store, ModelRecord("base", "base", "decoder", "0" * 64))
    tuned(store, "first", "base", {"path": str(file), "columns": columns}, ids[:4])
    tuned(store, "second", "first", {"train": str(tmp_path / "gone.jsonl")}, ["x"])
    found, missing = trained_documents(store, "second")
    assert [d.where for d in found] == [f"{file}:{line}" for line in (1, 2, 3, 4)]
    assert found[0].text == "text 0\na"
    assert missing == [str(tmp_path / "gone.jsonl")]
    assert trained_documents(store, "base") == ([], [])
