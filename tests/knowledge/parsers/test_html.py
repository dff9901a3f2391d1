"""HTML: structure, what is left out, encodings, merged cells, and pages that are made to hurt."""

from __future__ import annotations

import time

import pytest

from luthier.core.document import Document
from luthier.knowledge.parse import parse_bytes


def _page(body: str) -> Document:
    return parse_bytes(f"<html><body>{body}</body></html>".encode(), "page.html")


def test_structure_in_both_languages() -> None:
    document = parse_bytes(
        "<!doctype html><html><head><title>保养 Care</title></head><body><h1>Bow</h1><p>Loosen the <b>hair</b>.</p>"
        "<ul><li>cloth<ul><li>soft</li></ul></li><li>rosin</li></ul><h2>琴弓</h2><p>放回琴盒。</p><pre>a  b</pre>"
        "<blockquote>Ana said so</blockquote></body></html>".encode(),
        "https://example.com/care.html?page=1",
    )
    assert document.title == "保养 Care" and document.media_type == "text/html"
    assert [(block.kind, block.level, block.text) for block in document.blocks] == [
        ("heading", 1, "Bow"),
        ("paragraph", 0, "Loosen the hair."),
        ("list", 0, "- cloth\n  - soft\n- rosin"),
        ("heading", 2, "琴弓"),
        ("paragraph", 0, "放回琴盒。"),
        ("code", 0, "a  b"),
        ("quote", 0, "Ana said so"),
    ]


def test_what_is_no_content_is_left_out() -> None:
    text = _page(
        "<nav>menu</nav><script>alert(1)</script><style>p{}</style><p hidden>one</p><p style='display: none'>two</p>"
        "<!-- three --><form><p>asked in a form</p><input value='four'><button>five</button></form><p>said</p>"
    ).text
    assert text == "asked in a form\n\nsaid"


def test_merged_cells() -> None:
    (table,) = _page(
        "<table><tr><th colspan=2>wide</th><th rowspan=2>tall</th></tr><tr><td>1</td><td>2</td></tr></table>"
    ).blocks
    assert table.text.splitlines() == ["| wide |  | tall |", "| --- | --- | --- |", "| 1 | 2 |  |"]


def test_a_table_that_arranges_the_page_is_read_through() -> None:
    document = _page("<table><tr><td><h2>Left</h2><p>one</p></td></tr></table>")
    assert [block.kind for block in document.blocks] == ["heading", "paragraph"]


@pytest.mark.parametrize(
    ("charset", "text"), [("gb2312", "小提琴需要保养"), ("windows-1252", "Der Kaffee ist schön – heiß")]
)
def test_the_declared_encoding_is_used(charset: str, text: str) -> None:
    data = f'<html><head><meta charset="{charset}"></head><body><p>{text}</p></body></html>'.encode(charset)
    assert parse_bytes(data, "page.html").text == text


@pytest.mark.parametrize("tag", ["div", "b", "ul><li", "table><tr><td", "blockquote"])
def test_deep_nesting_ends_in_text_or_an_error_that_says_so(tag: str) -> None:
    data = f"<html><body><p>above</p>{f'<{tag}>' * 20_000}deep".encode()
    started = time.perf_counter()
    document = parse_bytes(data, "deep.html")
    assert "above" in document.text
    assert time.perf_counter() - started < 10


def test_merged_cells_that_multiply_are_bounded() -> None:
    cell = '<td colspan="100" rowspan="100">x</td>'
    started = time.perf_counter()
    document = _page(f"<table>{f'<tr>{cell * 20}</tr>' * 300}</table>")
    assert document.text.count("x") == 6000
    assert len(document.text) < 5_000_000 and time.perf_counter() - started < 10


def test_entities_are_not_expanded_and_nothing_is_fetched() -> None:
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 10))
    data = f'<!DOCTYPE html [<!ENTITY e0 "bomb"><!ENTITY file SYSTEM "file:///etc/passwd">{entities}]><html><body><p>kept &e9; &file;</p></body></html>'
    text = parse_bytes(data.encode(), "bomb.html").text
    assert "kept" in text and len(text) < 2000 and "root:" not in text
