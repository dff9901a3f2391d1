"""Markdown: headings, lists, tables, code, quotes (CommonMark, with GitHub's tables)."""

from __future__ import annotations

import re

from markdown_it import MarkdownIt
from markdown_it.token import Token

from luthier.core.catalog import EntryConfig
from luthier.core.document import Block, BlockKind
from luthier.knowledge.parsers._parsed import Parsed
from luthier.knowledge.parsers._text import decode, lines_place

MEDIA_TYPES = ("text/markdown",)
SUFFIXES = (".md", ".markdown", ".mdx", ".qmd")

_FRONT = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
_KINDS: dict[str, BlockKind] = {
    "paragraph_open": "paragraph", "bullet_list_open": "list", "ordered_list_open": "list", "table_open": "table",
    "blockquote_open": "quote", "fence": "code", "code_block": "code", "html_block": "paragraph",
}  # fmt: skip


class Config(EntryConfig):
    """Nothing to choose."""


def parse(data: bytes, name: str, config: Config) -> Parsed:
    """Blocks as the source writes them, their lines in ``place``. Raises DataError for what is not text."""
    text, encoding = decode(data, name)
    blocks = markdown_blocks(text)
    title = next((block.text for block in blocks if block.kind == "heading"), "")
    return Parsed(tuple(blocks), title=title, meta={"encoding": encoding})


def markdown_blocks(text: str) -> list[Block]:
    """The top-level blocks of a Markdown text; what stands between ``---`` lines at its beginning is left out."""
    front = _FRONT.match(text)
    skipped = text[: front.end()].count("\n") if front else 0
    lines = text.split("\n")[skipped:]
    tokens = MarkdownIt("commonmark").enable("table").parse("\n".join(lines))
    blocks = []
    for number, token in enumerate(tokens):
        if token.level or token.map is None:
            continue
        first, end = token.map
        source = "\n".join(lines[first:end]).strip("\n")
        while end > first + 1 and not lines[end - 1].strip():
            end -= 1
        place = lines_place(first + 1 + skipped, max(first + 1, end) + skipped)
        if token.type == "heading_open":
            blocks.append(Block(_plain(tokens[number + 1]), "heading", int(token.tag[1]), place=place))
        elif token.type == "fence":
            blocks.append(Block(token.content.rstrip("\n"), "code", place=place))
        elif token.type in _KINDS and source.strip():
            blocks.append(Block(source, _KINDS[token.type], place=place))
    return blocks


def _plain(inline: Token) -> str:
    """The text of an inline token without its marks."""
    return "".join(child.content for child in inline.children or () if child.type in ("text", "code_inline")).strip()
