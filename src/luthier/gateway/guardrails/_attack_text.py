"""What a text says behind its disguises: other scripts' look-alikes, invisible characters, spaced letters, digits for letters, encodings.

Unicode confusables: UTS 39 in spirit, with the letters of Cyrillic, Greek and Latin extensions that look like ASCII ones.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import re
import unicodedata
from collections.abc import Iterator
from urllib.parse import unquote

MOST_CHARACTERS = 200_000
_MOST_DECODED = 20
_DEPTH = 2

_PAIRS = (  # as it looks, as it is meant
    "аa бb вb гr ԁd еe ёe зz іi їi јj кk ӏl мm нh оo пn рp сc тt уy хx һh ѕs ѵv ԝw ԛq "
    "αa βb εe ηn ιi κk νv οo ρp τt υu χx ωw ıi łl øo đd ħh ŧt ɑa ɡg ɩi ʀr ʏy"
)
_LOOKALIKES = str.maketrans({pair[0]: pair[1] for pair in _PAIRS.split()})
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\U000e0000-\U000e007f]"
)
_TAGS = re.compile("[\U000e0020-\U000e007e]+")  # invisible ASCII: a hidden text of its own
_SPACED = re.compile(r"(?<![^\W_])(?:[^\W\d_][ .\-_*|]{1,2}){5,60}[^\W\d_](?![^\W_])")
_LEET = str.maketrans("013457@$!|", "oieastasil")
_LEET_WORD = re.compile(r"[a-z0134579@$!|]+")
_BASE64 = re.compile(r"[A-Za-z0-9+/_\-]{16,4000}={0,2}")
_HEX = re.compile(r"(?:[0-9a-fA-F]{2}[ :]?){12,2000}")
_BLANKS = re.compile(r"[ \t\u3000]+")


def readings(text: str) -> list[str]:
    """The text as it is meant, in small letters, and after it every other text that can be read out of it (decoded, unspaced, spelt out)."""
    text = text[:MOST_CHARACTERS]
    found = [simple(text)]
    for hidden in (*_hidden(text), *_decoded(text, _DEPTH)):
        if hidden not in found:
            found.append(hidden)
        if len(found) > _MOST_DECODED:
            break
    return found


def simple(text: str) -> str:
    """Without invisible characters and accents, look-alikes as ASCII, full-width as plain, small letters, single blanks."""
    text = _INVISIBLE.sub("", text)
    if text.isascii():
        return _BLANKS.sub(" ", text.lower())
    text = unicodedata.normalize("NFKD", text).casefold()
    text = "".join(each for each in text if not unicodedata.combining(each))
    return _BLANKS.sub(" ", unicodedata.normalize("NFC", text).translate(_LOOKALIKES))


def _hidden(text: str) -> Iterator[str]:
    plain = simple(text)
    spelt = _LEET_WORD.sub(_spelt, plain)
    if spelt != plain:
        yield spelt
    unspaced = _SPACED.sub(lambda found: re.sub(r"[ .\-_*|]", "", found[0]), plain)
    if unspaced != plain:
        yield unspaced
    for tags in _TAGS.findall(text):
        yield simple("".join(chr(ord(each) - 0xE0000) for each in tags))
    if "rot13" in plain or "rot 13" in plain:
        yield codecs.decode(plain, "rot13")
    if "%20" in text:
        yield simple(unquote(text))
    if "revers" in plain or "backward" in plain or "倒着" in plain:
        yield plain[::-1]


def _spelt(found: re.Match[str]) -> str:
    """A word with its digits and signs as the letters that they stand for; a number stays one."""
    word = found[0]
    return word if word.isalpha() or not any(each.isalpha() for each in word) else word.translate(_LEET)


def _decoded(text: str, depth: int) -> Iterator[str]:
    """Texts in base64 and hexadecimal, those inside of them, too."""
    if not depth:
        return
    count = 0
    for pattern, decode in ((_BASE64, _from_base64), (_HEX, _from_hex)):
        for found in pattern.finditer(text):
            inner = decode(found[0])
            if inner is None:
                continue
            count += 1
            if count > _MOST_DECODED:
                return
            yield simple(inner)
            yield from _decoded(inner, depth - 1)


def _from_base64(text: str) -> str | None:
    if not (any(each.isupper() for each in text) and any(each.islower() for each in text)):
        return None
    plain = text.rstrip("=").translate(str.maketrans("-_", "+/"))
    try:
        return _readable(base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True))
    except (binascii.Error, ValueError):
        return None


def _from_hex(text: str) -> str | None:
    try:
        return _readable(bytes.fromhex(re.sub(r"[ :]", "", text)))
    except ValueError:
        return None


def _readable(data: bytes) -> str | None:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    good = sum(each.isprintable() or each.isspace() for each in text)
    return text if len(text) >= 8 and good >= 0.95 * len(text) and any(each.isalpha() for each in text) else None
