from __future__ import annotations

import pytest

from luthier.core.errors import NotFoundError, StoreError
from luthier.core.model import ModelRecord
from luthier.store.files import (
    CONTENT,
    delete_file,
    expire_files,
    file_path,
    find_file,
    held_by,
    keep_copy,
    keep_file,
    list_files,
    receiving,
)
from luthier.store.models import register


def keep(store, content=b"hello", tenant="acme", **more):
    with receiving(store) as path:
        path.write_bytes(content)
        return keep_file(store, path, **{"tenant": tenant, "name": "in.jsonl", "purpose": "batch", **more})


def test_a_file_is_its_tenants_only(store):
    made = keep(store, key_id="k1")
    assert find_file(store, made.id, "acme") == made
    assert file_path(store, made).read_bytes() == b"hello"
    assert (made.size_bytes, made.as_dict()["filename"], made.as_dict()["bytes"]) == (5, "in.jsonl", 5)
    with pytest.raises(NotFoundError) as stranger:
        find_file(store, made.id, "other")
    with pytest.raises(NotFoundError) as unknown:
        find_file(store, made.id[:-1] + "x", "other")
    assert str(stranger.value).replace(made.id, "?") == str(unknown.value).replace(made.id[:-1] + "x", "?")
    with pytest.raises(NotFoundError):
        delete_file(store, made.id, "other")
    assert list_files(store, "other") == []
    assert held_by(store, "acme") == (1, 5) and held_by(store, "other") == (0, 0)


def test_equal_content_is_on_the_disk_once_and_goes_with_the_last_file(store):
    mine, again, theirs = keep(store), keep(store), keep(store, tenant="other")
    assert mine.digest == again.digest == theirs.digest
    folder = store.home.artifacts / mine.digest
    delete_file(store, mine.id, "acme")
    delete_file(store, theirs.id, "other")
    assert file_path(store, again).read_bytes() == b"hello"
    delete_file(store, again.id, "acme")
    assert not folder.exists()
    with pytest.raises(NotFoundError):
        delete_file(store, again.id, "acme")


def test_bytes_that_are_a_model_too_stay(store):
    made = keep(store)
    register(store, ModelRecord("m", "base", "decoder", made.digest))
    delete_file(store, made.id, "acme")
    assert (store.home.artifacts / made.digest / CONTENT).exists()


def test_pages(store, tmp_path):
    source = tmp_path / "x"
    source.write_bytes(b"data")
    made = [
        keep_copy(store, source, tenant="acme", name=f"{n}", purpose="batch_output" if n else "batch") for n in range(5)
    ]
    ids = [each.id for each in made]
    assert [each.id for each in list_files(store, "acme")] == ids[::-1]
    assert [each.id for each in list_files(store, "acme", limit=2, after=ids[3])] == [ids[2], ids[1]]
    assert [each.id for each in list_files(store, "acme", ascending=True, after=ids[3])] == [ids[4]]
    assert [each.id for each in list_files(store, "acme", purpose="batch")] == [ids[0]]
    assert source.exists()


def test_files_end(store):
    kept, short = keep(store), keep(store, b"other", keep_days=0.0)
    assert short.expires_at is not None
    while expire_files(store) == 0:  # the clock has milliseconds
        pass
    assert [each.id for each in list_files(store, "acme")] == [kept.id]


def test_damage_is_said(store):
    made = keep(store)
    (store.home.artifacts / made.digest / CONTENT).write_bytes(b"hell")
    with pytest.raises(StoreError, match="bytes instead of"):
        file_path(store, made)


def test_what_was_not_kept_leaves_nothing(store):
    with pytest.raises(RuntimeError), receiving(store) as path:
        path.write_bytes(b"half")
        raise RuntimeError
    assert not list(store.home.staging.iterdir())
    assert not list(store.home.artifacts.iterdir())
