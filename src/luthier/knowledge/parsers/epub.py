"""Books (EPUB 2 and 3): the chapters in their order."""

from __future__ import annotations

import io
import posixpath
import re
import zipfile
import zlib
from dataclasses import replace
from typing import Any
from urllib.parse import unquote

from defusedxml.ElementTree import fromstring

from luthier.core.catalog import EntryConfig
from luthier.core.document import Block
from luthier.core.errors import DataError
from luthier.knowledge.parsers._html import html_blocks
from luthier.knowledge.parsers._parsed import Parsed

MEDIA_TYPES = ("application/epub+zip",)
SUFFIXES = (".epub",)

_DECLARATION = re.compile(rb"\A(?:\xef\xbb\xbf)?\s*<\?xml[^>]*\?>")
_LOCKS = frozenset(["META-INF/rights.xml", "META-INF/license.lcpl"])
_CONTAINER = "META-INF/container.xml"


class Config(EntryConfig):
    """Nothing to choose."""


def parse(data: bytes, name: str, config: Config) -> Parsed:
    """Blocks chapter by chapter (the file in ``place``). Raises DataError for a damaged book, or one that is locked (DRM)."""
    blocks: list[Block] = []
    warnings: list[str] = []
    with zipfile.ZipFile(io.BytesIO(data)) as book:
        if _LOCKS & set(book.namelist()):
            raise DataError(f"{name} is locked (DRM) and cannot be read")
        container = fromstring(book.read(_CONTAINER))
        place = next((each.get("full-path") for each in container.iter() if each.tag.endswith("rootfile")), None)
        if place is None:
            raise DataError(f"{name} names no package file in {_CONTAINER}")
        title, files = _spine(fromstring(book.read(place)), posixpath.dirname(place))
        for file in files:
            try:
                chapter = html_blocks(_DECLARATION.sub(b"", book.read(file)), file, encoding="utf-8")[1]
            except (KeyError, zipfile.BadZipFile, zlib.error, DataError) as error:
                warnings.append(f"chapter {file} was left out: {error}")
                continue
            blocks += [replace(block, place=posixpath.basename(file)) for block in chapter]
    return Parsed(blocks, title=title, warnings=warnings)


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
    return title, list(dict.fromkeys(files))
