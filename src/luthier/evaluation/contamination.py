"""Contamination: which test examples occur, word for word, in training data.

The rule is that of Brown et al. (2020, "Language Models are Few-Shot Learners", appendix C): an example is contaminated when a run of
``n`` (13) words of it occurs in a training document, case and punctuation aside; an example shorter than that, when the whole of it
does. A run that occurs in more than ``common`` (10) different documents is a phrase that everybody uses and says nothing of the
example. In scripts without spaces each character counts as a word.

Only the test side is held in memory. Training words that no test example has become 0, windows of words become 64-bit hashes, and a
hash that the test side knows is then compared word by word: what is reported is so.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from luthier.core.dataset import Example
from luthier.core.errors import InputError
from luthier.core.run import Progress, no_progress
from luthier.data.corpus import Document

if TYPE_CHECKING:
    from luthier.evaluation.loop import Scorer
    from luthier.evaluation.records import Record

N, SHORTEST, COMMON = 13, 8, 10
_PLACES = 5  # training places that are named for an example
_CHUNK_CHARACTERS = 2_000_000

_SPACELESS = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # kana and Han
_WORD = re.compile(rf"[{_SPACELESS}]|[^\W_{_SPACELESS}]+")

Hashes = npt.NDArray[np.uint64]
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Overlap:
    """One test example that occurs in training data.

    ``index`` is its place in the split. ``text`` is the longest run that occurs, normalised, ``words`` its length; it stands in the
    example's ``part`` (input or answer). ``coverage`` is the share of the example's words that such runs cover. ``where`` names
    training places (the first of ``documents`` different ones).
    """

    index: int
    id: str
    source: str
    part: str
    text: str
    words: int
    coverage: float
    documents: int
    where: tuple[str, ...]


@dataclass(frozen=True)
class Contamination:
    """The report. ``common`` are examples that only share runs with more than ``most_common`` different documents; ``short`` counts
    examples with fewer than ``shortest`` words, of which nothing can be said."""

    n: int
    shortest: int
    most_common: int
    examples: int
    contaminated: tuple[Overlap, ...]
    common: tuple[Overlap, ...]
    short: int
    documents: int
    words: int
    trained: tuple[int, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def indices(self) -> frozenset[int]:
        """Places of all examples that the training data hold, by overlap or by the record of what was trained on."""
        return frozenset(o.index for o in self.contaminated) | frozenset(self.trained)

    @property
    def share(self) -> float:
        """Contaminated examples among those of which something can be said."""
        judged = self.examples - self.short
        return len(self.indices) / judged if judged > 0 else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        return asdict(self) | {"share": self.share}


def words(text: str) -> list[str]:
    """The words of a text as overlap counts them: lower case, without punctuation; Han and kana one by one."""
    return _WORD.findall(_normalised(text))


def _normalised(text: str) -> str:
    return text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).lower()


def parts_of(example: Example) -> dict[str, str]:
    """What an example says: the question (with its choices) and the answer, each of which may have leaked."""
    asked = [m.content for m in example.messages if m.role != "assistant"]
    said = [m.content for m in (*example.messages, *example.chosen, *example.rejected) if m.role == "assistant"]
    choices = [choice for choice in example.choices if not any(choice in text for text in asked)]
    answers = example.references or ((example.target,) if example.target else ())
    return {"input": "\n".join([*asked, *choices]), "answer": "\n".join([*said, *answers])}


def contamination(
    examples: Sequence[Example],
    documents: Iterable[Document],
    *,
    n: int = N,
    shortest: int = SHORTEST,
    common: int = COMMON,
    progress: Progress = no_progress,
) -> Contamination:
    """Look for every example in ``documents``, which are read once and may be more than memory holds.

    Raises InputError when ``n`` or ``shortest`` are out of range or there is no example.
    """
    if n < 2:
        raise InputError(f"n must be at least 2 words; got {n}")
    if not 1 <= shortest <= n:
        raise InputError(f"shortest must be between 1 and n ({n}); got {shortest}")
    if common < 1:
        raise InputError(f"common must be at least 1 document; got {common}")
    if not examples:
        raise InputError("there is no test example to look for")
    index = _Index(examples, n, shortest)
    seen = _Seen(common)
    read = total = 0
    for batch in _batches(documents):
        tokens = [words(document.text) for document in batch]
        index.scan(batch, tokens, seen)
        read += len(batch)
        total += sum(map(len, tokens))
        progress("training documents", read, 0)
    hits, ordinary = index.report(seen)
    return Contamination(n, shortest, common, len(examples), hits, ordinary, index.short, read, total)


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= _CHUNK_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Seen:
    """Per run of the test side: the first different documents that hold it, at most one more than counts as common."""

    def __init__(self, common: int) -> None:
        self.common = common
        self._documents: dict[int, dict[int, str]] = {}

    def add(self, gram: int, document: int, where: str) -> None:
        """``document`` is a digest of the text, so that copies of one document count once."""
        known = self._documents.setdefault(gram, {})
        if len(known) <= self.common:
            known.setdefault(document, where)

    def places(self, gram: int) -> Mapping[int, str]:
        """Digest -> where, in the order of reading."""
        return self._documents.get(gram, {})


@dataclass(frozen=True)
class _Part:
    """Normalised text of one part of one example, with its words' ids and places."""

    example: int
    name: str
    text: str
    spans: tuple[tuple[int, int], ...]
    ids: Ids
    size: int  # words a run
    first: int  # number of its first run

    @property
    def runs(self) -> int:
        return max(len(self.ids) - self.size + 1, 0) if self.size else 0


class _Index:
    """Runs of words of the test side. Runs are numbered through all parts; equal runs have several numbers."""

    def __init__(self, examples: Sequence[Example], n: int, shortest: int) -> None:
        self._examples = examples
        self._vocabulary: dict[str, int] = {}
        self._parts: list[_Part] = []
        for number, example in enumerate(examples):
            for name, text in parts_of(example).items():
                self._add(number, name, text, n, shortest)
        judged = {part.example for part in self._parts if part.size}
        self.short = len(examples) - len(judged)
        draw = np.random.default_rng(0)
        self._values = draw.integers(1, 2**63, size=len(self._vocabulary) + 1, dtype=np.int64).astype(np.uint64)
        self._by_size = {size: self._hashed(size) for size in sorted({p.size for p in self._parts if p.size})}

    def _add(self, example: int, name: str, text: str, n: int, shortest: int) -> None:
        text = _normalised(text)
        found = list(_WORD.finditer(text))
        ids = [self._vocabulary.setdefault(m.group(), len(self._vocabulary) + 1) for m in found]
        size = 0 if len(ids) < shortest else min(n, len(ids))
        first = self._parts[-1].first + self._parts[-1].runs if self._parts else 0
        spans = tuple(m.span() for m in found)
        self._parts.append(_Part(example, name, text, spans, np.array(ids, dtype=np.int64), size, first))

    def _hashed(self, size: int) -> tuple[Hashes, Ids, Ids]:
        """(sorted hashes, run number of each, part of each) of all runs of ``size`` words."""
        hashes, runs, owners = [], [], []
        for place, part in enumerate(self._parts):
            if part.size == size:
                hashes.append(_windows(self._values[part.ids], size))
                runs.append(np.arange(part.first, part.first + part.runs))
                owners.append(np.full(part.runs, place))
        joined = np.concatenate(hashes)
        order = np.argsort(joined, kind="stable")
        return joined[order], np.concatenate(runs)[order], np.concatenate(owners)[order]

    def scan(self, documents: Sequence[Document], tokens: Sequence[Sequence[str]], seen: _Seen) -> None:
        """Note every run of the test side that these documents hold."""
        known = self._vocabulary.get
        lengths = np.array([len(own) + 1 for own in tokens])
        ids = np.fromiter((i for own in tokens for i in (*(known(w, 0) for w in own), 0)), np.int64, lengths.sum())
        owner = np.repeat(np.arange(len(tokens)), lengths)  # a 0 after each document keeps runs inside it
        unknown = np.concatenate([[0], np.cumsum(ids == 0)])
        values = self._values[ids]
        for size, (hashes, runs, parts) in self._by_size.items():
            if len(ids) < size:
                continue
            whole = np.flatnonzero(unknown[size:] == unknown[:-size])  # windows of words that the test side has
            windows = _windows(values, size)[whole]
            at = np.searchsorted(hashes, windows)
            hit = np.flatnonzero(hashes[np.minimum(at, len(hashes) - 1)] == windows)
            self._note(documents, ids, owner, seen, size, (hashes, runs, parts), whole[hit], at[hit])

    def _note(
        self,
        documents: Sequence[Document],
        ids: Ids,
        owner: Ids,
        seen: _Seen,
        size: int,
        table: tuple[Hashes, Ids, Ids],
        begins: Ids,
        at: Ids,
    ) -> None:
        hashes, runs, parts = table
        digests: dict[int, int] = {}
        _, once = np.unique(np.stack([at, owner[begins]], 1), axis=0, return_index=True)
        for begin, entry in zip(begins[once].tolist(), at[once].tolist(), strict=True):
            document = int(owner[begin])
            if document not in digests:
                digests[document] = hash(documents[document].text)
            place = entry
            while place < len(hashes) and hashes[place] == hashes[entry]:
                part = self._parts[int(parts[place])]
                start = int(runs[place]) - part.first
                if np.array_equal(part.ids[start : start + size], ids[begin : begin + size]):
                    seen.add(int(runs[place]), digests[document], documents[document].where)
                place += 1

    def report(self, seen: _Seen) -> tuple[tuple[Overlap, ...], tuple[Overlap, ...]]:
        """(contaminated examples, those that share only common runs), in the order of the split."""
        real: dict[int, list[Overlap]] = {}
        ordinary: dict[int, list[Overlap]] = {}
        totals = Counter[int]()
        for part in self._parts:
            totals[part.example] += len(part.ids)
        for part in self._parts:
            counts = [len(seen.places(part.first + run)) for run in range(part.runs)]
            rare = [0 < count <= seen.common for count in counts]
            for kind, flags in ((real, rare), (ordinary, [count > seen.common for count in counts])):
                if any(flags):
                    kind.setdefault(part.example, []).append(self._overlap(part, flags, seen, totals[part.example]))
        merged = {example: _merged(found) for example, found in real.items()}
        left = {example: _merged(found) for example, found in ordinary.items() if example not in merged}
        return tuple(merged[key] for key in sorted(merged)), tuple(left[key] for key in sorted(left))

    def _overlap(self, part: _Part, flags: Sequence[bool], seen: _Seen, total: int) -> Overlap:
        covered = np.zeros(len(part.ids), dtype=bool)
        places: Counter[str] = Counter()
        documents: set[int] = set()
        for run, flag in enumerate(flags):
            if flag:
                covered[run : run + part.size] = True
                found = seen.places(part.first + run)
                documents |= found.keys()
                places.update(found.values())
        begin, end = _longest(covered)
        example = self._examples[part.example]
        return Overlap(
            index=part.example,
            id=example.id,
            source=example.source,
            part=part.name,
            text=part.text[part.spans[begin][0] : part.spans[end - 1][1]],
            words=end - begin,
            coverage=float(covered.sum()) / total,
            documents=len(documents),
            where=tuple(where for where, _ in places.most_common(_PLACES)),
        )


def _merged(found: Sequence[Overlap]) -> Overlap:
    """The part with the longest run stands for the example; coverage is of all its parts."""
    best = max(found, key=lambda overlap: overlap.words)
    return Overlap(**(asdict(best) | {"coverage": sum(overlap.coverage for overlap in found)}))


def _windows(values: Hashes, size: int) -> Hashes:
    """A polynomial hash, modulo 2^64, of every window of ``size`` values."""
    count = len(values) - size + 1
    out = np.zeros(max(count, 0), dtype=np.uint64)
    for at in range(size):
        out = out * np.uint64(0x9E3779B97F4A7C15) + values[at : at + count]
    return out ^ (out >> np.uint64(29))


def _longest(covered: npt.NDArray[np.bool_]) -> tuple[int, int]:
    """(begin, end) of the longest stretch of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], covered, [False]]).astype(np.int8)))
    begins, ends = edges[::2], edges[1::2]
    best = int(np.argmax(ends - begins))
    return int(begins[best]), int(ends[best])


# ---- what it did to a score


@dataclass(frozen=True)
class SubsetScores:
    """A scorer's figure on the contaminated and on the clean examples of one evaluation, and the difference with its interval."""

    run: str
    scorer: str
    contaminated: Mapping[str, float]
    clean: Mapping[str, float]
    difference: Mapping[str, float]
    contaminated_examples: int
    clean_examples: int

    def as_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        return asdict(self)


def compare_scores(run: str, scorer: Scorer, records: Sequence[Record], contaminated: frozenset[int]) -> SubsetScores:
    """Contaminated minus clean, by independent bootstraps of the two parts.

    A difference may also come from the contaminated examples being easier; none does not prove that the copies did not help.
    Raises InputError when either part has fewer than two records.
    """
    from luthier.evaluation.result import statistic_of
    from luthier.evaluation.statistics import RESAMPLES, bootstrap, percentile_interval

    parts = [[r for r in records if (r.index in contaminated) is wanted] for wanted in (True, False)]
    if min(map(len, parts)) < 2:
        raise InputError(
            f"run {run} has {len(parts[0])} contaminated and {len(parts[1])} clean records; a comparison needs two of each"
        )
    figures = [statistic_of(scorer, part) for part in parts]
    drawn = [
        bootstrap([figure], len(part), RESAMPLES, seed=seed)[0]
        for seed, (figure, part) in enumerate(zip(figures, parts, strict=True))
    ]
    count = min(map(len, drawn))
    first, second = (percentile_interval(f.value, d).as_dict() for f, d in zip(figures, drawn, strict=True))
    gap = percentile_interval(figures[0].value - figures[1].value, drawn[0][:count] - drawn[1][:count])
    return SubsetScores(run, scorer.label, first, second, gap.as_dict(), len(parts[0]), len(parts[1]))
