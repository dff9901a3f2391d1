"""Leakage: what a split shares with another one, so that a score on it says less than it seems to.

Copies are looked for as they stand, after normalising, and nearly (``data.dedupe``: Jaccard similarity of five-character runs). Labels
that contradict each other, labels that only one split has, and documents or customers that stand in two splits are found too.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, Literal

from luthier.core.dataset import Dataset, Example, Splits
from luthier.core.errors import InputError, did_you_mean
from luthier.data.dedupe import content_key, jaccard, near_groups

Kind = Literal["exact", "normalised", "near"]

SHOWN_CHARACTERS = 120
_MOST_COMPARED = 200  # members of one group of near copies that a row is compared with


@dataclass(frozen=True)
class Copy:
    """A row of the later split (``place``) and the row of the earlier one that it repeats (``of``)."""

    kind: Kind
    place: str
    of: str
    text: str
    similarity: float
    labels: tuple[str, str] | None = None

    @property
    def contradicts(self) -> bool:
        """Whether the two rows have different labels."""
        return self.labels is not None and self.labels[0] != self.labels[1]


@dataclass(frozen=True)
class Pair:
    """What ``second`` (rows ``rows``) shares with ``first``. Each row of ``second`` counts once, by its closest copy.

    ``unseen`` are labels of ``second`` that ``first`` lacks, with their rows, and ``missing`` those of ``first`` that ``second`` lacks.
    ``groups`` maps values of the named field that occur in both to the rows of ``second``.
    """

    first: str
    second: str
    rows: int
    copies: tuple[Copy, ...]
    unseen: Mapping[str, int]
    missing: tuple[str, ...]
    groups: Mapping[str, int]

    def count(self, kind: Kind) -> int:
        """Rows of ``second`` whose closest copy is of this kind."""
        return sum(copy.kind == kind for copy in self.copies)

    @property
    def contradictions(self) -> int:
        """Copies with another label."""
        return sum(copy.contradicts for copy in self.copies)

    @property
    def clean(self) -> bool:
        """Whether nothing was found that spoils a score. Labels that only ``first`` has do not."""
        return not (self.copies or self.unseen or self.groups)

    def as_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        kinds: tuple[Kind, ...] = ("exact", "normalised", "near")
        counts = {kind: self.count(kind) for kind in kinds}
        return asdict(self) | {"counts": counts, "contradictions": self.contradictions, "clean": self.clean}


@dataclass(frozen=True)
class Conflict:
    """One text with several labels inside one split."""

    split: str
    text: str
    labels: Mapping[str, int]
    places: tuple[str, ...]


@dataclass(frozen=True)
class Leakage:
    """The report over all pairs of splits, in the order in which they were named."""

    sizes: Mapping[str, int]
    threshold: float
    pairs: tuple[Pair, ...]
    conflicts: tuple[Conflict, ...]
    group: str = ""

    @property
    def clean(self) -> bool:
        """Whether nothing was found."""
        return not self.conflicts and all(pair.clean for pair in self.pairs)

    def as_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        return {
            "sizes": dict(self.sizes),
            "threshold": self.threshold,
            "group": self.group,
            "pairs": [pair.as_dict() for pair in self.pairs],
            "conflicts": [asdict(conflict) for conflict in self.conflicts],
            "clean": self.clean,
        }


def leakage(
    splits: Splits | Mapping[str, Dataset], *, threshold: float = 0.8, group: str = "", near: bool = True
) -> Leakage:
    """Compare every split with those before it.

    ``threshold`` is the similarity from which texts count as near copies (0.5 to 1; texts are compared by their first 4,000
    characters); ``near`` False leaves these out. ``group`` names a field of the rows (a document, a customer) whose values should not
    stand in two splits. Empty splits are passed over.

    Raises InputError for fewer than two splits with rows, and for a ``group`` that no row has.
    """
    named = _named(splits)
    if group:
        _check_group(named, group)
    keys = {name: [content_key(e) for e in part.examples] for name, part in named.items()}
    closest = _near_pairs(keys, threshold) if near else {}
    pairs = []
    for first, second in combinations(named, 2):
        alike = closest.get((first, second), {})
        pairs.append(_pair(first, second, named, keys, alike, group))
    conflicts = [conflict for name in named for conflict in _conflicts(name, named[name], keys[name])]
    sizes = {name: len(part) for name, part in named.items()}
    return Leakage(sizes, threshold, tuple(pairs), tuple(conflicts), group)


def _named(splits: Splits | Mapping[str, Dataset]) -> dict[str, Dataset]:
    if isinstance(splits, Splits):
        splits = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    named = {name: part for name, part in splits.items() if len(part)}
    if len(named) < 2:
        raise InputError(
            f"leakage is between splits: two or more with rows are needed; got {', '.join(named) or 'none'}",
            hint="luthier check leakage train.jsonl test.jsonl",
        )
    return named


def _check_group(named: Mapping[str, Dataset], group: str) -> None:
    fields = {field for part in named.values() for e in part.examples for field in e.meta}
    if group not in fields:
        raise InputError(f"group must be a field of the rows; got {group!r}. {did_you_mean(group, fields)}")


def _pair(
    first: str,
    second: str,
    named: Mapping[str, Dataset],
    keys: Mapping[str, Sequence[str]],
    alike: Mapping[int, tuple[int, float]],
    group: str,
) -> Pair:
    earlier, later = named[first], named[second]
    by_key: dict[str, list[int]] = defaultdict(list)
    for row, key in enumerate(keys[first]):
        by_key[key].append(row)
    copies = []
    for row, example in enumerate(later.examples):
        same = by_key.get(keys[second][row])
        if same:
            copies.append(_copy(example, [earlier.examples[i] for i in same]))
        elif row in alike:
            other, similarity = alike[row]
            copies.append(_shown("near", example, earlier.examples[other], similarity))
    before, after = earlier.label_counts(), later.label_counts()
    labelled = "labelled" in (earlier.kind, later.kind)
    values = {str(e.meta[group]) for e in earlier.examples if group in e.meta} if group else set()
    groups = Counter(str(e.meta[group]) for e in later.examples if group and str(e.meta.get(group)) in values)
    return Pair(
        first,
        second,
        len(later),
        tuple(copies),
        {label: count for label, count in sorted(after.items()) if label not in before} if labelled else {},
        tuple(sorted(before.keys() - after.keys())) if labelled else (),
        dict(groups.most_common()),
    )


def _copy(example: Example, same: Sequence[Example]) -> Copy:
    """The closest of the rows that ask the same: literally equal before equal after normalising, another label first."""
    said = [m.content for m in example.messages if m.role != "assistant"]
    literal = [e for e in same if [m.content for m in e.messages if m.role != "assistant"] == said]
    among = literal or same
    other = next((e for e in among if e.target != example.target), among[0])
    return _shown("exact" if literal else "normalised", example, other, 1.0)


def _shown(kind: Kind, example: Example, other: Example, similarity: float) -> Copy:
    labels = None if example.target is None or other.target is None else (example.target, other.target)
    text = " ".join(content_key(example).split())[:SHOWN_CHARACTERS]
    return Copy(kind, example.source or example.id, other.source or other.id, text, similarity, labels)


def _near_pairs(
    keys: Mapping[str, Sequence[str]], threshold: float
) -> dict[tuple[str, str], dict[int, tuple[int, float]]]:
    """(first split, second split) -> row of the second -> (row of the first, similarity): the most alike one, never an equal one."""
    places: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for name, own in keys.items():
        for row, key in enumerate(own):
            places[key].append((name, row))
    texts = list(places)
    order = {name: place for place, name in enumerate(keys)}
    out: dict[tuple[str, str], dict[int, tuple[int, float]]] = defaultdict(dict)
    for rows in near_groups(texts, threshold):
        by_split: dict[str, list[int]] = defaultdict(list)
        for text in rows:
            for name in {name for name, _ in places[texts[text]]}:
                by_split[name].append(text)
        for second, later in by_split.items():
            for first, earlier in by_split.items():
                if order[first] < order[second]:
                    _closest(out[first, second], texts, places, (first, earlier), (second, later), threshold)
    return out


def _closest(
    found: dict[int, tuple[int, float]],
    texts: Sequence[str],
    places: Mapping[str, Sequence[tuple[str, int]]],
    earlier: tuple[str, Sequence[int]],
    later: tuple[str, Sequence[int]],
    threshold: float,
) -> None:
    """A group holds chains of likeness, so its members are compared one by one."""
    for text in later[1]:
        others = [other for other in earlier[1] if other != text][:_MOST_COMPARED]
        scored = [(jaccard(texts[text], texts[other]), other) for other in others]
        similarity, other = max(scored, default=(0.0, -1))
        if similarity < threshold:
            continue
        of = next(row for name, row in places[texts[other]] if name == earlier[0])
        for name, row in places[texts[text]]:
            if name == later[0]:
                found[row] = (of, similarity)


def _conflicts(name: str, part: Dataset, keys: Sequence[str]) -> list[Conflict]:
    rows: dict[str, list[Example]] = defaultdict(list)
    if part.kind == "labelled":
        for key, example in zip(keys, part.examples, strict=True):
            rows[key].append(example)
    out = []
    for key, same in rows.items():
        labels = Counter(str(e.target) for e in same)
        if len(labels) > 1:
            text = " ".join(key.split())[:SHOWN_CHARACTERS]
            out.append(Conflict(name, text, dict(labels.most_common()), tuple(e.source or e.id for e in same)))
    return out
