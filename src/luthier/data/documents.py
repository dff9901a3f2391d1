"""Plain documents as token ids: what a model reads in its own pre-training, not a conversation.

A document is the text's tokens between those that the tokenizer puts around every text. What is written in it cannot become markup: a
special token's text is tokenised as ordinary text. Long documents are cut into windows, short ones packed into rows.
"""

from __future__ import annotations

import bisect
import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from luthier.core.errors import InputError, UnsupportedError
from luthier.data.render import Renderer, _unused_mark

_ENDS = ("<|endoftext|>", "<|end_of_text|>")
"""Ends of documents in pre-training. A chat model's tokenizer often names the end of a turn as its end of text, and keeps these."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """A document's ids; the word that each is part of, and the characters of the text that it stands for, (start, end)."""

    ids: list[int]
    words: list[int | None]
    characters: list[tuple[int, int]]


class DocumentEncoder:
    """Cuts documents into tokens. ``before`` and ``after`` are the special tokens that the tokenizer puts around every text."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise UnsupportedError("plain documents need a fast tokenizer; this model has none")
        self._backend = copy.deepcopy(tokenizer.backend_tokenizer)
        self._backend.encode_special_tokens = True
        self._backend.no_truncation()
        self._backend.no_padding()
        plain, whole = self._backend.encode("a", add_special_tokens=False).ids, self._backend.encode("a").ids
        at = next(i for i in range(len(whole)) if whole[i : i + len(plain)] == plain)
        self.before, self.after = list(whole[:at]), list(whole[at + len(plain) :])

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """Each text's tokens, nothing around them. Raises InputError for text that is not valid Unicode."""
        try:
            found = self._backend.encode_batch(list(texts), add_special_tokens=False)
        except (UnicodeEncodeError, TypeError) as error:
            raise InputError("text must be valid Unicode; it holds half of a surrogate pair") from error
        return [Tokens(list(e.ids), list(e.word_ids), list(e.offsets)) for e in found]

    def token(self, name: str) -> int | None:
        """The id of a token of the vocabulary, by its text."""
        found: int | None = self._backend.token_to_id(name)
        return found

    def end(self, name: str | None = None) -> int:
        """The token that ends a document: ``name``, else the one known from pre-training, else the tokenizer's end of text."""
        if name is not None:
            found = self.token(name)
            if found is None:
                raise InputError(f"objective.end must be a token of the model's vocabulary; got {name!r}")
            return found
        for known in (*_ENDS, self._tokenizer.eos_token):
            found = self.token(known) if known else None
            if found is not None:
                return found
        raise UnsupportedError(
            "this model's tokenizer names no token that ends a document", hint="name one: objective.end=TOKEN"
        )


def inner_ids(renderer: Renderer, texts: Sequence[str]) -> list[list[int]]:
    """Ids of pieces that stand inside a text: without what some tokenizers put before the first word, and without markup."""
    pieces: list[str] = []
    spans = []
    for text in texts:
        mark = _unused_mark([text])
        parts = renderer._chat.break_special(text, mark).split(mark)
        spans.append((len(pieces), len(pieces) + len(parts)))
        pieces += [renderer._anchor + part for part in parts]
    encoded = renderer._plain(pieces) if pieces else []
    skipped = 1 if renderer._anchor else 0
    return [[i for at in range(begin, end) for i in encoded[at][skipped:]] for begin, end in spans]


def windows(count: int, length: int, stride: int) -> list[tuple[int, int]]:
    """(start, end) of the windows of at most ``length`` out of ``count`` tokens that begin ``stride`` apart; the last one is moved back
    so that it is as long as the others."""
    if count <= length:
        return [(0, count)]
    starts = [*range(0, count - length, stride), count - length]
    return [(start, start + length) for start in starts]


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of what goes into each row of ``capacity``, by best fit with the longest first (Johnson 1973); the same for the same lengths."""
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (what is left, number of the bin), ascending
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        at = bisect.bisect_left(room, (lengths[index], -1))
        if at < len(room):
            left, number = room.pop(at)
            bins[number].append(index)
        else:
            left, number = max(capacity, lengths[index]), len(bins)
            bins.append([index])
        bisect.insort(room, (left - lengths[index], number))
    return bins
