import os
import subprocess
import sys
from dataclasses import replace

import pytest

from luthier.core.errors import ConflictError, InputError, NotFoundError
from luthier.core.model import ModelRecord
from luthier.store import artifacts
from luthier.store.models import PULLABLE, find, list_models, register, remove, rename

BASE = ModelRecord("smol", "base", "decoder", "d" * 64, 10, "MIT", meta={"source": "file:/x", "list": [1, 2]})


def test_a_record_comes_back_as_it_went_in(store):
    stored = register(store, BASE)
    assert replace(stored, created_at="") == BASE
    assert stored.created_at
    assert find(store, "smol") == stored


def test_the_same_weights_update_the_record_and_keep_its_date(store):
    first = register(store, BASE)
    second = register(store, replace(BASE, meta={"template_digest": "t"}))
    assert second.created_at == first.created_at
    assert find(store, "smol").meta == {"template_digest": "t"}


def test_other_weights_under_a_taken_name_are_a_conflict(store):
    register(store, BASE)
    other = replace(BASE, digest="e" * 64)
    with pytest.raises(ConflictError, match=r"'smol' is taken.*dddddddddddd"):
        register(store, other)
    with pytest.raises(ConflictError):
        register(store, replace(BASE, kind="export"))
    assert find(store, "smol").digest == BASE.digest
    assert register(store, other, replace=True).digest == "e" * 64
    assert find(store, "smol").digest == "e" * 64


@pytest.mark.parametrize("name", ["", "a/b", "../x", "-x", "a b", "a:b", "x" * 129, "ä"])
def test_names_that_cannot_be_a_path_or_a_url_part_are_refused(store, name):
    with pytest.raises(InputError, match="model name"):
        register(store, replace(BASE, name=name))


def test_an_unknown_kind_is_refused(store):
    with pytest.raises(InputError, match="base, adapter, export, endpoint"):
        register(store, replace(BASE, kind="thing"))
    with pytest.raises(InputError, match="base, adapter, export, endpoint"):
        list_models(store, "thing")


def test_unknown_names_suggest_near_ones_or_the_pull_command(store):
    register(store, replace(BASE, name="support-lora"))
    with pytest.raises(NotFoundError, match="Did you mean 'support-lora'"):
        find(store, "suport-lora")
    for name in PULLABLE:
        with pytest.raises(NotFoundError) as raised:
            find(store, name)
        assert raised.value.hint == f"luthier pull {name}"
    with pytest.raises(NotFoundError, match="Did you mean 'smollm2-135m'") as raised:
        find(store, "smolm2-135m")
    assert raised.value.hint == "luthier pull smollm2-135m"
    with pytest.raises(NotFoundError, match="Here are: support-lora"):
        find(store, "zzzzzz")


def test_pullable_names_are_those_of_the_inventory():
    from luthier.models.inventory import KNOWN

    assert tuple(KNOWN) == PULLABLE


def test_models_are_listed_bases_first(store):
    register(store, replace(BASE, name="b", kind="endpoint", created_at="2020"))
    register(store, replace(BASE, name="a", kind="adapter", created_at="2021"))
    register(store, replace(BASE, name="c", created_at="2022"))
    assert [m.name for m in list_models(store)] == ["c", "a", "b"]
    assert [m.name for m in list_models(store, "adapter")] == ["a"]


def test_remove_refuses_while_needed_and_then_takes_the_weights_along(store):
    with artifacts.staged(store) as folder:
        (folder / "w").write_text("x")
        digest, _ = artifacts.put(store, folder)
    register(store, replace(BASE, digest=digest))
    register(store, replace(BASE, name="twin", digest=digest))
    register(store, replace(BASE, name="ad", kind="adapter", base="smol", digest="x"))
    register(store, replace(BASE, name="ep", kind="endpoint", digest="x", meta={"target": "ad"}))
    with pytest.raises(ConflictError, match="needed by ad"):
        remove(store, "smol")
    with pytest.raises(ConflictError, match="needed by ep"):
        remove(store, "ad")
    for name in ("ep", "ad", "smol"):
        remove(store, name)
    artifacts.verify(store, digest)  # the twin still has it
    remove(store, "twin")
    assert not (store.home.artifacts / digest).exists()
    with pytest.raises(NotFoundError):
        remove(store, "twin")


def test_register_killed_before_its_commit_leaves_no_row_and_after_it_a_whole_one(store):
    code = (
        "import os, signal, sys\nfrom sqlalchemy import event\nfrom luthier.core.model import ModelRecord\n"
        "from luthier.store.database import open_store\nfrom luthier.store.models import register\nstore = open_store()\n"
        "if sys.argv[1] == 'before': event.listen(store.engine, 'commit', lambda c: os.kill(os.getpid(), signal.SIGKILL))\n"
        "register(store, ModelRecord('m', 'base', 'decoder', 'd', 1))\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    for when, names in (("before", []), ("after", ["m"])):
        done = subprocess.run(
            [sys.executable, "-c", code, when], env=dict(os.environ), capture_output=True, check=False
        )
        assert done.returncode == -9, done.stderr
        assert [m.name for m in list_models(store)] == names


def test_replaced_weights_keep_their_own_past(store):
    from luthier.store.lineage import Node, lineage, record_edge

    register(store, replace(BASE, name="tuned"))
    record_edge(store, Node("run", "run_old"), "made", Node("model", "tuned"))
    register(store, replace(BASE, name="tuned", digest="e" * 64), replace=True)
    record_edge(store, Node("run", "run_new"), "made", Node("model", "tuned"))
    made_by = [e.source.id for e in lineage("tuned", store).edges if e.relation == "made"]
    assert made_by == ["run_new"]
    assert [e.target.id for e in lineage("run_old", store).edges] == ["tuned@" + "d" * 12]


def test_a_new_name_is_known_everywhere(store):
    from luthier.core.trace import Trace
    from luthier.store.lineage import Node, lineage, record_edge
    from luthier.store.traces import list_traces, record_trace

    register(store, BASE)
    register(store, replace(BASE, name="old", kind="adapter", base="smol", digest="x"))
    register(store, replace(BASE, name="above", kind="adapter", base="old", digest="y"))
    register(store, replace(BASE, name="ep", kind="endpoint", digest="x", meta={"target": "old", "more": 1}))
    record_edge(store, Node("run", "run_1"), "made", Node("model", "old"))
    record_edge(store, Node("model", "old"), "base", Node("run", "run_2"))
    record_trace(store, Trace(id="trace_1", created_at="2026-01-01T00:00:00.000Z", model="old", operation="chat"))
    assert rename(store, "old", "new") == find(store, "new")
    assert find(store, "above").base == "new"
    assert dict(find(store, "ep").meta) == {"target": "new", "more": 1}
    assert {e.relation for e in lineage("new", store).edges} >= {"made", "base"}
    assert [trace.id for trace in list_traces(store, model="new")] == ["trace_1"]
    with pytest.raises(NotFoundError):
        find(store, "old")
    assert rename(store, "new", "new").name == "new"


def test_names_that_cannot_be_given(store):
    register(store, BASE)
    register(store, replace(BASE, name="other", digest="x"))
    with pytest.raises(ConflictError, match="'other' is taken by another base"):
        rename(store, "smol", "other")
    with pytest.raises(InputError, match="a model name must be"):
        rename(store, "smol", "../x")
    with pytest.raises(NotFoundError):
        rename(store, "lost", "found")
    assert {record.name for record in list_models(store)} == {"smol", "other"}
