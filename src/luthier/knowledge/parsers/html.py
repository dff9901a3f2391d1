"""HTML pages: headings, lists, tables and text; without scripts, controls and navigation."""

from __future__ import annotations

import re

from luthier.core.catalog import EntryConfig
from luthier.knowledge.parsers._html import html_blocks
from luthier.knowledge.parsers._parsed import Parsed
from luthier.knowledge.parsers._text import decode

MEDIA_TYPES = ("text/html", "application/xhtml+xml")
SUFFIXES = (".html", ".htm", ".xhtml")

_CHARSET = re.compile(rb"<meta[^>]+charset\s*=\s*[\"']?([A-Za-z0-9_:.-]+)", re.IGNORECASE)
_DECLARATION = re.compile(r"\A\s*<\?xml[^>]*\?>")


class Config(EntryConfig):
    """Nothing to choose."""


def parse(data: bytes, name: str, config: Config) -> Parsed:
    """Blocks of the page's content. Raises DataError for what is no page."""
    declared = _CHARSET.search(data[:4096])
    text, encoding = decode(data, name, declared=declared.group(1).decode("ascii") if declared else None)
    title, blocks = html_blocks(_DECLARATION.sub("", text), name)
    if not title:
        title = next((block.text for block in blocks if block.kind == "heading"), "")
    return Parsed(blocks, title=title, meta={"encoding": encoding})
