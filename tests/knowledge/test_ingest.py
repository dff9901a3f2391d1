from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from luthier.core.errors import InputError, NotFoundError, StoreError
from luthier.knowledge import ingest
from luthier.knowledge.base import open_base
from luthier.knowledge.fetch import Fetched
from luthier.knowledge.indexes.lancedb import LanceIndex
from luthier.store.database import open_store


def held(base):
    """What the index holds: a (name, text) of each chunk, those that no search shows among them."""
    kept = [hit for document in base.index.documents() for hit in base.index.of_document(document)]
    return sorted((Path(hit.source).name, hit.chunk.text) for hit in kept)


def sound(base):
    """The database and the index have the same documents, each chunk once."""
    ready = [each for each in base.documents() if each.status == "ready" and each.chunks]
    assert sorted(base.index.documents()) == sorted(each.id for each in ready)
    assert base.index.count() == sum(each.chunks for each in ready)
    assert len({each.source for each in base.documents()}) == len(base.documents())


def names(sources):
    return sorted(Path(each).name for each in sources)


def test_what_has_not_changed_costs_nothing(base, docs, monkeypatch):
    first = base.add([docs.path])
    assert names(first.added) == ["leave.txt", "travel.txt", "休假.txt"] and first.chunks == 3
    assert len(base.embedder.engine.embedded) == 3
    opened = []
    monkeypatch.setattr(ingest, "parse_file", lambda *given: opened.append(given))
    monkeypatch.setattr(ingest, "file_sha256", lambda *given: opened.append(given))
    monkeypatch.setattr(LanceIndex, "add", lambda *given: opened.append(given))
    monkeypatch.setattr(LanceIndex, "optimize", lambda *given: opened.append(given))
    again = base.add([docs.path])
    assert len(again.unchanged) == 3 and (again.added, again.changed, again.chunks) == ((), (), 0)
    assert opened == [] and len(base.embedder.engine.embedded) == 3


def test_changed_replaces_deleted_leaves_and_renamed_moves(base, docs):
    base.add([docs.path])
    embedded = len(base.embedder.engine.embedded)
    docs.write("leave.txt", "Parental leave is twenty weeks.")
    (docs.path / "travel.txt").rename(docs.path / "trips.txt")
    (docs.path / "sub" / "休假.txt").unlink()
    report = base.add([docs.path])
    assert (names(report.changed), names(report.added)) == (["leave.txt"], ["trips.txt"])
    assert names(report.removed) == ["travel.txt", "休假.txt"]
    assert held(base) == [
        ("leave.txt", "Parental leave is twenty weeks."),
        ("trips.txt", "Travel above 500 euros needs approval."),
    ]
    assert len(base.embedder.engine.embedded) == embedded + 1, "a renamed file is not embedded again"
    sound(base)


def test_a_touched_file_is_not_parsed_and_a_file_put_back_is_noticed(base, docs, monkeypatch):
    base.add([docs.path])
    docs.write("leave.txt", "Parental leave is sixteen weeks.")
    calls = []
    monkeypatch.setattr(ingest, "parse_file", lambda *given: calls.append(given))
    assert len(base.add([docs.path]).unchanged) == 3 and calls == []
    monkeypatch.undo()
    docs.write("leave.txt", "Parental leave is sixteen weekz.")  # of the same size
    assert names(base.add([docs.path]).changed) == ["leave.txt"]


def test_one_document_under_two_names_and_two_ways(base, docs):
    docs.write("copy.txt", "Parental leave is sixteen weeks.")
    report = base.add([docs.path, docs.path / "sub", docs.path / "sub" / ".." / "leave.txt", docs.path])
    assert len(report.added) == 4
    hits = base.search("parental leave", 2)
    assert names(hit.source for hit in hits) == ["copy.txt", "leave.txt"]
    (docs.path / "copy.txt").unlink()
    base.add([docs.path])
    assert names(hit.source for hit in base.search("parental leave", 5, retrieval=[{"name": "keyword"}])) == [
        "leave.txt"
    ]
    sound(base)


def test_labels_and_meta_stay_are_added_to_and_go(base, docs):
    base.add([docs.path], labels=["acme"], meta={"year": 2025})
    assert names(base.add([docs.path]).unchanged) == names(each.source for each in base.documents())
    report = base.add([docs.path], meta={"team": "hr"})
    assert len(report.changed) == 3
    assert {(each.labels, each.meta["year"], each.meta["team"]) for each in base.documents()} == {
        (("acme",), 2025, "hr")
    }
    (hit,) = base.search("parental", 1)
    assert (hit.meta["year"], hit.meta["team"]) == (2025, "hr")
    base.add([docs.path], labels=[])
    assert {each.labels for each in base.documents()} == {()}
    sound(base)
    assert len(base.embedder.engine.embedded) == len(set(base.embedder.engine.embedded)) == 4, "3 texts and a question"


def test_documents_that_cannot_be_read_leave_the_rest(base, docs):
    docs.write("broken.pdf", b"%PDF-1.4 broken")
    docs.write("leave.txt", "Parental leave is twenty weeks.")
    (docs.path / "loop").symlink_to("loop")
    (docs.path / "sub" / "up").symlink_to(docs.path)
    (docs.path / "outside.txt").symlink_to("/etc/passwd")
    os.mkfifo(docs.path / "pipe")
    docs.write(".hidden.txt", "hidden")
    report = base.add([docs.path])
    assert names(each for each, _ in report.failed) == ["broken.pdf"] and "PDF" in report.failed[0][1]
    assert names(report.added) == ["leave.txt", "travel.txt", "休假.txt"]
    (failed,) = [each for each in base.documents() if each.status == "failed"]
    assert failed.source.endswith("broken.pdf") and failed.error
    docs.write("broken.pdf", "It is a text now.")
    assert names(base.add([docs.path]).added) == ["broken.pdf"]
    assert {each.status for each in base.documents()} == {"ready"}
    sound(base)


def test_a_document_that_breaks_keeps_what_it_said_and_one_that_is_mended_is_good(base, docs):
    source = docs.write("leave.md", "# Leave\n\nSixteen weeks.")
    base.add([docs.path])
    docs.write("leave.md", b"\x7fELF" + bytes(range(256)) * 4)
    report = base.add([docs.path])
    assert names(each for each, _ in report.failed) == ["leave.md"]
    (kept,) = [each for each in base.documents() if each.source == source]
    assert kept.status == "ready" and "changed since" in kept.error
    assert any(hit.source == source for hit in base.search("Sixteen weeks", 3))
    docs.write("leave.md", "# Leave\n\nSixteen weeks.")
    assert source in base.add([docs.path]).unchanged
    assert [each.error for each in base.documents() if each.source == source] == [""]
    sound(base)


def test_a_folder_that_cannot_be_listed_loses_nothing(base, docs, monkeypatch):
    base.add([docs.path])
    listing = type(docs.path).iterdir

    def closed(path):
        if path.name == "sub":
            raise PermissionError(errno.EACCES, "Permission denied")
        return listing(path)

    monkeypatch.setattr(type(docs.path), "iterdir", closed)
    report = base.add([docs.path])
    assert report.removed == () and names(each for each, _ in report.failed) == ["sub"]
    assert len(base.documents()) == 3


def test_a_file_without_permission_is_said(base, docs, monkeypatch):
    real = ingest.parse_file

    def refused(path, options):
        if str(path).endswith("travel.txt"):
            raise InputError(f"cannot read {path}: Permission denied")
        return real(path, options)

    monkeypatch.setattr(ingest, "parse_file", refused)
    report = base.add([docs.path])
    assert report.failed == ((str(docs.path / "travel.txt"), "cannot read travel.txt: Permission denied"),)
    assert len(report.added) == 2


def test_a_file_that_is_deleted_while_it_is_added(base, docs, monkeypatch):
    base.add([docs.path])
    docs.write("leave.txt", "Parental leave is twenty weeks.")
    docs.write("new.txt", "New.")
    listed = ingest._listed

    def then_deleted(sources):
        out = listed(sources)
        for name in ("leave.txt", "new.txt"):
            (docs.path / name).unlink(missing_ok=True)
        return out

    monkeypatch.setattr(ingest, "_listed", then_deleted)
    report = base.add([docs.path])
    assert (names(report.removed), report.failed, report.added) == (["leave.txt"], (), ())
    single = docs.write("new.txt", "New.")
    assert base.add([single]).failed == ((single, "it was deleted while documents were added"),)
    sound(base)


def test_a_hidden_file_added_by_name_stays_when_its_folder_is_added(base, docs):
    base.add([docs.write(".notes.txt", "A note.")])
    base.add([docs.path])
    assert ".notes.txt" in names(each.source for each in base.documents())


def test_parser_options_read_again_what_has_not_changed(base, docs):
    docs.write("prices.csv", "a;b\n1;2\n")
    base.add([docs.path])
    assert names(base.add([docs.path / "prices.csv"], options={"csv": {"rows": 1}}).changed) == ["prices.csv"]
    sound(base)


def test_a_url_is_fetched_again_and_replaced_only_when_it_has_changed(base, monkeypatch):
    pages = {"https://example.com/a": b"<h1>Leave</h1><p>Sixteen weeks.</p>"}

    def fetch(url):
        if url not in pages:
            raise InputError(f"{url} answered 404 Not Found")
        return Fetched(pages[url], "text/html", url)

    monkeypatch.setattr("luthier.knowledge.fetch.fetch", fetch)
    url = "https://example.com/a"
    assert base.add([url, "https://example.com/none"]).added == (url,)
    assert base.add([url]).unchanged == (url,)
    pages[url] = b"<h1>Leave</h1><p>Twenty weeks.</p>"
    assert base.add([url]).changed == (url,)
    assert "Twenty" in base.chunks(url)[-1].chunk.text
    pages.clear()
    assert base.add([url]).failed[0][0] == url
    assert base.chunks(url), "a page that is gone for a moment is not forgotten"
    sound(base)


def test_a_source_that_is_not_there_changes_nothing(base, docs):
    with pytest.raises(InputError, match="no such file"):
        base.add([docs.path, docs.path / "none"])
    assert base.documents() == []


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("luthier.knowledge.indexes.lancedb.LanceIndex.add", OSError(errno.ENOSPC, "No space left on device")),
        ("luthier.knowledge.embed.Embedder._keep", sqlite3.OperationalError("database or disk is full")),
        ("luthier.knowledge.ingest.put_documents", StoreError("the disk is full")),
        ("pathlib.Path.touch", OSError(errno.ENOSPC, "No space left on device")),
    ],
)
def test_a_full_disk_is_said_and_leaves_the_base_sound(base, docs, monkeypatch, where, error):
    base.add([docs.path])
    docs.write("leave.txt", "Parental leave is twenty weeks.")

    def full(*given, **named):
        raise error

    monkeypatch.setattr(where, full)
    with pytest.raises(StoreError, match="full"):
        base.add([docs.path])
    monkeypatch.undo()
    assert base.search("parental leave", 1)[0].chunk.text == "Parental leave is sixteen weeks."
    assert names(base.add([docs.path]).changed) == ["leave.txt"]
    assert base.search("parental leave", 1)[0].chunk.text == "Parental leave is twenty weeks."
    sound(base)


STEPS = [
    ("luthier.knowledge.ingest:cut", "after", 1),
    ("luthier.knowledge.ingest:write_rows", "before", 1),
    ("luthier.knowledge.ingest:write_rows", "after", 1),
    ("luthier.knowledge.ingest:write_rows", "after", 2),
    ("luthier.knowledge.ingest:put_documents", "after", 1),
    ("luthier.knowledge.indexes.lancedb:LanceIndex.remove", "after", 1),
    ("luthier.knowledge.ingest:drop_documents", "after", 1),
    ("luthier.knowledge.indexes.lancedb:LanceIndex.optimize", "before", 1),
    ("luthier.knowledge.indexes.lancedb:LanceIndex.optimize", "after", 1),
]


def test_killed_at_any_step_it_answers_soundly_and_the_next_addition_completes(base, docs, home, dying):
    before = {"leave.txt": "Parental leave is {} weeks.", "travel.txt": "Travel above {} euros needs approval."}
    work = f"from luthier.knowledge.base import open_base; open_base('kb').add([{str(docs.path)!r}])"
    base.add([docs.path])
    for number, (at, when, call) in enumerate(STEPS):
        olds = {hit.source: hit.chunk.text for hit in base.search("leave travel 年假", 20)}
        assert len(olds) == 3
        news = {docs.write(name, text.format(100 + number)): text.format(100 + number) for name, text in before.items()}
        gone = docs.path / "sub" / f"{number}.txt"
        (docs.path / "sub" / ("休假.txt" if number == 0 else f"{number - 1}.txt")).rename(gone)
        assert dying(home, work, at, when, call) == -9, at
        found = base.search("leave travel 年假", 20)
        assert len({hit.source for hit in found}) == len(found), (at, "a document in two states")
        for hit in found:
            good = (olds.get(hit.source), news.get(hit.source), "年假有十五天。")
            assert hit.chunk.text in good, (at, when, hit)
        assert len(found) >= 2, (at, "what is being changed is there in its old state or its new one")
        base.add([docs.path])
        assert held(base) == sorted([(gone.name, "年假有十五天。"), *((Path(k).name, v) for k, v in news.items())])
        sound(base)


def test_two_processes_add_to_one_base_at_once(base, docs, tmp_path):
    code = (
        "import sys; from luthier.knowledge.base import open_base\n"
        "with open_base('kb') as base:\n"
        "    print('ready', flush=True); sys.stdin.readline()\n"
        "    print(len(base.add(sys.argv[1:]).added), flush=True)\n"
    )
    other = type(docs)(tmp_path / "other")
    for number in range(6):
        docs.write(f"a{number}.txt", f"The letter a and number {number}.")
        other.write(f"b{number}.txt", f"The letter b and number {number}.")
    pipe, both = subprocess.PIPE, [str(other.path), str(docs.path)]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *both], stdin=pipe, stdout=pipe, text=True, env=dict(os.environ)
    )
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("\n")
    process.stdin.flush()
    mine = len(base.add([docs.path, other.path]).added)
    theirs = int(process.communicate(timeout=120)[0])
    assert sorted([mine, theirs]) == [0, 15], "one waited for the other, and found nothing left to do"
    sound(base)
    assert len(base.search("letter number", 20, retrieval=[{"name": "keyword"}])) == 12


def test_searches_while_documents_change_see_each_of_them_once(base, docs):
    base.add([docs.path])
    done, seen, wrong = threading.Event(), [], []

    def search():
        while not done.is_set():
            found = base.search("parental leave", 10, retrieval=[{"name": "dense"}])
            seen.append(len(found))
            if len(found) != 3 or len({hit.source for hit in found}) != 3:
                wrong.append([hit.chunk.text for hit in found])

    thread = threading.Thread(target=search)
    thread.start()
    try:
        for number in range(6):
            docs.write("leave.txt", f"Parental leave is {number} weeks.")
            docs.write("travel.txt", f"Travel above {number} euros needs approval.")
            base.add([docs.path])
    finally:
        done.set()
        thread.join()
    assert wrong == [] and len(seen) > 3


def test_a_base_that_another_process_removed_says_so(base, docs):
    from luthier.knowledge.base import remove_base

    remove_base("kb", store=open_store())
    with pytest.raises(NotFoundError, match="kb"):
        base.add([docs.path])
    with pytest.raises(NotFoundError, match="kb"):
        base.search("leave")
    with pytest.raises(NotFoundError, match="kb"):
        open_base("kb")
