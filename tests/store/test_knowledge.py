from __future__ import annotations

import threading

import pytest
from sqlalchemy.exc import IntegrityError

from luthier.core.errors import ConflictError, NotFoundError, StoreError
from luthier.store.database import open_store
from luthier.store.knowledge import (
    DocumentRecord,
    KnowledgeRecord,
    base_version,
    delete_base,
    document_ids,
    drop_documents,
    find_base,
    list_bases,
    list_documents,
    put_documents,
    record_base,
    replace_documents,
    update_base,
    writing,
)


@pytest.fixture
def store(home):
    return open_store()


def base(name="kb", **fields):
    return KnowledgeRecord(name, "fake", "d" * 64, 8, {"name": "fixed", "tokens": 9}, {"name": "lancedb"}, **fields)


def document(source, digest="1", **fields):
    return DocumentRecord(f"doc_{source}_{digest}", "kb", source, digest, **fields)


def test_a_base_comes_back_as_it_was_written(store):
    made = record_base(store, base(retrieval=({"name": "mmr"},), answer={"k": 3}, description="规章", meta={"a": 1}))
    found = find_base(store, "kb")
    assert made.created_at and found.created_at == made.created_at
    assert (found.chunker, found.answer, found.description) == ({"name": "fixed", "tokens": 9}, {"k": 3}, "规章")
    assert (list(found.retrieval), found.meta, found.version, found.generation) == ([{"name": "mmr"}], {"a": 1}, 0, 0)
    with pytest.raises(ConflictError):
        record_base(store, base())
    with pytest.raises(NotFoundError, match="'kb'"):
        find_base(store, "kbb")
    assert [each.name for each in list_bases(store)] == ["kb"]


def test_each_change_is_a_new_version(store):
    record_base(store, base())
    seen = [base_version(store, "kb")]
    put_documents(store, "kb", [document("a"), document("b", labels=("x",), warnings=("w",), meta={"y": 1})])
    seen.append(base_version(store, "kb"))
    update_base(store, "kb", description="new")
    seen.append(base_version(store, "kb"))
    drop_documents(store, "kb", ["doc_a_1"])
    seen.append(base_version(store, "kb"))
    assert seen == [0, 1, 2, 3]
    put_documents(store, "kb", [])
    assert base_version(store, "kb") == 3 and base_version(store, "none") == -1
    (kept,) = list_documents(store, "kb")
    assert kept == document("b", labels=("x",), warnings=("w",), meta={"y": 1})


def test_a_document_takes_the_place_of_the_one_with_its_source(store):
    record_base(store, base())
    many = [document(f"s{number:04}") for number in range(1203)]
    put_documents(store, "kb", many)
    put_documents(store, "kb", [document(each.source, "2") for each in many[::2]])
    version, ids = document_ids(store, "kb")
    assert version == 2 and len(ids) == 1203
    assert sum(each.endswith("_2") for each in ids) == 602
    assert drop_documents(store, "kb", sorted(ids)[:700]) == 700 and len(list_documents(store, "kb")) == 503


def test_all_documents_and_the_making_of_a_base_change_in_one_transaction(store, monkeypatch):
    record_base(store, base())
    put_documents(store, "kb", [document("a"), document("b")])
    after = base(meta={"generation": 1}, description="never written here")
    clash = [document("c"), document("c", "2")]
    with pytest.raises(IntegrityError, match="UNIQUE"):
        replace_documents(store, after, clash)
    assert {each.source for each in list_documents(store, "kb")} == {"a", "b"}
    assert find_base(store, "kb").generation == 0
    replace_documents(store, after, [document("c")])
    assert [each.source for each in list_documents(store, "kb")] == ["c"]
    assert (find_base(store, "kb").generation, find_base(store, "kb").description) == (1, "")


def test_a_base_goes_with_its_documents(store):
    record_base(store, base())
    put_documents(store, "kb", [document("a")])
    delete_base(store, "kb")
    assert list_documents(store, "kb") == []
    with pytest.raises(NotFoundError):
        delete_base(store, "kb")


def test_changes_wait_for_one_another_and_hear_that_the_base_is_gone(store):
    record_base(store, base())
    inside, waited, out = threading.Event(), threading.Event(), []

    def second():
        inside.wait()
        try:
            with writing(store, "kb", waited.set):
                out.append("in")
        except NotFoundError as error:
            out.append(str(error))

    thread = threading.Thread(target=second)
    thread.start()
    with writing(store, "kb"):
        inside.set()
        assert waited.wait(30) and out == []
        delete_base(store, "kb")
    thread.join()
    assert "not known" in out[0]
    with pytest.raises(NotFoundError), writing(store, "none"):
        raise AssertionError


def test_a_lock_that_the_disk_refuses_is_said(store, monkeypatch):
    record_base(store, base())

    def full(*given, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.open", full)
    with pytest.raises(StoreError, match="full"), writing(store, "kb"):
        raise AssertionError
