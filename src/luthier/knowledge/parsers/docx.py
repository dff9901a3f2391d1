"""Word documents (Office Open XML): headings, lists, tables, formulas, notes, comments, headers and footers."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Any

from luthier.core.catalog import EntryConfig
from luthier.core.document import Block
from luthier.core.errors import DataError
from luthier.knowledge.parsers._parsed import Parsed, markdown_table

MEDIA_TYPES = ("application/vnd.openxmlformats-officedocument.wordprocessingml.document",)
SUFFIXES = (".docx", ".docm", ".dotx")

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_M = "{http://schemas.openxmlformats.org/officeDocument/2006/math}"
_HEADING = re.compile(r"(?:heading|标题|überschrift|titre) ?(\d)", re.IGNORECASE)
_NOTES = ("footnotes", "endnotes", "comments")


class Config(EntryConfig):
    """``headers``: headers and footers are read (each once); ``comments``: comments and notes."""

    headers: bool = True
    comments: bool = True


def parse(data: bytes, name: str, config: Config) -> Parsed:
    """Blocks in the document's order. Raises DataError for a damaged file."""
    from docx import Document

    try:
        document = Document(io.BytesIO(data))
        blocks = list(_content(document))
        if config.headers:
            blocks += _headers(document)
        if config.comments:
            blocks += _notes(document)
        title = (document.core_properties.title or "").strip()
    except Exception as error:  # python-docx raises whatever a broken package leads it to
        raise DataError(f"{name} is no Word document that can be read: {_line(error)}") from error
    return Parsed(blocks, title=title)


def _content(container: Any) -> Iterator[Block]:
    items: list[str] = []
    for item in container.iter_inner_content():
        if hasattr(item, "rows"):
            if items:
                yield Block("\n".join(items), "list")
                items = []
            yield from _table(item)
            continue
        text = _text(item._p)
        level = _level(item)
        listed = _list_depth(item)
        if listed is not None and text and not level:
            items.append(f"{'  ' * listed}- {text}")
            continue
        if items:
            yield Block("\n".join(items), "list")
            items = []
        if text:
            yield Block(text, "heading", level) if level else Block(text)
    if items:
        yield Block("\n".join(items), "list")


def _text(element: Any) -> str:
    """Runs, formulas and text boxes of a paragraph; deleted text is left out."""
    out = []
    for node in element.iter():
        if node.tag in (f"{_W}t", f"{_M}t"):
            if not any(parent.tag in (f"{_W}del", f"{_W}moveFrom") for parent in node.iterancestors()):
                out.append(node.text or "")
        elif node.tag == f"{_W}tab":
            out.append("\t")
        elif node.tag in (f"{_W}br", f"{_W}cr") or (node.tag == f"{_W}p" and node is not element):
            out.append("\n")
    return "".join(out).strip()


def _level(paragraph: Any) -> int:
    style = paragraph.style
    name = (style.name or "") if style is not None else ""
    if name.lower() == "title":
        return 1
    found = _HEADING.match(name)
    if found:
        return min(int(found.group(1)), 6) or 1
    outline = paragraph._p.find(f"{_W}pPr/{_W}outlineLvl")
    level = int(outline.get(f"{_W}val", "9")) if outline is not None else 9
    return level + 1 if level < 6 else 0


def _list_depth(paragraph: Any) -> int | None:
    numbered = paragraph._p.find(f"{_W}pPr/{_W}numPr")
    if numbered is None:
        name = (paragraph.style.name or "") if paragraph.style is not None else ""
        return 0 if name.startswith("List ") else None
    depth = numbered.find(f"{_W}ilvl")
    return int(depth.get(f"{_W}val", "0")) if depth is not None else 0


def _table(table: Any) -> Iterator[Block]:
    rows = []
    for row in table.rows:
        cells, last = [], None
        for cell in row.cells:
            if cell._tc is not last:  # a merged cell comes once for each column that it spans
                cells.append("\n".join(filter(None, (_text(each) for each in cell._tc.iter(f"{_W}p")))))
            else:
                cells.append("")
            last = cell._tc
        rows.append(cells)
    text = markdown_table(rows)
    if text:
        yield Block(text, "table")


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


def _line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0] or type(error).__name__
