"""Books: chapters in the order of the spine, locks, missing chapters, XML that is made to hurt."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from luthier.core.errors import DataError
from luthier.knowledge.parse import parse_bytes


def test_chapters_in_order(make: SimpleNamespace) -> None:
    data = make.epub(
        {"two.xhtml": "<h1>Second file, first chapter</h1>", "one.xhtml": "<h2>琴弓</h2><p>放回琴盒。</p>"},
        title="工坊",
    )
    document = parse_bytes(data, "book.epub")
    assert (document.title, document.media_type) == ("工坊", "application/epub+zip")
    assert [(block.text, block.place) for block in document.blocks] == [
        ("Second file, first chapter", "two.xhtml"),
        ("琴弓", "one.xhtml"),
        ("放回琴盒。", "one.xhtml"),
    ]


def test_a_missing_chapter_is_a_warning(make: SimpleNamespace) -> None:
    package = make.epub({"one.xhtml": "<p>kept words</p>"})
    data = make.replaced(
        package, "OPS/book.opf",
        lambda text: text.replace("</manifest>", '<item id="x" href="gone.xhtml" media-type="application/xhtml+xml"/></manifest>')
        .replace("</spine>", '<itemref idref="x"/></spine>'),
    )  # fmt: skip
    document = parse_bytes(data, "book.epub")
    assert document.text == "kept words" and "gone.xhtml was left out" in document.warnings[0]


def test_a_chapter_that_is_listed_often_is_read_once(make: SimpleNamespace) -> None:
    data = make.epub({"one.xhtml": "<p>words</p>"})
    data = make.replaced(
        data, "OPS/book.opf", lambda text: text.replace("<spine>", "<spine>" + '<itemref idref="c0"/>' * 50_000)
    )
    assert parse_bytes(data, "book.epub").text == "words"


@pytest.mark.parametrize("lock", ["META-INF/rights.xml", "META-INF/license.lcpl"])
def test_locked_books(make: SimpleNamespace, lock: str) -> None:
    data = make.zip({"mimetype": "application/epub+zip", lock: "<x/>"})
    with pytest.raises(DataError, match=r"book\.epub is locked"):
        parse_bytes(data, "book.epub")


def test_entity_bombs_are_refused(make: SimpleNamespace) -> None:
    bomb = '<!DOCTYPE p [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;">]>'
    data = make.replaced(make.epub({"one.xhtml": "<p>x</p>"}), "OPS/book.opf", lambda text: bomb + text)
    with pytest.raises(DataError, match=r"book\.epub cannot be read as epub"):
        parse_bytes(data, "book.epub")
