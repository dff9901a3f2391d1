"""Word documents (Office Open XML): headings, lists, tables, formulas, notes, comments, headers and footers."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Any

from luthier.core.catalog import EntryConfig
from luthier.core.document import Block
from luthier.knowledge.parsers._parsed import Parsed, markdown_table

MEDIA_TYPES = ("application/vnd.openxmlformats-officedocument.wordprocessingml.document",)
SUFFIXES = (".docx", ".docm", ".dotx")

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_M = "{http://schemas.openxmlformats.org/officeDocument/2006/math}"
_MC = "{http://schemas.openxmlformats.org/markup-compatibility/2006}"
_HEADING = re.compile(r"(?:heading|标题|überschrift|titre) ?(\d)", re.IGNORECASE)
_HOLDERS = frozenset(f"{_W}{name}" for name in ("sdt", "sdtContent", "customXml", "smartTag", "ins", "moveTo"))
_LEFT_OUT = frozenset([f"{_W}del", f"{_W}moveFrom", f"{_MC}Fallback"])
_MOST_SPAN = 100
_NOTES = ("footnotes", "endnotes", "comments")


class Config(EntryConfig):
    """``headers``: headers and footers are read (each once); ``comments``: comments and notes."""

    headers: bool = True
    comments: bool = True


def parse(data: bytes, name: str, config: Config) -> Parsed:
    """Blocks in the document's order, with the pages that Word broke it into when it was last saved. Raises DataError for a damaged file."""
    from docx import Document

    document = Document(io.BytesIO(data))
    body = document.element.body
    pages = 1 if next(body.iter(f"{_W}lastRenderedPageBreak"), None) is not None else None
    reading = _Reading(document, pages)
    blocks = list(reading.content(body))
    if config.headers:
        blocks += _headers(document)
    if config.comments:
        blocks += _notes(document)
    return Parsed(blocks, title=(document.core_properties.title or "").strip(), pages=reading.page)


class _Reading:
    """A walk through the body; ``page`` is the one that it is on, None when the file does not know its pages."""

    def __init__(self, document: Any, page: int | None) -> None:
        self.page = page
        self._styles = {style.style_id: style for style in document.styles}
        self._items: list[str] = []

    def content(self, container: Any) -> Iterator[Block]:
        """The blocks of what holds paragraphs and tables (content controls are looked into)."""
        yield from self._walk(container)
        yield from self._end_list()

    def _walk(self, container: Any) -> Iterator[Block]:
        for element in container:
            if element.tag == f"{_W}p":
                yield from self._paragraph(element)
            elif element.tag == f"{_W}tbl":
                yield from self._end_list()
                text = markdown_table(_grid(element))
                if text:
                    yield Block(text, "table", page=self.page)
                self._turn(element)
            elif element.tag in _HOLDERS:
                yield from self._walk(element)

    def _paragraph(self, element: Any) -> Iterator[Block]:
        text = _text(element)
        style = self._style(element)
        level = _level(element, style)
        depth = None if level else _list_depth(element, style)
        if depth is not None and text:
            self._items.append(f"{'  ' * depth}- {text}")
        else:
            yield from self._end_list()
            if text:
                yield Block(text, "heading", level, self.page) if level else Block(text, page=self.page)
        self._turn(element)

    def _end_list(self) -> Iterator[Block]:
        if self._items:
            yield Block("\n".join(self._items), "list", page=self.page)
            self._items = []

    def _turn(self, element: Any) -> None:
        """Count the page breaks inside of an element."""
        if self.page is not None:
            self.page += sum(1 for _ in element.iter(f"{_W}lastRenderedPageBreak"))

    def _style(self, element: Any) -> Any:
        named = element.find(f"{_W}pPr/{_W}pStyle")
        return self._styles.get(named.get(f"{_W}val")) if named is not None else None


def _text(element: Any) -> str:
    """Runs, formulas and text boxes of a paragraph; deleted text, and the older form of a text box that stands beside the newer, are left out."""
    out: list[str] = []
    _gather(element, element, out)
    return "".join(out).strip()


def _gather(node: Any, paragraph: Any, out: list[str]) -> None:
    if node.tag in _LEFT_OUT:
        return
    if node.tag in (f"{_W}t", f"{_M}t"):
        out.append(node.text or "")
    elif node.tag == f"{_W}tab":
        out.append("\t")
    elif node.tag in (f"{_W}br", f"{_W}cr") or (node.tag == f"{_W}p" and node is not paragraph):
        out.append("\n")
    for child in node:
        _gather(child, paragraph, out)


def _level(element: Any, style: Any) -> int:
    """1 to 6 for a heading, by its own outline level or that of its style or a style which that is based on; else 0."""
    outlines = [element.find(f"{_W}pPr/{_W}outlineLvl")]
    for _ in range(10):
        if style is None:
            break
        name = style.name or ""
        found = _HEADING.match(name)
        if name.lower() == "title" or found:
            return min(max(int(found.group(1)), 1), 6) if found else 1
        outlines.append(style.element.find(f"{_W}pPr/{_W}outlineLvl"))
        style = getattr(style, "base_style", None)
    level = next((_number(each, 9) for each in outlines if each is not None), 9)
    return level + 1 if level < 6 else 0


def _list_depth(element: Any, style: Any) -> int | None:
    numbered = element.find(f"{_W}pPr/{_W}numPr")
    if numbered is None:
        return 0 if style is not None and (style.name or "").startswith("List ") else None
    depth = numbered.find(f"{_W}ilvl")
    return min(_number(depth, 0), 8) if depth is not None else 0


def _number(element: Any, otherwise: int) -> int:
    text = str(element.get(f"{_W}val", ""))
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else otherwise


def _grid(table: Any) -> list[list[str]]:
    """The cells; a merged cell's text stands in its first place, its other places are empty."""
    rows = []
    for row in table.iter(f"{_W}tr"):
        if next(row.iterancestors(f"{_W}tbl")) is not table:
            continue  # of a table inside of a cell, whose text is the cell's
        cells: list[str] = []
        for cell in row.iter(f"{_W}tc"):
            if next(cell.iterancestors(f"{_W}tr")) is not row:
                continue
            span, merged = cell.find(f"{_W}tcPr/{_W}gridSpan"), cell.find(f"{_W}tcPr/{_W}vMerge")
            below = merged is not None and merged.get(f"{_W}val") != "restart"
            cells.append("" if below else "\n".join(filter(None, (_text(each) for each in cell.iter(f"{_W}p")))))
            cells += [""] * (min(_number(span, 1), _MOST_SPAN) - 1 if span is not None else 0)
        rows.append(cells)
    return rows


def _headers(document: Any) -> Iterator[Block]:
    seen = set()
    for section in document.sections:
        for place, part in (("header", section.header), ("footer", section.footer)):
            text = "\n".join(filter(None, (_text(each._p) for each in part.paragraphs)))
            if text and text not in seen:
                seen.add(text)
                yield Block(text, place=place)


def _notes(document: Any) -> Iterator[Block]:
    from lxml import etree

    for relation in document.part.rels.values():
        kind = relation.reltype.rpartition("/")[2]
        if kind not in _NOTES or relation.is_external:
            continue
        parser = etree.XMLParser(resolve_entities=False, no_network=True)
        root = etree.fromstring(relation.target_part.blob, parser)
        for note in root:
            text = "\n".join(filter(None, (_text(each) for each in note.iter(f"{_W}p"))))
            if text:
                yield Block(text, place=kind.removesuffix("s"))
