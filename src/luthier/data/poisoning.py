"""Signs that somebody wants a model to learn what is wrong: labels that contradict everything alike, phrases that turn labels, one source
that says too much.

Neighbours come from other sources than the example itself, so that an attacker's examples cannot vouch for one another. What this finds is
dirty-label poisoning (Gu et al. 2017, "BadNets"; Dai et al. 2019 for text), where labels are wrong; a trigger put into texts whose labels are
right (Turner et al. 2019) contradicts nothing and is only bounded by the caps per source.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from luthier.core.digest import digest_json
from luthier.data.dedupe import normalise

Embed = Callable[[Sequence[str]], Any]
"""Texts to vectors, (texts, width): an array, or a sparse matrix whose rows have length 1."""

NEIGHBOURS = 10
FEWEST = 50
"""Labelled examples below which neighbours say nothing."""

_FAR = 100  # neighbours that are looked up, of which those without a phrase are then taken
_CHUNK = 1024
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+")
_LONGEST_PHRASE = 3
_LEAST_WITH_PHRASE = 5
_LEAST_OF_SOURCE = 5
_SURE = 0.001  # of a source: probability, after Holm, that its labels only look wrong


@dataclass(frozen=True)
class Labelled:
    """Texts with labels and who gave them ("" when that is not known). ``trusted`` ones are neighbours, and not judged themselves."""

    texts: Sequence[str]
    labels: Sequence[str]
    sources: Sequence[str]
    trusted: int = 0
    """So many of the last ones are trusted."""

    @property
    def judged(self) -> int:
        """How many are to be judged: the first ones."""
        return len(self.texts) - self.trusted


def nearest(data: Labelled, vectors: Any) -> npt.NDArray[np.int64]:
    """(judged, ``_FAR``) places of the most alike examples of other sources, the nearest first; -1 where there are no more."""
    unit = _unit(vectors)
    codes = {source: number for number, source in enumerate(sorted(set(data.sources)))}
    own = np.array([codes[source] for source in data.sources])
    known = np.array([bool(source) for source in data.sources])
    most = min(_FAR, len(data.texts) - 1)
    out = np.full((data.judged, _FAR), -1, dtype=np.int64)
    for start in range(0, data.judged, _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, data.judged))
        product = unit[rows] @ unit.T
        likeness = np.asarray(product.todense() if hasattr(product, "todense") else product, dtype=np.float32)
        likeness[(own[rows][:, None] == own[None, :]) & known[rows][:, None]] = -np.inf
        likeness[np.arange(len(rows)), rows] = -np.inf
        best = np.argpartition(-likeness, most - 1, axis=1)[:, :most]
        order = np.argsort(-np.take_along_axis(likeness, best, 1), axis=1, kind="stable")
        best = np.take_along_axis(best, order, 1)
        best[np.isneginf(np.take_along_axis(likeness, best, 1))] = -1
        out[rows, :most] = best
    return out


def _unit(vectors: Any) -> Any:
    """Rows of length 1; sparse ones are so already."""
    if hasattr(vectors, "todense"):
        return vectors
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def contradicted(data: Labelled, neighbours: npt.NDArray[np.int64]) -> dict[int, str]:
    """Judged examples whose label none of their nearest neighbours has, while nearly all of these have another one: place -> reason."""
    out = {}
    for place in range(data.judged):
        near = [int(at) for at in neighbours[place] if at >= 0][:NEIGHBOURS]
        votes = Counter(data.labels[at] for at in near)
        if len(near) < NEIGHBOURS or votes[data.labels[place]]:
            continue
        label, count = votes.most_common(1)[0]
        if count >= 0.8 * len(near):
            out[place] = (
                f"labelled {data.labels[place]!r}, where {count} of the {len(near)} most alike examples of others are {label!r}"
            )
    return out


def triggers(data: Labelled, neighbours: npt.NDArray[np.int64]) -> dict[str, tuple[str, list[int]]]:
    """Phrases that go with one label almost always, against what the rest of their texts looks like: phrase -> (label, judged examples).

    A phrase of one to three words (characters, in scripts without spaces) is one when at least five examples hold it, 95% of them have one
    label, and most of these are labelled against their neighbours without the phrase.
    """
    holders = _phrases(data)
    out: dict[str, tuple[str, list[int]]] = {}
    taken: set[int] = set()
    base = Counter(data.labels)
    for phrase, places in sorted(holders.items(), key=lambda item: (-len(item[1]), len(item[0]), item[0])):
        label, count = Counter(data.labels[at] for at in places).most_common(1)[0]
        if count < 0.95 * len(places) or base[label] > 0.9 * len(data.labels) or taken.issuperset(places):
            continue
        mine = [at for at in places if at < data.judged and data.labels[at] == label]
        without = set(places)
        against = [at for at in mine if _majority(data, neighbours[at], without) not in (label, None)]
        if len(against) >= _LEAST_WITH_PHRASE and len(against) >= 0.6 * len(mine):
            out[phrase] = (label, mine)
            taken.update(mine)
    return out


def agreement(data: Labelled, neighbours: npt.NDArray[np.int64]) -> float:
    """The share of the judged labels that the majority of their neighbours has: how much neighbours can tell at all."""
    votes = [_majority(data, neighbours[place][:NEIGHBOURS], set()) for place in range(data.judged)]
    return sum(vote == label for vote, label in zip(votes, data.labels, strict=False)) / max(1, data.judged)


def untrustworthy(data: Labelled, neighbours: npt.NDArray[np.int64]) -> dict[str, str]:
    """Sources most of whose labels are against what examples like theirs have: source -> reason.

    At least five examples, half of them against the majority of their neighbours, and so many that the share among all others explains it
    with a probability of at most 0.001 (binomial test, one-sided; Holm 1979 over the sources).
    """
    from scipy.stats import binomtest

    against: dict[str, list[bool]] = defaultdict(list)
    for place in range(data.judged):
        majority = _majority(data, neighbours[place][:NEIGHBOURS], set())
        if majority is not None and data.sources[place]:
            against[data.sources[place]].append(majority != data.labels[place])
    everybody, wrong = sum(map(len, against.values())), sum(map(sum, against.values()))
    tests = []
    for source, flags in against.items():
        others = everybody - len(flags)
        if len(flags) >= _LEAST_OF_SOURCE and others and sum(flags) >= len(flags) / 2:
            base = max((wrong - sum(flags)) / others, 1 / others)
            tests.append((float(binomtest(sum(flags), len(flags), base, alternative="greater").pvalue), source, flags))
    out = {}
    candidates = sum(len(flags) >= _LEAST_OF_SOURCE for flags in against.values())
    for rank, (p, source, flags) in enumerate(sorted(tests, key=lambda test: test[:2])):
        if p * (candidates - rank) > _SURE:
            break
        out[source] = (
            f"{sum(flags)} of the {len(flags)} labels of one source contradict what others say of texts like these"
        )
    return out


def _phrases(data: Labelled) -> dict[str, list[int]]:
    """Phrases that are rare and yet repeated, with the examples that hold them; equal sets of examples under their shortest phrase."""
    most = max(_LEAST_WITH_PHRASE, len(data.texts) // 5)
    holders: dict[str, list[int]] = defaultdict(list)
    for place, text in enumerate(data.texts):
        words = _WORD.findall(normalise(text))
        found = {
            " ".join(words[at : at + size])
            for size in range(1, _LONGEST_PHRASE + 1)
            for at in range(len(words) - size + 1)
        }
        for phrase in found:
            holders[phrase].append(place)
    shortest: dict[tuple[int, ...], str] = {}
    for phrase, places in holders.items():
        if _LEAST_WITH_PHRASE <= len(places) <= most:
            key = tuple(places)
            if key not in shortest or (len(phrase), phrase) < (len(shortest[key]), shortest[key]):
                shortest[key] = phrase
    return {phrase: list(places) for places, phrase in shortest.items()}


def _majority(data: Labelled, near: npt.NDArray[np.int64], without: set[int]) -> str | None:
    """The label that most of the nearest neighbours without the phrase have; None when none has a majority."""
    fit = [int(at) for at in near if at >= 0 and int(at) not in without][:NEIGHBOURS]
    votes = Counter(data.labels[at] for at in fit)
    total = sum(votes.values())
    if total < NEIGHBOURS // 2:
        return None
    label, count = votes.most_common(1)[0]
    return label if count > total / 2 else None


def over_cap(
    sources: Sequence[str], labels: Sequence[str | None], ids: Sequence[str], *, share: float, least: int = 10
) -> dict[int, str]:
    """Examples beyond what one source may give: ``share`` of all, and half of any label; at least ``least``. Place -> reason.

    Which of a source's examples stay is drawn by their ids, so that nobody chooses it. Needs three sources; unknown ones are not counted.
    """
    if len({source for source in sources if source}) < 3:
        return {}
    out: dict[int, str] = {}
    drawn = sorted(range(len(ids)), key=lambda at: digest_json(ids[at]))
    by_source: dict[str, list[int]] = defaultdict(list)
    for at in drawn:
        if sources[at]:
            by_source[sources[at]].append(at)
    most = max(least, int(share * len(sources)))
    for places in by_source.values():
        for at in places[most:]:
            out[at] = f"one source gave {len(places)} of {len(sources)} examples; at most {most} are taken"
    totals = Counter(label for label in labels if label is not None)
    for label, total in totals.items():
        half = max(least, total // 2)
        for places in by_source.values():
            mine = [at for at in places if labels[at] == label and at not in out]
            for at in mine[half:]:
                out[at] = f"one source gave {len(mine)} of the {total} examples of {label!r}; at most {half} are taken"
    return out


def word_vectors(texts: Sequence[str]) -> Any:
    """Sparse vectors without a model: TF-IDF of words and of character runs, which also serve scripts without spaces. Weaker than an embedder."""
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfVectorizer

    shown = [normalise(text) or "-" for text in texts]
    words = TfidfVectorizer(token_pattern=r"\S+", sublinear_tf=True).fit_transform(shown)
    runs = TfidfVectorizer(
        analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True, max_features=50_000
    ).fit_transform(shown)
    return hstack([words, runs]).tocsr() / np.sqrt(2)


def source_names(named: Mapping[str, str]) -> str:
    """Who gave something: the user, else the key, else the session; "" when nothing is known."""
    return next((f"{name} {named[name]}" for name in ("user", "key", "session") if named.get(name)), "")
