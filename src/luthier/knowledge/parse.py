"""Files into documents: what a file is, is seen from its content; what cannot be read is refused with its reason."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from luthier.core import catalog
from luthier.core.document import Document
from luthier.core.errors import DataError, InputError, UnsupportedError
from luthier.knowledge.parsers._parsed import Parsed

MOST_BYTES = 200 * 2**20
MOST_UNPACKED = 500 * 2**20
"""What a file that is an archive inside (Office, EPUB) may unpack to."""
MOST_PARTS = 20_000
MOST_CHARACTERS = 50_000_000

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n", "image"), (b"\xff\xd8\xff", "image"), (b"GIF8", "image"), (b"II*\0", "image"), (b"MM\0*", "image"),
    (b"BM", "image"), (b"{\\rtf", "rtf"), (b"\x1f\x8b", "archive gzip"), (b"7z\xbc\xaf", "archive 7z"),
    (b"Rar!", "archive rar"), (b"BZh", "archive bzip2"), (b"\xfd7zXZ", "archive xz"), (b"(\xb5/\xfd", "archive zstd"),
    (b"\xd0\xcf\x11\xe0", "ole"), (b"\x7fELF", "program"), (b"MZ", "program"), (b"SQLite format 3", "database"),
    (b"PAR1", "parquet"),
)  # fmt: skip
_LANGUAGES = [
    "ar",
    "bg",
    "bn",
    "cs",
    "da",
    "de",
    "el",
    "en",
    "es",
    "et",
    "fa",
    "fi",
    "fr",
    "he",
    "hi",
    "hr",
    "hu",
    "id",
    "it",
    "ja",
    "ko",
    "lt",
    "lv",
    "ms",
    "nl",
    "no",
    "pl",
    "pt",
    "ro",
    "ru",
    "sk",
    "sl",
    "sr",
    "sv",
    "th",
    "tr",
    "uk",
    "ur",
    "vi",
    "zh",
]
_TEXTUAL = ("text", "code", "csv", "markdown", "html", "eml")


def parse_file(path: str | Path, options: Mapping[str, Mapping[str, Any]] | None = None) -> Document:
    """The document in a file. ``options`` are those of parsers by name (``{"pdf": {"password": ...}}``).

    Raises InputError for a file that is not there, DataError for one that is damaged, encrypted, too large or no document, UnsupportedError
    for a known format that is not parsed, MissingExtraError for a picture without OCR. An empty file is a document without blocks.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise DataError(f"{path} has {size:,} bytes; at most {MOST_BYTES:,} are read")
        if not path.is_file():
            raise InputError(f"{path} is not a file")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    return parse_bytes(data, str(path), options=options)


def parse_bytes(
    data: bytes,
    name: str,
    *,
    media_type: str | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    nested: bool = False,
) -> Document:
    """The document in ``data``; ``name`` is its path, URL or file name, ``media_type`` what a server called it. Raises as ``parse_file``.

    ``nested``: it was inside of another file; what itself holds files (a mail in a mail's attachment) is then refused.
    """
    if len(data) > MOST_BYTES:
        raise DataError(f"{name} has {len(data):,} bytes; at most {MOST_BYTES:,} are read")
    digest = hashlib.sha256(data).hexdigest()
    title = Path(name).name or name
    if not data.strip(b" \t\r\n\0\xef\xbb\xbf"):
        return Document(name, digest, media_type or "application/x-empty", title=title, warnings=("the file is empty",))
    parser = _parser(data, name, media_type)
    if nested and parser == "eml":
        raise UnsupportedError(f"{name} is a mail inside of another file")
    entry = catalog.load("parsers", parser)
    parsed: Parsed = entry(data, name, entry.configure((options or {}).get(parser)))
    warnings = tuple(parsed.warnings)
    if not parsed.blocks and not warnings:
        warnings = ("no text was found in it",)
    if sum(len(block.text) for block in parsed.blocks) > MOST_CHARACTERS:
        raise DataError(f"{name} holds more than {MOST_CHARACTERS:,} characters")
    return Document(
        source=name,
        digest=digest,
        media_type=_media_type(parser, name, data),
        title=parsed.title or title,
        blocks=tuple(parsed.blocks),
        pages=parsed.pages,
        language=_language([block.text for block in parsed.blocks]),
        meta={"parser": parser, **parsed.meta},
        warnings=warnings,
    )


@cache
def _by_suffix() -> dict[str, str]:
    return {
        suffix: name for name in catalog.names("parsers") for suffix in catalog.load("parsers", name).module.SUFFIXES
    }


@cache
def _by_media_type() -> dict[str, str]:
    kinds = {name: catalog.load("parsers", name).module.MEDIA_TYPES for name in catalog.names("parsers")}
    return {kind: name for name, all_of_it in kinds.items() for kind in all_of_it}


def _parser(data: bytes, name: str, media_type: str | None) -> str:
    """The parser for the content. Raises DataError or UnsupportedError for what is recognised and not parsed."""
    head = data.lstrip()[:1024] if data[:1].isspace() else data[:1024]
    if b"%PDF-" in head:
        return "pdf"
    if head.startswith(b"PK\x03\x04") or head.startswith(b"PK\x05\x06"):
        return _inside_zip(data, name)
    kind = next((kind for magic, kind in _MAGIC if head.startswith(magic)), None)
    if kind is None and head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        kind = "image"
    if kind == "image":
        return "image"
    if kind is not None and _known_binary(kind, data, head):
        raise _refused(kind, data, name)
    return _text_parser(head, name, media_type)


def _known_binary(kind: str, data: bytes, head: bytes) -> bool:
    """Short magic numbers also begin texts."""
    return kind not in ("program",) or b"\0" in head


def _refused(kind: str, data: bytes, name: str) -> Exception:
    if kind == "ole":
        if "EncryptedPackage".encode("utf-16-le") in data:
            return DataError(f"{name} is encrypted; save it without a password")
        return UnsupportedError(f"{name} is in an old Office format", hint="save it as .docx, .xlsx or .pptx")
    if kind == "rtf":
        return UnsupportedError(f"{name} is RTF", hint="save it as .docx")
    if kind.startswith("archive"):
        return UnsupportedError(
            f"{name} is an archive ({kind.removeprefix('archive ')}); unpack it, then add its files"
        )
    return UnsupportedError(f"{name} is a {kind}, not a document")


def _inside_zip(data: bytes, name: str) -> str:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            parts = archive.infolist()
            names = {part.filename for part in parts}
            unpacked = sum(part.file_size for part in parts)
            encrypted = any(part.flag_bits & 1 for part in parts)
            epub = "mimetype" in names and archive.read("mimetype").strip() == b"application/epub+zip"
    except (zipfile.BadZipFile, NotImplementedError, OSError, RuntimeError) as error:
        raise DataError(f"{name} is damaged: {error}") from error
    if encrypted:
        raise DataError(f"{name} is encrypted; save it without a password")
    if len(parts) > MOST_PARTS or unpacked > MOST_UNPACKED:
        raise DataError(
            f"{name} unpacks to {unpacked:,} bytes in {len(parts):,} parts; at most {MOST_UNPACKED:,} and {MOST_PARTS:,}"
        )
    if epub:
        return "epub"
    for folder, parser in (("word/", "docx"), ("ppt/", "pptx"), ("xl/", "xlsx")):
        if any(each.startswith(folder) for each in names):
            return parser
    raise UnsupportedError(f"{name} is a zip archive; unpack it, then add its files")


def _text_parser(head: bytes, name: str, media_type: str | None) -> str:
    suffix = Path(name).suffix.lower()
    by_name = _by_suffix().get(suffix)
    plain = (media_type or "").partition(";")[0].strip().lower()
    by_type = _by_media_type().get(plain)
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "html"
    for each in (by_name, by_type):
        if each in _TEXTUAL:
            return each
    return "text"  # a binary format by name whose content is none of them: text, if it is any


def _media_type(parser: str, name: str, data: bytes) -> str:
    kinds: tuple[str, ...] = catalog.load("parsers", parser).module.MEDIA_TYPES
    if parser == "image":
        import mimetypes

        return mimetypes.guess_type(name)[0] or kinds[0]
    return kinds[0]


def _language(texts: list[str]) -> str:
    """ISO 639-1 code of most of the text; "" for too little of it."""
    sample = "\n".join(texts)[:4000]
    letters = [character for character in sample if character.isalpha()]
    wide = sum("\u4e00" <= character <= "\u9fff" for character in letters)
    if len(letters) < (10 if wide else 40):
        return ""
    return str(_identifier().classify(sample)[0])


@cache
def _identifier() -> Any:
    """A language identifier for the languages that documents are most often in: short texts are told apart better among few."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    found = LanguageIdentifier.from_model_file(MODEL_FILE)
    found.set_languages(_LANGUAGES)
    return found
