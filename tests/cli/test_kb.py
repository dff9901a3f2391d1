from __future__ import annotations

import json

import pytest

from luthier.cli._passages import passage, place, words_of
from luthier.core.document import Chunk, Hit

HANDBOOK = "# Leave\n\n## Parental leave\n\nParents receive sixteen weeks of paid leave.\n"
CHINESE = "员工每年享有十五天带薪年假。\n"


@pytest.fixture
def docs(tmp_path):
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "handbook.md").write_text(HANDBOOK, encoding="utf-8")
    (folder / "休假.txt").write_text(CHINESE, encoding="utf-8")
    return folder


@pytest.fixture
def made(run, docs):
    """A base ``hr`` that holds ``docs``, embedded by the fake engine."""
    assert run("kb", "create", "hr", str(docs), "--embedder", "fake", "--description", "Rules")[0] == 0
    return docs


def documents(run):
    return json.loads(run("kb", "show", "hr", "--json")[1])["documents"]


def test_create_add_show_list_and_remove(run, docs):
    code, out, err = run("kb", "create", "hr", "--embedder", "fake", "--chunker", "fixed", "-o", "chunker.tokens=64")
    assert (code, out) == (0, "") and "luthier kb add hr" in err
    code, out, err = run("kb", "add", "hr", str(docs), "--label", "acme", "--meta", "year=2026")
    assert code == 0 and "2 added" in out and "add: 2/2" in err
    assert "2 unchanged; 0 new chunks" in run("kb", "add", "hr", str(docs))[1]
    shown = run("kb", "show", "hr")[1]
    for said in ("fixed (tokens=64)", "2 documents, 2 chunks", "handbook.md", "休假.txt", "acme"):
        assert said in shown
    assert {each["meta"]["year"] for each in documents(run)} == {"2026"}
    listed = run("kb", "list")[1]
    assert "hr" in listed and "fixed" in listed
    assert [each["name"] for each in json.loads(run("kb", "list", "--json")[1])] == ["hr"]
    assert run("kb", "rm", "hr", "*.md")[1] == "1 document removed from hr\n"
    assert [each["source"] for each in documents(run)] == [str(docs / "休假.txt")]
    code, _, err = run("kb", "rm", "hr")
    assert code == 2 and "--yes" in err, "nobody is there to be asked"
    assert run("kb", "rm", "hr", "--yes")[0] == 0
    assert run("kb", "show", "hr")[0] == 2


def test_a_broken_file_costs_the_others_nothing_and_is_said(run, docs):
    (docs / "broken.pdf").write_bytes(b"%PDF-1.4 broken")
    run("kb", "create", "hr", "--embedder", "fake")
    code, out, err = run("kb", "add", "hr", str(docs))
    assert code == 2 and "2 added, 1 failed" in out and "broken.pdf" in err
    assert run("kb", "add", "hr", str(docs), "--skip-bad")[0] == 0
    assert json.loads(run("kb", "add", "hr", str(docs), "--json")[1])["failed"][0][0] == str(docs / "broken.pdf")
    assert "broken.pdf" in run("kb", "show", "hr", "--failed")[1]
    assert "handbook.md" not in run("kb", "show", "hr", "--failed")[1]


def test_labels_stay_change_and_go(run, made):
    def labels():
        return {tuple(each["labels"]) for each in documents(run)}

    run("kb", "add", "hr", str(made), "--label", "acme", "--label", "board")
    assert labels() == {("acme", "board")}
    run("kb", "add", "hr", str(made))
    assert labels() == {("acme", "board")}
    assert "2 changed" in run("kb", "add", "hr", str(made), "--no-labels")[1]
    assert labels() == {()}


def test_search_shows_where_it_is_and_marks_the_words(run, made):
    code, out, _ = run("kb", "search", "hr", "How long is parental leave?", "-k", "1", "--explain")
    assert code == 0
    assert "handbook.md" in out and "sixteen weeks" in out and "doc_" in out and "keyword" in out
    assert "休假.txt" in run("kb", "search", "hr", "年假有几天", "-k", "1", "--retrieval", "keyword")[1]
    (hit,) = json.loads(run("kb", "search", "hr", "年假", "--source", "*.txt", "--json")[1])
    assert hit["place"].startswith("休假.txt") and hit["chunk"]["text"] == CHINESE.strip()
    assert "Nothing was found" in run("kb", "search", "hr", "leave", "--before", "2001-01-01")[2]
    assert json.loads(run("kb", "search", "hr", "leave", "--meta", "year=1999", "--json")[1]) == []
    assert run("kb", "search", "hr", "leave", "--retrieval", "[{name: mmr}, {name: dense, exact: true}]")[0] == 0


def test_search_as_somebody_with_labels(run, made, tmp_path):
    (tmp_path / "secret.txt").write_text("The board's leave is unpaid.")
    run("kb", "add", "hr", str(tmp_path / "secret.txt"), "--label", "board")
    found = {
        label: run("kb", "search", "hr", "leave", "--json", *(["--label", label] if label else []))[1]
        for label in ("", "board", "acme")
    }
    assert "secret.txt" in found[""] and "secret.txt" in found["board"]
    assert "secret.txt" not in found["acme"] and "handbook.md" in found["acme"]


def test_settings_are_checked_kept_and_used(run, made):
    code, out, _ = run("kb", "set", "hr", "retrieval=[mmr, keyword]", "answer.k=8", "description=Everything")
    assert code == 0 and "mmr <- keyword" in out and "k=8" in out and "Everything" in out
    kept = json.loads(run("kb", "show", "hr", "--json")[1])
    assert kept["retrieval"] == [{"name": "mmr"}, {"name": "keyword"}]
    assert "mmr <- keyword" in run("kb", "search", "hr", "leave", "--explain")[2]
    run("kb", "set", "hr", "retrieval=", "answer.k=")
    assert json.loads(run("kb", "show", "hr", "--json")[1])["retrieval"] == []
    assert json.loads(run("kb", "show", "hr", "--json")[1])["answer"] == {}


def test_rebuild_with_another_chunker(run, made):
    before = {each["id"] for each in documents(run)}
    code, out, _ = run("kb", "rebuild", "hr", "--chunker", "sentence", "-o", "index.metric=dot")
    assert code == 0 and "2 changed" in out
    kept = json.loads(run("kb", "show", "hr", "--json")[1])
    assert (kept["chunker"]["name"], kept["index"]) == ("sentence", {"name": "lancedb", "metric": "dot"})
    assert not before & {each["id"] for each in kept["documents"]}
    assert "handbook.md" in run("kb", "search", "hr", "parental leave", "-k", "1")[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["create", "hr", "--embedder", "fake"], "there already"),
        (["create", "../x"], "name must"),
        (["create", ".x"], "begin with"),
        (["create", "new", "--embedder", "none-such"], "none-such"),
        (["create", "new", "--chunker", "fixd"], "fixed"),
        (["create", "new", "-o", "chunker.tokens=0"], "chunker recursive"),
        (["create", "new", "-o", "colour=red"], "colour"),
        (["create", "new", "-o", "chunker.tokens"], "key=value"),
        (["add", "nobody", "."], "nobody"),
        (["add", "hr", "/none/such"], "/none/such"),
        (["add", "hr", ".", "--label", "a", "--no-labels"], "--no-labels"),
        (["add", "hr", ".", "--label", "a,b"], "label"),
        (["add", "hr", ".", "--meta", "year"], "KEY=VALUE"),
        (["add", "hr", ".", "-o", "pdff.password=x"], "pdff"),
        (["add", "hr", ".", "-o", "pdf.passwort=x"], "passwort"),
        (["rm", "hr", "none.txt"], "none.txt"),
        (["rm", "nobody", "--yes"], "nobody"),
        (["search", "hr", "  "], "question"),
        (["search", "hr", "x", "-k", "5000"], "k must"),
        (["search", "hr", "x", "--after", "soon"], "after must"),
        (["search", "hr", "x", "--retrieval", "rerank"], "--reranker"),
        (["search", "hr", "x", "--retrieval", "hyde"], "--writer"),
        (["search", "hr", "x", "--retrieval", "dense,mmr"], "last step"),
        (["set", "hr", "chunker.tokens=3"], "kb rebuild"),
        (["set", "hr", "answer.k=0"], "answer.k"),
        (["set", "hr", "retrieval=3"], "retrieval"),
        (["set", "hr", "answr.k=3"], "answer"),
        (["rebuild", "hr", "-o", "answer.k=3"], "answer"),
        (["rebuild", "nobody"], "nobody"),
    ],
)
def test_what_is_refused(run, made, arguments, said):
    code, out, err = run("kb", *arguments)
    assert (code, out) == (2, "")
    assert said in err and "Traceback" not in err


def test_words_to_mark():
    def marked(question, text):
        found = words_of(question)
        return [each.group() for each in found.finditer(text)] if found else []

    assert marked("How are refunds paid?", "A refund was paid; the unpaid waits") == ["refund", "paid"]
    assert marked("年假有多少天", "带薪年假十五天") == ["年假"]
    assert marked("what is it?", "it is what it is") == []


def test_a_long_passage_is_cut_around_the_words_it_was_found_by():
    text = "nothing here " * 80 + "the deposit is returned in March " + "nor there " * 80
    shown = passage(text, "When is the deposit returned?", 60, lines=2).plain
    assert "deposit is returned" in shown and shown.startswith("… ") and shown.endswith(" …") and len(shown) <= 124
    chinese = passage("没有" * 200 + "押金三月退还" + "没有" * 200, "押金什么时候退还?", 40, lines=2).plain
    assert "押金三月退还" in chinese and len(chinese) <= 42


def test_the_place_of_a_passage():
    chunk = Chunk("c", "text", 0, (0, 1), headings=("Leave", "Parental"), pages=(3, 4))
    assert place(Hit(chunk, "d", "/docs/handbook.pdf", "Handbook")) == "handbook.pdf, pages 3-4, Leave > Parental"
    assert place(Hit(chunk, "d", "https://example.com/a")) == "https://example.com/a, pages 3-4, Leave > Parental"
