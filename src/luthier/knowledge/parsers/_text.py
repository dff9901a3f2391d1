"""Bytes into text, whatever their encoding."""

from __future__ import annotations

import codecs
import re

from luthier.core.document import Block
from luthier.core.errors import DataError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\r\f\x1b"))
_HIGH = re.compile(rb"[\x80-\xff]+")
_ALIKE = 0.01
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

    sample = data[:_GUESSED_FROM]
    if len(sample.translate(None, _CONTROLS)) < 0.95 * len(sample):
        return None
    if _is_gb(sample):
        return "gb18030"
    found = from_bytes(sample)
    best = found.best()
    western = next((each for each in found if "cp1252" in each.could_be_from_charset), None)
    if best is None or (western is not None and western.chaos <= best.chaos + _ALIKE):
        return "cp1252"  # by far the most frequent of the encodings that a short text fits alike
    return best.encoding


def _is_gb(sample: bytes) -> bool:
    """Whether this is Chinese in GB 18030: its bytes above 127 come in pairs, unlike those of alphabets, and are spread over the common
    characters, unlike those of Korean and Japanese encodings that use pairs too."""
    runs = _HIGH.findall(sample)
    pairs = [run for run in runs if len(run) % 2 == 0]
    if not runs or sum(map(len, pairs)) < 0.9 * sum(map(len, runs)):
        return False
    leads = [lead for run in pairs for lead in run[::2]]
    letters = [lead for lead in leads if lead >= 0xB0]
    kana = sum(lead in (0xA4, 0xA5) for lead in leads)
    if not letters or kana > 0.1 * len(leads):
        return False
    if len(letters) > 20 and sum(lead <= 0xC8 for lead in letters) > 0.97 * len(letters):
        return False  # Korean syllables
    return len(sample.decode("gb18030", "replace").split("\ufffd")) <= 1 + len(sample) // 500


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def lines_place(first: int, last: int) -> str:
    """Lines as a block's ``place``, counted from 1."""
    return f"line {first}" if first == last else f"lines {first}-{last}"


def paragraphs(text: str) -> list[Block]:
    """Blocks between blank lines."""
    blocks: list[Block] = []
    held: list[str] = []
    for number, line in enumerate([*text.split("\n"), ""], 1):
        if line.strip():
            held.append(line)
        elif held:
            blocks.append(Block("\n".join(held), place=lines_place(number - len(held), number - 1)))
            held = []
    return blocks
