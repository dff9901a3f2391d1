"""The bytes that each token of a vocabulary stands for.

A token may be part of a character, so its text alone says too little: byte-level vocabularies (Radford et al. 2019, section 2.2) write every
byte as a printable letter, SentencePiece's (Kudo and Richardson 2018) write a space as ``\u2581`` and lone bytes as ``<0xE4>``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from luthier.core.errors import UnsupportedError

if TYPE_CHECKING:
    from luthier.data.render import Renderer

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def token_bytes(tokenizer: Any) -> list[bytes]:
    """Bytes of every token, by id, as they stand inside of a text; b"" for ids without a token.

    Added tokens, special ones among them, give their own text. Raises UnsupportedError for a tokenizer that is not made of bytes or of
    SentencePiece's pieces (WordPiece writes no spaces, so the bytes between two tokens are not known).
    """
    kinds, spaces = _forms(tokenizer)
    added = {int(id_): token.content.encode() for id_, token in tokenizer.added_tokens_decoder.items()}
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    out = [b""] * (max([*vocabulary.values(), *added], default=-1) + 1)
    for text, id_ in vocabulary.items():
        if "ByteLevel" in kinds:
            out[id_] = _from_letters(text)
        elif "ByteFallback" in kinds and (byte := _BYTE.fullmatch(text)):
            out[id_] = bytes([int(byte.group(1), 16)])
        else:
            shown = text
            for written, meant in spaces.items():
                shown = shown.replace(written, meant)
            out[id_] = shown.encode()
    for id_, content in added.items():
        out[id_] = content
    return out


def has_token_bytes(tokenizer: Any) -> bool:
    """Whether ``token_bytes`` knows this kind of tokenizer; asks without reading the vocabulary."""
    try:
        _forms(tokenizer)
    except UnsupportedError:
        return False
    return True


def _forms(tokenizer: Any) -> tuple[set[str], dict[str, str]]:
    """The kinds of a decoder's steps, and what is written for what in its tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UnsupportedError(f"the bytes of tokens are known of fast tokenizers only; got {type(tokenizer).__name__}")
    decoder = None if backend.decoder is None else json.loads(backend.decoder.__getstate__())
    steps = list(_steps(decoder))
    kinds = {str(step.get("type")) for step in steps}
    spaces = {_pattern(s): str(s["content"]) for s in steps if s.get("type") == "Replace" and _pattern(s)}
    spaces |= {str(s["replacement"]): " " for s in steps if s.get("type") == "Metaspace"}
    if not spaces and "ByteLevel" not in kinds and "ByteFallback" not in kinds:
        known = ", ".join(sorted(kinds)) or "none"
        raise UnsupportedError(
            f"the bytes of tokens are known of byte-level and SentencePiece vocabularies; got decoder {known}"
        )
    return kinds, spaces


def bytes_of_tokens(renderer: Renderer) -> list[bytes]:
    """``token_bytes`` of a renderer's tokenizer, kept as long as the renderer."""
    found = _known.get(renderer)
    if found is None:
        found = _known.setdefault(renderer, token_bytes(renderer.tokenizer))
    return found


_known: WeakKeyDictionary[Renderer, list[bytes]] = WeakKeyDictionary()


def _steps(decoder: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    if decoder is None:
        return
    if decoder.get("type") == "Sequence":
        for step in decoder["decoders"]:
            yield from _steps(step)
    else:
        yield decoder


def _pattern(step: Mapping[str, Any]) -> str:
    pattern = step["pattern"]
    return str(pattern.get("String", "")) if isinstance(pattern, Mapping) else ""


def _from_letters(text: str) -> bytes:
    """A byte-level token's bytes; a letter that stands for no byte is itself."""
    letters = _letters()
    return b"".join(bytes([letters[letter]]) if letter in letters else letter.encode() for letter in text)


@lru_cache(maxsize=1)
def _letters() -> dict[str, int]:
    """The letter of each byte: printable Latin-1 stands for itself, the other bytes for U+0100 and on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + at): byte for at, byte in enumerate(others)}
