from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

from luthier.core.document import Chunk
from luthier.core.errors import ConflictError, InputError, MismatchError, NotFoundError, StoreError
from luthier.knowledge import rebuild as rebuilding
from luthier.knowledge.base import (
    create_base,
    describe_base,
    document_id,
    open_base,
    rebuild_base,
    remove_base,
    remove_documents,
    vector_cache,
)
from luthier.knowledge.index import Filter, IndexRow
from luthier.knowledge.indexes.lancedb import LanceIndex
from luthier.knowledge.settings import set_base
from luthier.store.database import open_store
from luthier.store.knowledge import find_base, folder_of, list_bases
from luthier.store.lineage import lineage


def texts(base, question="leave travel 年假", **named):
    return sorted(hit.chunk.text for hit in base.search(question, 20, **named))


def folders(base):
    return sorted(each.name for each in folder_of(base.store, base.name).glob("index*"))


def test_a_base_of_each_name_and_none_of_another(home):
    for name in ("a", "手册", "_x", "v1.2-b", vector_cache(open_store()).name.removeprefix(".")):
        create_base(name, embedder="fake").close()
    assert len(list_bases(open_store())) == 5
    for name in ("", ".", "..", "a/b", "a b", "x" * 65, "字" * 22, "-x", "a\n"):
        with pytest.raises(InputError, match="name must"):
            create_base(name, embedder="fake")
    with pytest.raises(ConflictError, match="there already"):
        create_base("a", embedder="fake")


def test_what_cannot_be_made_leaves_nothing(home):
    for wrong, named in (
        ({"embedder": "none-such"}, "none-such"),
        ({"chunker": {"name": "fixed", "x": 1}}, "'x'"),
        (
            {"index": "none"},
            "none",
        ),
    ):
        with pytest.raises(InputError, match=named):
            create_base("kb", **{"embedder": "fake", **wrong})
    assert list_bases(open_store()) == []


def test_remove_documents_by_id_source_and_pattern(base, docs):
    base.add([docs.path])
    document = base.documents()[0]
    assert base.remove([document.id]) == 1
    assert base.remove(["*/sub/*", str(docs.path / "none.txt")]) == 1
    with pytest.raises(InputError, match="none of"):
        base.remove(["none of them"])
    assert len(base.documents()) == len(base.index.documents()) == 1
    assert texts(base) == [base.chunks(base.documents()[0].source)[0].chunk.text]


def test_a_base_whose_embedder_is_gone_can_be_looked_at_emptied_rebuilt_and_removed(tiny_encoder, docs):
    from luthier.store.models import remove

    store = open_store()
    with create_base("kb", embedder=tiny_encoder) as made:
        made.add([docs.path])
    remove(store, tiny_encoder)
    with pytest.raises(NotFoundError, match="not here any more") as said:
        open_base("kb")
    assert "luthier pull tiny-encoder" in said.value.hint and "rebuild kb --embedder" in said.value.hint
    assert len(describe_base("kb").documents) == 3
    assert remove_documents("kb", ["*travel*"]) == 1
    assert len(rebuild_base("kb", embedder="fake").changed) == 2
    with open_base("kb") as base:
        assert len(texts(base)) == 2 and base.record.embedder == "fake"
    remove_base("kb")
    assert not folder_of(store, "kb").exists() and list_bases(store) == []


def test_a_model_that_changed_under_a_base_is_refused_until_it_is_rebuilt(base, docs, counting):
    base.add([docs.path])
    other = counting("fake", seed=7) if "seed" in counting().info.parameters else counting("other", width=16)
    with pytest.raises(MismatchError, match="whose vectors mean something else") as said:
        open_base("kb", engine=other)
    assert said.value.hint == "luthier kb rebuild kb"
    rebuild_base("kb", engine=other)
    with pytest.raises(MismatchError):
        open_base("kb")
    with open_base("kb", engine=other) as again:
        assert len(texts(again)) == 3 and again.record.width == other.embed(["x"]).shape[1]


def test_rebuild_with_another_chunker_and_index(base, docs):
    docs.write("long.txt", "A sentence of six words here. " * 40)
    base.add([docs.path], labels=["acme"], meta={"year": 2026})
    before = base.index.count()
    report = rebuild_base("kb", chunker={"name": "fixed", "tokens": 20}, overrides=["index.metric=dot"])
    assert len(report.changed) == 4 and report.failed == ()
    assert base.search("parental leave", 1, Filter(labels=("acme",), meta={"year": 2026}))[0].meta["year"] == 2026
    assert base.index.count() > before and base.record.chunker["tokens"] == 20, "who has it open sees the new one"
    assert folders(base) == ["index-1"] and find_base(base.store, "kb").generation == 1
    assert base.record.meta == {"generation": 1}
    assert base.add([docs.path]).unchanged and not base.add([docs.path]).changed
    assert base.search("parental leave", 5, Filter(labels=())) == []


def test_a_rebuild_keeps_what_can_be_read_no_more(base, docs):
    docs.write("broken.pdf", b"%PDF-1.4 broken")
    base.add([docs.path])
    (docs.path / "leave.txt").unlink()
    report = rebuild_base("kb", chunker="sentence")
    assert sorted(Path(source).name for source, _ in report.failed) == ["broken.pdf", "leave.txt"]
    assert len(texts(base)) == 3
    kept = {Path(each.source).name: each for each in base.documents()}
    assert kept["leave.txt"].status == "ready" and "as they were" in kept["leave.txt"].error
    assert kept["broken.pdf"].status == "failed" and kept["travel.txt"].error == ""
    shutil.rmtree(folder_of(base.store, "kb") / "index-1")
    rebuild_base("kb")
    lost = {Path(each.source).name: each for each in base.documents()}
    assert lost["leave.txt"].status == "failed", "its chunks were in the index that was deleted"
    assert len(texts(base)) == 2


def test_the_old_index_answers_until_the_new_one_is_complete(base, docs, monkeypatch):
    base.add([docs.path])
    real, seen = rebuilding.replace_documents, []

    def replaced(*given):
        seen.append((texts(base), folders(base)))
        real(*given)
        seen.append((texts(base), base.record.generation))

    monkeypatch.setattr(rebuilding, "replace_documents", replaced)
    rebuild_base("kb", chunker="fixed")
    assert seen[0] == (texts(base), ["index", "index-1"]) and seen[1] == (texts(base), 1)


STEPS = [
    ("luthier.knowledge.rebuild:parse_source", "after", 2, 0),
    ("luthier.knowledge.rebuild:write_rows", "after", 2, 0),
    ("luthier.knowledge.indexes.lancedb:LanceIndex.optimize", "after", 1, 0),
    ("luthier.knowledge.rebuild:replace_documents", "before", 1, 0),
    ("luthier.knowledge.rebuild:replace_documents", "after", 1, 1),
    ("luthier.knowledge.base:drop_index", "before", 1, 1),
    ("luthier.knowledge.base:drop_index", "after", 1, 1),
]


def test_killed_at_any_step_of_a_rebuild_it_is_the_old_base_or_the_new_one(base, docs, home, dying):
    base.add([docs.path])
    whole = texts(base)
    work = "from luthier.knowledge.base import rebuild_base; rebuild_base('kb', chunker='sentence')"
    generation = 0
    for at, when, call, over in STEPS:
        assert dying(home, work, at, when, call) == -9, at
        generation += over
        assert texts(base) == whole, at
        assert base.record.generation == generation, at
        assert base.record.chunker["name"] == ("sentence" if generation else "recursive")
        changed = docs.write("leave.txt", "Parental leave is sixteen weeks.\n" + "\n" * generation)
        report = base.add([docs.path])
        assert report.failed == () and texts(base) == whole
        assert len(folders(base)) == 1 and "leftover" not in base.record.meta, "the next change cleans up"
        assert base.chunks(changed)
    assert dying(home, work) == 0
    assert texts(base) == whole and base.record.generation == generation + 1


def test_a_rebuild_that_fails_changes_nothing(base, docs, monkeypatch):
    base.add([docs.path])
    before = (texts(base), base.documents())

    def full(*given):
        raise StoreError("the disk is full")

    monkeypatch.setattr(LanceIndex, "add", full)
    with pytest.raises(StoreError, match="full"):
        rebuild_base("kb", chunker="fixed")
    assert (texts(base), base.documents()) == before
    with pytest.raises(InputError, match="chunker"):
        rebuild_base("kb", overrides=["chunker.tokens=none"])
    with pytest.raises(NotFoundError, match="none-such"):
        rebuild_base("kb", embedder="none-such")


def test_searches_go_on_while_a_base_is_rebuilt_with_another_model(base, docs, tiny_encoder):
    base.add([docs.path])
    whole, done, wrong, count = texts(base), threading.Event(), [], []

    def search():
        while not done.is_set():
            found = texts(base)
            count.append(1)
            if found != whole:
                wrong.append(found)

    thread = threading.Thread(target=search)
    thread.start()
    try:
        for embedder in (tiny_encoder, "fake", tiny_encoder):
            rebuild_base("kb", embedder=embedder)
    finally:
        done.set()
        thread.join()
    assert wrong == [] and len(count) > 2
    assert base.record.embedder == tiny_encoder and base.embedder.width == 32


def test_removing_while_searching_loses_only_what_is_removed(base, docs):
    base.add([docs.path])
    done, found = threading.Event(), set()

    def search():
        while not done.is_set():
            found.add(tuple(texts(base)))

    whole = texts(base)
    thread = threading.Thread(target=search)
    thread.start()
    try:
        remove_documents("kb", ["*travel.txt"])
    finally:
        done.set()
        thread.join()
    assert found <= {tuple(whole), tuple(each for each in whole if "Travel" not in each)}


def test_rows_that_the_base_does_not_have_take_nobodys_place(base, docs):
    base.add([docs.path])
    vector = base.embedder.embed(["parental leave"])[0]
    strangers = [
        IndexRow(Chunk(f"s{number}", "parental leave", 0, (0, 0)), "doc_stranger", "/none", vector=vector)
        for number in range(60)
    ]
    base.index.add(strangers)
    for steps in ("hybrid", "dense", "keyword", "mmr", "neighbours", "parent"):
        found = base.search("parental leave", 3, retrieval=[{"name": steps}])
        assert found and {hit.source for hit in found} <= {each.source for each in base.documents()}, steps
        assert found[0].source.endswith("leave.txt")
    assert len(base.search("parental leave", 3, retrieval=[{"name": "dense"}])) == 3
    assert base.current.get(["s0"]) == [] and base.current.of_document("doc_stranger") == []


RETRIEVALS = ("dense", "keyword", "hybrid", "mmr", "parent", "neighbours", "time_decay")


@pytest.mark.parametrize("step", RETRIEVALS)
def test_no_step_shows_what_labels_do_not_allow(labelled, step):
    options = [{"name": step}]
    for labels, seen in (((), {"open"}), (("acme",), {"open", "acme"}), (("board",), {"open", "board"})):
        for question in ("the secret budget", "预算", "page acme board open"):
            for k in (1, 3, 50):
                where = Filter(labels=labels, sources=("*",))
                for hit in labelled.search(question, k, where, retrieval=options):
                    assert Path(hit.source).stem in seen, (step, k)
                    assert not {"acme", "board"} - seen & set(hit.chunk.text.split())
    everything = {Path(hit.source).stem for hit in labelled.search("the secret budget", 50, retrieval=options)}
    assert everything == {"open", "acme", "board"}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Three documents of many chunks: for all, for acme and for the board."""
    root = tmp_path_factory.mktemp("labelled")
    store = open_store(root / "home")
    chunker = {"name": "parent_child"}
    with create_base("kb", embedder="fake", chunker=chunker, store=store) as made:
        for name in ("open", "acme", "board"):
            file = root / f"{name}.txt"
            file.write_text("\n\n".join(f"{name} {each}: the secret budget, 预算 is {each}." for each in range(60)))
            made.add([file], labels=[] if name == "open" else [name])
        yield made


def test_settings_are_seen_by_who_has_the_base_open(base, docs):
    base.add([docs.path])
    base.search("leave")
    set_base("kb", retrieval="keyword", description="rules")
    assert base.search("nothing like that at all") == []
    assert (base.record.description, list(base.record.retrieval)) == ("rules", [{"name": "keyword"}])
    with pytest.raises(InputError, match="nothing to set"):
        set_base("kb")
    with pytest.raises(InputError, match="'colour'"):
        set_base("kb", colour="red")


def test_the_lineage_knows_the_embedder(base):
    (edge,) = [each for each in lineage("kb").edges if each.target.kind == "knowledge"]
    assert (edge.source.kind, edge.source.id, edge.relation, edge.target.id) == ("model", "fake", "embedded", "kb")


def test_ids_of_documents():
    assert document_id("kb", "a", "1") == document_id("kb", "a", "1") != document_id("kb", "a", "2")
    assert document_id("kb", "a", "1", "doc_x") != document_id("kb", "a", "1")
