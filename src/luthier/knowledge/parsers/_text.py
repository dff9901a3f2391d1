"""Bytes into text, whatever their encoding."""

from __future__ import annotations

import codecs

from luthier.core.errors import DataError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_GUESSED_FROM = 2**16
"""Bytes that an encoding is guessed from."""


def decode(data: bytes, name: str, *, declared: str | None = None) -> tuple[str, str]:
    """(text, encoding) with line breaks as ``\\n``: by byte order mark, as UTF-8, as ``declared``, else guessed.

    Raises DataError for what is not text.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return _lines(data.decode(encoding, "replace")), encoding.removesuffix("-sig")
    for stated in filter(None, ("utf-8", declared)):
        try:
            text = data.decode(stated)
        except (UnicodeDecodeError, LookupError):
            continue
        if "\0" not in text:
            return _lines(text), stated
    if b"\0" in data[:_GUESSED_FROM]:
        return _wide(data, name)
    guessed = _guess(data)
    if guessed is None:
        raise DataError(f"{name} is not text, and no format that can be parsed")
    return _lines(data.decode(guessed, "replace")), guessed


def _wide(data: bytes, name: str) -> tuple[str, str]:
    """UTF-16 without a mark: every other byte of text in Latin letters is 0."""
    for encoding, zeros in (("utf-16-le", data[1:2000:2]), ("utf-16-be", data[0:2000:2])):
        if zeros.count(0) > 0.4 * len(zeros):
            try:
                return _lines(data.decode(encoding)), encoding
            except UnicodeDecodeError:
                continue
    raise DataError(f"{name} is not text, and no format that can be parsed")


def _guess(data: bytes) -> str | None:
    from charset_normalizer import from_bytes

    try:  # Chinese text is common and short pieces of it are hard to tell from Latin letters with accents
        if len(data) >= 8 and sum(byte > 127 for byte in data) > 0.3 * len(data):
            data.decode("gb18030")
            return "gb18030"
    except UnicodeDecodeError:
        pass
    printable = sum(byte >= 32 or byte in b"\t\n\r\f" for byte in data)
    if printable < 0.95 * len(data):
        return None
    best = from_bytes(data[:_GUESSED_FROM]).best()
    return best.encoding if best is not None else "cp1252"


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")
