"""Files into documents: what a file is, is seen from its content; what cannot be read is refused with its reason."""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from luthier.core import catalog
from luthier.core.document import Block, Document
from luthier.core.errors import DataError, InputError, LuthierError, UnsupportedError
from luthier.knowledge.parsers._parsed import Parsed, reason

MOST_BYTES = 200 * 2**20
MOST_UNPACKED = 500 * 2**20
"""What a file that is an archive inside (Office, EPUB) may unpack to."""
MOST_XML = 150 * 2**20
"""Of that, what is held in memory as a tree of many times the size."""
MOST_PARTS = 20_000
MOST_CHARACTERS = 50_000_000

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n", "image"), (b"\xff\xd8\xff", "image"), (b"GIF87a", "image"), (b"GIF89a", "image"), (b"II*\0", "image"),
    (b"MM\0*", "image"), (b"{\\rtf", "rtf"), (b"\x1f\x8b", "archive gzip"), (b"7z\xbc\xaf\x27\x1c", "archive 7z"),
    (b"Rar!\x1a\x07", "archive rar"), (b"\xfd7zXZ\0", "archive xz"), (b"(\xb5/\xfd", "archive zstd"),
    (b"\xd0\xcf\x11\xe0", "ole"), (b"\x7fELF", "program"), (b"SQLite format 3\0", "database"),
)  # fmt: skip
_MAGIC_OF_BINARY: tuple[tuple[bytes, str], ...] = (
    (b"BM", "image"), (b"MZ", "program"), (b"BZh", "archive bzip2"), (b"PAR1", "parquet file"),
)  # fmt: skip
"""These few letters begin texts, too: they count when there is a zero byte near by."""
_LANGUAGES = [
    "ar", "bg", "bn", "cs", "da", "de", "el", "en", "es", "et", "fa", "fi", "fr", "he", "hi", "hr", "hu", "id", "it", "ja", "ko", "lt",
    "lv", "ms", "nl", "no", "pl", "pt", "ro", "ru", "sk", "sl", "sr", "sv", "th", "tr", "uk", "ur", "vi", "zh",
]  # fmt: skip
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_MARKUP = (".xml", ".rels", ".html", ".xhtml", ".htm", ".opf", ".ncx", ".vml")
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
    title = Path(urlsplit(name).path if _is_url(name) else name).name or name
    if not data.strip(b" \t\r\n\0\xef\xbb\xbf"):
        return Document(name, digest, media_type or "application/x-empty", title=title, warnings=("the file is empty",))
    parser = _parser(data, name, media_type)
    if nested and parser == "eml":
        raise UnsupportedError(f"{name} is a mail inside of another file")
    entry = catalog.load("parsers", parser)
    config = entry.configure((options or {}).get(parser))
    try:
        parsed = _parsed_by(entry, data, name, config)
    except LuthierError:
        raise
    except Exception as error:  # the libraries that read formats raise whatever a damaged file leads them to
        raise DataError(f"{name} cannot be read as {parser}: {reason(error)}") from error
    if sum(len(block.text) for block in parsed.blocks) > MOST_CHARACTERS:
        raise DataError(f"{name} holds more than {MOST_CHARACTERS:,} characters")
    blocks = tuple(_clean(block) for block in parsed.blocks if block.text.strip())
    warnings = tuple(parsed.warnings)
    return Document(
        source=name,
        digest=digest,
        media_type=_media_type(parser, name),
        title=_plain(" ".join(parsed.title.split()))[:500] or title,
        blocks=blocks,
        pages=parsed.pages,
        language=_language(blocks),
        meta={"parser": parser, **parsed.meta},
        warnings=warnings if blocks or warnings else ("no text was found in it",),
    )


def _parsed_by(entry: catalog.Entry, data: bytes, name: str, config: Any) -> Parsed:
    """What an entry makes of a file; in a process of its own where it says that it needs one."""
    if entry.optional("APART"):
        from luthier.knowledge.apart import parse_apart

        return parse_apart(entry.name, data, name, config, config.timeout_s)
    parsed: Parsed = entry(data, name, config)
    return parsed


def _clean(block: Block) -> Block:
    text, place = _plain(block.text), _plain(block.place)
    return block if (text, place) == (block.text, block.place) else replace(block, text=text, place=place)


def _plain(text: str) -> str:
    """Without control characters and halves of characters, which databases and tokenizers do not take."""
    return _CONTROL.sub("", text)


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
    head = data[:4096].lstrip(b" \t\r\n\0\xef\xbb\xbf")[:1024]
    by_name = _by_suffix().get(_suffix(name))
    if head.startswith(b"%PDF-") or (b"%PDF-" in head and by_name not in _TEXTUAL):
        return "pdf"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _inside_zip(data, name)
    kinds = _MAGIC + (_MAGIC_OF_BINARY if b"\0" in head else ())
    kind = next((kind for magic, kind in kinds if head.startswith(magic)), None)
    if kind == "image" or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return "image"
    if kind is not None:
        raise _refused(kind, data, name)
    return _text_parser(head, by_name, media_type)


def _suffix(name: str) -> str:
    """Of a path, or of a URL's path."""
    return Path(urlsplit(name).path if _is_url(name) else name).suffix.lower()


def _is_url(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def _refused(kind: str, data: bytes, name: str) -> Exception:
    if kind == "ole":
        if "EncryptedPackage".encode("utf-16-le") in data:
            return DataError(f"{name} is encrypted; save it without a password")
        hint = "save it as .eml" if _suffix(name) == ".msg" else "save it as .docx, .xlsx or .pptx"
        return UnsupportedError(f"{name} is in an old Office format", hint=hint)
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
            _check_size(parts, name)
            stated = next((part for part in parts if part.filename == "mimetype" and part.file_size < 200), None)
            kind = archive.read(stated).strip().decode("ascii", "replace") if stated is not None else ""
    except LuthierError:
        raise
    except Exception as error:  # zipfile raises many kinds for a damaged archive
        raise DataError(f"{name} is damaged: {error}") from error
    if kind == "application/epub+zip":
        return "epub"
    if kind.startswith("application/vnd.oasis.opendocument"):
        raise UnsupportedError(f"{name} is an OpenDocument file", hint="save it as .docx, .xlsx or .pptx")
    names = {part.filename for part in parts}
    for folder, parser in (("word/", "docx"), ("ppt/", "pptx"), ("xl/", "xlsx")):
        if any(each.startswith(folder) for each in names):
            return parser
    raise UnsupportedError(f"{name} is a zip archive; unpack it, then add its files")


def _check_size(parts: Sequence[zipfile.ZipInfo], name: str) -> None:
    """Refuse what is encrypted or unpacks to too much; zipfile never gives more of a part than it states."""
    if any(part.flag_bits & 1 for part in parts):
        raise DataError(f"{name} is encrypted; save it without a password")
    unpacked = sum(part.file_size for part in parts)
    markup = sum(part.file_size for part in parts if part.filename.lower().endswith(_MARKUP))
    for what, size, most in (
        ("parts", len(parts), MOST_PARTS),
        ("bytes", unpacked, MOST_UNPACKED),
        ("bytes of XML", markup, MOST_XML),
    ):
        if size > most:
            raise DataError(f"{name} unpacks to {size:,} {what}; at most {most:,} are read")


def _text_parser(head: bytes, by_name: str | None, media_type: str | None) -> str:
    by_type = _by_media_type().get((media_type or "").partition(";")[0].strip().lower())
    if head.lower().startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "html"
    # a binary format by name whose content is none of them: text, if it is any
    return next((each for each in (by_name, by_type) if each is not None and each in _TEXTUAL), "text")


def _media_type(parser: str, name: str) -> str:
    kinds: tuple[str, ...] = catalog.load("parsers", parser).module.MEDIA_TYPES
    if parser == "image":
        import mimetypes

        guessed = mimetypes.guess_type(f"file{_suffix(name)}")[0]
        return guessed if guessed in kinds else kinds[0]
    return kinds[0]


def _language(blocks: Sequence[Block]) -> str:
    """ISO 639-1 code of most of the text; "" for too little of it."""
    sample = "\n".join(block.text[:4000] for block in blocks[:200])[:4000]
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
