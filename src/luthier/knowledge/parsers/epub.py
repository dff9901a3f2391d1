"""Books (EPUB 2 and 3): the chapters in their order."""

from __future__ import annotations

import io
import posixpath
import zipfile
from typing import Any
from urllib.parse import unquote
from xml.etree.ElementTree import ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from luthier.core.catalog import EntryConfig
from luthier.core.document import Block
from luthier.core.errors import DataError
from luthier.knowledge.parsers._html import html_blocks
from luthier.knowledge.parsers._parsed import Parsed

MEDIA_TYPES = ("application/epub+zip",)
SUFFIXES = (".epub",)

_CONTAINER = "META-INF/container.xml"


class Config(EntryConfig):
    """Nothing to choose."""


def parse(data: bytes, name: str, config: Config) -> Parsed:
    """Blocks chapter by chapter (the file in ``place``). Raises DataError for a damaged book, or one that is locked (DRM)."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as book:
            if "META-INF/rights.xml" in book.namelist():
                raise DataError(f"{name} is locked (DRM) and cannot be read")
            container = fromstring(book.read(_CONTAINER))
            place = next(each.get("full-path") for each in container.iter() if each.tag.endswith("rootfile"))
            package = fromstring(book.read(place))
            title, files = _spine(package, posixpath.dirname(place))
            blocks: list[Block] = []
            for file in files:
                chapter = html_blocks(book.read(file), f"{name}: {file}", encoding="utf-8")[1]
                blocks += [_placed(block, posixpath.basename(file)) for block in chapter]
    except (zipfile.BadZipFile, KeyError, StopIteration, ParseError, DefusedXmlException, NotImplementedError) as error:
        raise DataError(f"{name} is no book that can be read: {error}") from error
    return Parsed(blocks, title=title)


def _spine(package: Any, folder: str) -> tuple[str, list[str]]:
    """The book's title, and its files in reading order."""
    title = next((each.text or "" for each in package.iter() if each.tag.endswith("}title")), "").strip()
    items = {each.get("id"): each for each in package.iter() if each.tag.endswith("}item")}
    order = [each.get("idref") for each in package.iter() if each.tag.endswith("}itemref")]
    files = []
    for each in order:
        item = items.get(each)
        if item is not None and "html" in (item.get("media-type") or ""):
            files.append(posixpath.normpath(posixpath.join(folder, unquote(item.get("href") or ""))))
    return title, files


def _placed(block: Block, place: str) -> Block:
    return Block(block.text, block.kind, block.level, place=place)
