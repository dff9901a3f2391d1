"""Rows that say the same: exactly, after normalising, or nearly.

Near duplicates are found by MinHash (Broder 1997) over runs of five characters, which also serves scripts without spaces. One hash a
run fills all 128 slots of a signature (one permutation hashing, densified by rotation: Shrivastava and Li, ICML 2014), and bands of six
slots bring candidates together (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, 3.4). Candidates are then compared in full.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from luthier.core.dataset import Example
from luthier.core.errors import InputError

SHINGLE = 5
SLOTS = 128
BAND = 6
MAX_CHARACTERS = 4000
"""Longer texts are compared by their beginnings: documents that agree that far are copies of one another."""

_CHUNK_CHARACTERS = 4_000_000
_EMPTY = np.uint64(2**64 - 1)

Hashes = npt.NDArray[np.uint64]


def normalise(text: str) -> str:
    """NFKC, lower case, runs of white space as one space: what people mean by the same text."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def content_key(example: Example) -> str:
    """What an example asks: its turns without the assistant's, normalised; of two scored texts both, in either order. Examples with
    equal keys must stay on one side of a split."""
    texts = [normalise(m.content) for m in example.messages if m.role != "assistant"]
    scored = example.score is not None and example.positives
    return "\n".join(sorted([*texts, *map(normalise, example.positives)]) if scored else texts)


def groups(keys: Iterable[str]) -> list[list[int]]:
    """Row indices with equal keys, in order of first appearance; every row is in exactly one group."""
    found: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        found.setdefault(key, []).append(row)
    return list(found.values())


def near_groups(texts: Sequence[str], threshold: float = 0.8) -> list[list[int]]:
    """Groups of two or more rows whose texts are alike: Jaccard similarity of their character runs >= ``threshold``.

    ``texts`` should be normalised and distinct. A row joins a group when it is alike to one of its members. Pairs at the threshold are
    missed about once in 500 times; nothing is reported that is not so.
    """
    if not 0.5 <= threshold <= 1.0:
        raise InputError(f"threshold must be between 0.5 and 1; got {threshold}")
    signatures = _signatures(texts)
    parents = list(range(len(texts)))
    unlike: set[tuple[int, int]] = set()

    def root(row: int) -> int:
        while parents[row] != row:
            parents[row] = parents[parents[row]]
            row = parents[row]
        return row

    for at in range(0, SLOTS - BAND + 1, BAND):
        for first, second in _candidates(signatures, at, threshold):
            one, other = root(first), root(second)
            if one == other or (first, second) in unlike:
                continue
            if jaccard(texts[first], texts[second]) >= threshold:
                parents[max(one, other)] = min(one, other)
            else:
                unlike.add((first, second))
    found: dict[int, list[int]] = {}
    for row in range(len(texts)):
        found.setdefault(root(row), []).append(row)
    return [rows for rows in found.values() if len(rows) > 1]


def _candidates(signatures: Hashes, at: int, threshold: float) -> list[tuple[int, int]]:
    """Pairs of rows that agree in a whole band, each with the first row of its bucket and with the row before it."""
    if not len(signatures):
        return []
    band = _mixed(signatures[:, at : at + BAND])
    order = np.argsort(band, kind="stable")
    ordered = band[order]
    starts = np.r_[True, ordered[1:] != ordered[:-1]]
    first = order[np.maximum.accumulate(np.where(starts, np.arange(len(order)), 0))]
    before = np.r_[order[:1], order[:-1]]
    pairs = np.concatenate([np.stack([head, order], 1)[~starts] for head in (first, before)])
    if not len(pairs):
        return []
    pairs = np.unique(pairs, axis=0)
    alike = np.concatenate(  # 0.15 is four standard errors of the estimate from 128 slots
        [
            (signatures[part[:, 0]] == signatures[part[:, 1]]).mean(axis=1) >= threshold - 0.15
            for part in np.array_split(pairs, len(pairs) // 100_000 + 1)
        ]
    )
    return [(int(a), int(b)) for a, b in pairs[alike]]


def jaccard(one: str, other: str) -> float:
    """Share of five-character runs that two normalised texts have in common, of all that either has."""
    first, second = _runs(one), _runs(other)
    return len(first & second) / max(len(first | second), 1)


def _runs(text: str) -> set[str]:
    text = text[:MAX_CHARACTERS].ljust(SHINGLE)
    return {text[at : at + SHINGLE] for at in range(len(text) - SHINGLE + 1)}


def _signatures(texts: Sequence[str]) -> Hashes:
    """(texts, SLOTS) minimum hashes, computed over many texts at once."""
    out = np.full((len(texts), SLOTS), _EMPTY, dtype=np.uint64)
    begin = 0
    while begin < len(texts):
        end, size = begin, 0
        while end < len(texts) and (end == begin or size < _CHUNK_CHARACTERS):
            size += min(len(texts[end]), MAX_CHARACTERS)
            end += 1
        _fill(out[begin:end], [text[:MAX_CHARACTERS].ljust(SHINGLE) for text in texts[begin:end]])
        begin = end
    return _densified(out)


def _fill(signatures: Hashes, texts: list[str]) -> None:
    points = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    lengths = np.array([len(text) for text in texts])
    owner = np.repeat(np.arange(len(texts)), lengths)
    total = len(points) - SHINGLE + 1
    windows = np.stack([points[at : at + total] for at in range(SHINGLE)], axis=1)
    whole = owner[:total] == owner[SHINGLE - 1 :]  # a run must not reach into the next text
    hashes = _mixed(windows[whole])
    slots = owner[:total][whole] * SLOTS + (hashes >> np.uint64(57)).astype(np.int64)
    np.minimum.at(signatures.reshape(-1), slots, hashes)


def _densified(signatures: Hashes) -> Hashes:
    """Empty slots take the value of the next full one to the right, with a mark of the distance."""
    filled = signatures.copy()
    for distance in range(1, SLOTS):
        empty = filled == _EMPTY
        if not empty.any():
            break
        moved = np.roll(signatures, -distance, axis=1)
        mark = np.uint64(distance * 0x9E3779B97F4A7C15 % 2**64)
        filled = np.where(empty & (moved != _EMPTY), moved ^ mark, filled)
    return filled


def _mixed(columns: Hashes) -> Hashes:
    """One well-mixed 64-bit number a row (the finaliser of MurmurHash3 after each column)."""
    out = np.full(len(columns), 0x243F6A8885A308D3, dtype=np.uint64)
    for column in columns.T:
        out ^= column
        out ^= out >> np.uint64(33)
        out *= np.uint64(0xFF51AFD7ED558CCD)
        out ^= out >> np.uint64(33)
        out *= np.uint64(0xC4CEB9FE1A85EC53)
        out ^= out >> np.uint64(33)
    return out
