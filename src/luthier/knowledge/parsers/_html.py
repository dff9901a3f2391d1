"""HTML into blocks: for pages, mails and books."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lxml import etree, html

from luthier.core.document import Block, BlockKind
from luthier.core.errors import DataError
from luthier.knowledge.parsers._parsed import markdown_table

_SKIPPED = frozenset([
    "script", "style", "noscript", "template", "svg", "canvas", "iframe", "object", "embed", "button", "select", "option", "input", "textarea", "nav", "head",
])  # fmt: skip
_BLOCKS: dict[str, BlockKind] = {
    "p": "paragraph", "div": "paragraph", "pre": "code", "blockquote": "quote", "figcaption": "caption", "dt": "paragraph",
    "dd": "paragraph", "address": "paragraph", "summary": "paragraph", "caption": "caption",
}  # fmt: skip
_CONTAINERS = frozenset([
    "html", "body", "main", "article", "section", "header", "footer", "aside", "figure", "details", "dl", "center", "tbody", "fieldset", "hgroup", "search", "form",
])  # fmt: skip
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_SPACE = re.compile(r"[ \t\r\f\v\u00a0]*\n[ \t\r\f\v\u00a0]*|[ \t\r\f\v\u00a0]+")
_MOST_SPANNED = 100_000
"""Places of a table that merged cells may take; beyond that they count as single ones."""


def html_blocks(
    markup: str | bytes, name: str, *, encoding: str | None = None, page: int | None = None
) -> tuple[str, list[Block]]:
    """(title, blocks) of a page's text; scripts, the controls of forms, navigation and what is hidden are left out.

    Raises DataError for markup that holds nothing to read or is nested too deeply.
    """
    parser = html.HTMLParser(encoding=encoding, no_network=True, huge_tree=False, remove_comments=True, remove_pis=True)
    try:
        root = html.document_fromstring(markup, parser=parser, ensure_head_body=True)
    except (etree.ParserError, etree.XMLSyntaxError, ValueError) as error:
        raise DataError(f"{name} is no HTML that can be read: {error}") from error
    title = _text(found) if (found := root.find(".//title")) is not None else ""
    main = _main(root)
    try:
        return title, [block for block in _walk(main, page, 0) if block.text]
    except RecursionError as error:
        raise DataError(f"{name} is nested too deeply") from error


def _main(root: html.HtmlElement) -> html.HtmlElement:
    """What the page marks as its content when that is most of its text, else the whole body."""
    body = root.find("body") if root.find("body") is not None else root
    marked = body.xpath('.//main | .//*[@role="main"]') or body.xpath(".//article")
    if len(marked) == 1 and len(marked[0].text_content()) > 0.5 * len(body.text_content()):
        return marked[0]
    return body


def _walk(element: html.HtmlElement, page: int | None, depth: int) -> Iterator[Block]:
    """The blocks of an element's content; text that stands between blocks is a paragraph of its own."""
    loose: list[str] = [element.text or ""]
    for child in element:
        tag = child.tag if isinstance(child.tag, str) else ""
        if _is_skipped(child, tag):
            pass
        elif _is_block(child, tag):
            yield from _paragraph(loose, page)
            loose = []
            yield from _block(child, tag, page, depth + 1)
        else:
            loose.append(_inline(child))
        loose.append(child.tail or "")
    yield from _paragraph(loose, page)


def _block(element: html.HtmlElement, tag: str, page: int | None, depth: int) -> Iterator[Block]:
    if tag in _HEADINGS:
        yield Block(_text(element), "heading", _HEADINGS[tag], page=page)
    elif tag == "table":
        yield from _table(element, page, depth)
    elif tag in ("ul", "ol", "menu"):
        yield Block("\n".join(_items(element, 0)), "list", page=page)
    elif tag == "pre":
        yield Block((element.text_content() or "").strip("\n"), "code", page=page)
    elif tag in _CONTAINERS or tag in ("div", "li", "td", "th", "tr", "dd", "dt") or _holds_blocks(element):
        yield from _walk(element, page, depth)
    else:
        yield Block(_text(element), _BLOCKS.get(tag, "paragraph"), page=page)


def _table(table: html.HtmlElement, page: int | None, depth: int) -> Iterator[Block]:
    """A Markdown table; one that only arranges the page (a single column, or blocks of its own in its cells) is read through."""
    rows = [row for row in table.iter("tr") if next(row.iterancestors("table")) is table]
    if any(len(list(cell.iter("table"))) for row in rows for cell in row) or max(map(len, rows), default=0) < 2:
        for row in rows:
            for cell in row:
                yield from _walk(cell, page, depth + 1)
        return
    for caption in table.findall("caption"):
        yield Block(_text(caption), "caption", page=page)
    yield Block(markdown_table(_cells(rows)), "table", page=page)


def _cells(rows: list[html.HtmlElement]) -> list[list[str]]:
    """The grid of a table: a merged cell's text stands in its first place, its other places are empty."""
    grid: list[list[str]] = []
    held: dict[tuple[int, int], str] = {}
    spanned = 0
    for number, row in enumerate(rows):
        line: list[str] = []
        for cell in row:
            if cell.tag not in ("td", "th"):
                continue
            while (number, len(line)) in held:
                line.append(held.pop((number, len(line))))
            wide, high = _span(cell, "colspan"), min(_span(cell, "rowspan"), len(rows) - number)
            spanned += wide * high
            if spanned > _MOST_SPANNED:
                wide = high = 1
            for below in range(1, high):
                for beside in range(wide):
                    held[(number + below, len(line) + beside)] = ""
            line += [_text(cell)] + [""] * (wide - 1)
        grid.append(line)
    return grid


def _span(cell: html.HtmlElement, name: str) -> int:
    text = cell.get(name, "1").strip()
    return min(max(int(text), 1), 100) if text.isascii() and text.isdigit() else 1


def _items(element: html.HtmlElement, depth: int) -> Iterator[str]:
    number = 0
    for item in element:
        if item.tag in ("ul", "ol", "menu"):
            yield from _items(item, depth + 1)
        elif item.tag == "li":
            number += 1
            nested = [child for child in item.iter("ul", "ol", "menu") if next(child.iterancestors("li")) is item]
            for child in nested:
                tail, parent = child.tail, child.getparent()
                parent.remove(child)  # its text is written below, indented
                if tail and tail.strip():
                    item.append(html.fragment_fromstring(tail.strip(), create_parent="span"))
            mark = f"{number}." if element.tag == "ol" else "-"
            text = _text(item)
            if text:
                yield f"{'  ' * depth}{mark} {text}"
            for child in nested:
                yield from _items(child, depth + 1)


def _is_skipped(element: html.HtmlElement, tag: str) -> bool:
    hidden = element.get("hidden") is not None or element.get("aria-hidden") == "true"
    style = (element.get("style") or "").replace(" ", "").lower()
    return not tag or tag in _SKIPPED or hidden or "display:none" in style or element.get("role") == "navigation"


def _is_block(element: html.HtmlElement, tag: str) -> bool:
    known = tag in _HEADINGS or tag in _BLOCKS or tag in _CONTAINERS
    return known or tag in ("table", "ul", "ol", "menu", "li", "hr", "tr", "td", "th") or _holds_blocks(element)


def _holds_blocks(element: html.HtmlElement) -> bool:
    return any(
        isinstance(each.tag, str)
        and (each.tag in _HEADINGS or each.tag in _BLOCKS or each.tag in ("table", "ul", "ol"))
        for each in element.iterdescendants()
    )


def _paragraph(texts: list[str], page: int | None) -> Iterator[Block]:
    text = _clean("".join(texts))
    if text:
        yield Block(text, page=page)


def _text(element: html.HtmlElement) -> str:
    return _clean(_inline(element))


def _inline(element: html.HtmlElement) -> str:
    """The text of an element, ``br`` as a line break, without what is skipped."""
    out = [element.text or ""]
    if element.tag == "br":
        out.append("\n")
    if element.tag == "img" and element.get("alt"):
        out.append(element.get("alt") or "")
    for child in element:
        tag = child.tag if isinstance(child.tag, str) else ""
        if not _is_skipped(child, tag):
            inner = _inline(child)
            apart = tag in _BLOCKS or tag in ("li", "td", "th", "tr", "table")
            out.append(f"\n{inner}\n" if apart else inner)
        out.append(child.tail or "")
    return "".join(out)


def _clean(text: str) -> str:
    """Runs of spaces as one, lines trimmed, no empty lines."""
    return re.sub(r"\n+", "\n", _SPACE.sub(lambda found: "\n" if "\n" in found.group() else " ", text)).strip()
