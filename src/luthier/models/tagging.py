"""Token tags: which stretches of a text are entities, by a linear layer on every token's state (Devlin et al. 2019, section 5.3).

The classes are ``O``, and ``B-`` and ``I-`` of each type. ``first`` reads a word's first token and speaks for the whole word, ``all`` reads
every token. Decoding is the likeliest legal sequence (Viterbi 1967): ``I-x`` only after ``B-x`` or ``I-x``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from luthier.core.entities import Entity
from luthier.core.errors import InputError
from luthier.data.batch import order_by_length, pad
from luthier.models.load import LoadedModel

UNKNOWN = -100
"""The class of tokens that nothing is taught at."""

Floats = npt.NDArray[np.float64]


@dataclass(slots=True)
class TaggedText:
    """A text's token ids with the encoder's special tokens; ``places`` are the tokens that are read, ``spans`` the characters that each
    speaks for. ``opening`` and ``closing`` count the special tokens around it."""

    ids: list[int]
    places: list[int]
    spans: list[tuple[int, int]]
    opening: int
    closing: int

    def cut(self, length: int) -> None:
        """Keep ``length`` tokens: the first ones and the special tokens at the end."""
        kept = length - self.closing
        self.ids = self.ids[:kept] + self.ids[len(self.ids) - self.closing :]
        self.places = [place for place in self.places if place < kept]
        self.spans = self.spans[: len(self.places)]


def tokenise(model: LoadedModel, texts: Sequence[str], subtokens: str) -> list[TaggedText]:
    """Tokens with their places in the texts. Raises InputError for text that is not valid Unicode."""
    try:
        encodings = model.tokenizer.backend_tokenizer.encode_batch(list(texts), add_special_tokens=True)
    except (UnicodeEncodeError, TypeError) as error:
        raise InputError("text must be valid Unicode; it holds half of a surrogate pair") from error
    out = []
    for text, encoding in zip(texts, encodings, strict=True):
        places: list[int] = []
        spans: list[tuple[int, int]] = []
        words: list[int] = []
        for at, (word, offset) in enumerate(zip(encoding.word_ids, encoding.offsets, strict=True)):
            span = _bare(text, *offset)
            if word is None or span[0] == span[1]:
                continue
            if subtokens == "first" and words and words[-1] == word:
                spans[-1] = (spans[-1][0], span[1])
                continue
            places.append(at)
            spans.append(span)
            words.append(word)
        special = encoding.special_tokens_mask
        inner = [at for at, mark in enumerate(special) if not mark]
        opening, closing = (inner[0], len(special) - 1 - inner[-1]) if inner else (len(special), 0)
        out.append(TaggedText(list(encoding.ids), places, spans, opening, closing))
    return out


def _bare(text: str, start: int, end: int) -> tuple[int, int]:
    """The span without the white space that some tokenizers count to a token."""
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end


def classes(spans: Sequence[tuple[int, int]], entities: Sequence[Entity], types: Sequence[str]) -> list[int]:
    """The class of each span: that of the first entity that shares a character with it. 0 is O, 2 n + 1 and 2 n + 2 are B and I of type n;
    ``UNKNOWN`` is that of an entity of another type."""
    out = [0] * len(spans)
    at = 0
    for entity in sorted(entities):
        kind = 2 * types.index(entity.type) + 1 if entity.type in types else UNKNOWN
        opened = False
        while at < len(spans) and spans[at][1] <= entity.start:
            at += 1
        while at < len(spans) and spans[at][0] < entity.end:
            out[at] = kind + opened if kind != UNKNOWN else UNKNOWN
            opened = True
            at += 1
    return out


def entities_of(found: Sequence[int], spans: Sequence[tuple[int, int]], types: Sequence[str]) -> list[Entity]:
    """Inverse of ``classes``, as far as spans allow; an I that nothing opened opens an entity."""
    out: list[Entity] = []
    before = 0
    for number, span in zip(found, spans, strict=True):
        if number:
            kind = types[(number - 1) // 2]
            if number % 2 == 0 and before in (number - 1, number):
                out[-1] = Entity(out[-1].start, span[1], kind)
            else:
                out.append(Entity(*span, kind))
        before = number
    return out


def likeliest(scores: Floats) -> list[int]:
    """The classes (n,) of the highest sum of ``scores`` (n, classes) among legal sequences."""
    count, width = scores.shape
    if not count:
        return []
    goes_on = np.arange(2, width, 2)  # the I classes
    best = scores[0].copy()
    best[goes_on] = -np.inf
    came = np.zeros((count, width), dtype=np.int64)
    for at in range(1, count):
        top = int(best.argmax())
        came[at] = top
        new = best[top] + scores[at]
        opened, inside = best[goes_on - 1], best[goes_on]
        came[at, goes_on] = np.where(inside > opened, goes_on, goes_on - 1)
        new[goes_on] = np.maximum(opened, inside) + scores[at, goes_on]
        best = new
    out = [int(best.argmax())]
    for at in range(count - 1, 0, -1):
        out.append(int(came[at, out[-1]]))
    return out[::-1]


def decoded(logits: Tensor, spans: Sequence[tuple[int, int]], types: Sequence[str]) -> list[Entity]:
    """Entities of the read tokens' logits (spans, classes)."""
    scores = logits.detach().double().log_softmax(-1).cpu().numpy()
    return entities_of(likeliest(scores), spans, types)


def tag_rows(
    model: LoadedModel, rows: Sequence[TaggedText], context_length: int, max_batch_tokens: int
) -> list[list[Entity]]:
    """The entities of each text. One that is longer than the context is read in windows that overlap by half, and every token is taken
    from the window in whose middle it lies most."""
    head = model.head
    windows = [(row, window) for row, text in enumerate(rows) for window in _windows(text, context_length)]
    logits = [torch.full((len(row.places), head.out_features), torch.nan) for row in rows]
    with torch.inference_mode():
        for batch in order_by_length([len(w.ids) for _, w in windows], max_batch_tokens):
            padded = pad([windows[i][1].ids for i in batch], model.tokenizer.pad_token_id or 0)
            states = model.module.states(padded.ids.to(model.device), padded.attention_mask.to(model.device))
            for i, each in zip(batch, states, strict=True):
                row, window = windows[i]
                own = torch.tensor(window.places, dtype=torch.int64)
                logits[row][window.first : window.first + len(own)] = head(each[own.to(each.device)]).float().cpu()
    return [decoded(each, row.spans, head.types) for each, row in zip(logits, rows, strict=True)]


@dataclass(slots=True)
class _Window:
    """Tokens that go through the model together; the places in them that count, the first of which is the row's ``first``."""

    ids: list[int]
    places: list[int]
    first: int


def _windows(row: TaggedText, length: int) -> list[_Window]:
    if len(row.ids) <= length:
        return [_Window(row.ids, row.places, 0)]
    front, back = row.ids[: row.opening], row.ids[len(row.ids) - row.closing :]
    room = length - len(front) - len(back)
    step = max(1, room // 2)
    inner = len(row.ids) - len(front) - len(back)
    starts = [*range(0, inner - room, step), inner - room]
    out = []
    for number, start in enumerate(starts):  # of two windows the border is in the middle of what both have
        low = 0 if not number else (start + starts[number - 1] + room) // 2
        high = inner if number + 1 == len(starts) else (starts[number + 1] + start + room) // 2
        at = [place - row.opening for place in row.places]
        own = [n for n, place in enumerate(at) if low <= place < high]
        ids = [*front, *row.ids[row.opening + start : row.opening + start + room], *back]
        if own:
            out.append(_Window(ids, [at[n] - start + row.opening for n in own], own[0]))
    return out
