"""Cut a dataset in train, validation and test: by label in proportion, copies of a text never on two sides.

Which side a row falls on depends on its content and the seed alone, never on the order of the file. Only where there are fewer plain documents
than splits (one book) the documents themselves are cut: their beginnings are for training, their ends are held out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from luthier.core.dataset import Dataset, Example, Kind, Splits
from luthier.core.digest import digest_text
from luthier.core.entities import from_answer
from luthier.core.errors import DataError, InputError
from luthier.core.message import Message
from luthier.data.dedupe import content_key

NAMES = ("train", "validation", "test")

_NUMBER_STRATA, _LEAST_IN_STRATUM = 10, 10


def split(
    dataset: Dataset, *, train: float = 0.6, validation: float = 0.15, test: float = 0.25, seed: int = 0
) -> Splits:
    """Cut ``dataset`` by the given fractions, which must add up to 1; ``validation`` and ``test`` may be 0.

    Each label is cut in proportion, and one with at least as many different texts as there are splits is in all of them; a rarer one is
    in train at least. Numbers are cut in proportion within each tenth of their range of ranks,
    texts with entities by the rarest type in them. Raises
    InputError for impossible fractions, DataError when there are fewer different texts than splits.
    """
    fractions = {"train": train, "validation": validation, "test": test}
    _check(fractions)
    wanted = {name: share for name, share in fractions.items() if share > 0}
    by_key: dict[str, list[Example]] = {}
    for example in dataset.examples:
        by_key.setdefault(content_key(example), []).append(example)
    if len(by_key) < len(wanted) and dataset.kind == "text":
        return _cut_documents(dataset, wanted)
    if len(by_key) < len(wanted):
        raise DataError(
            f"{dataset.name} has {len(by_key)} different texts, which cannot fill {len(wanted)} splits ({', '.join(wanted)})"
        )
    order = {key: digest_text(f"{seed}\n{key}") for key in by_key}
    strata: dict[str, list[str]] = {}
    stratum = _strata(dataset.kind, by_key)
    for key in sorted(by_key, key=order.__getitem__):
        strata.setdefault(stratum.get(key, ""), []).append(key)
    chosen: dict[str, list[str]] = {name: [] for name in NAMES}
    for label in sorted(strata):
        sizes = {key: len(by_key[key]) for key in strata[label]}
        for name, keys in _deal(sizes, wanted).items():
            chosen[name] += keys
    _fill_empty(chosen, wanted)
    parts = {
        name: Dataset(
            f"{dataset.name}/{name}",
            dataset.kind,
            tuple(e for key in sorted(keys, key=order.__getitem__) for e in sorted(by_key[key], key=lambda e: e.id)),
            dataset.format,
        )
        for name, keys in chosen.items()
    }
    return Splits(**parts)


def check_labels(splits: Splits) -> None:
    """Raise DataError when a classifier cannot be taught or judged on these splits: one label only, or one that training never shows."""
    if splits.train.kind != "labelled":
        return
    if len(splits.train.labels) < 2:
        only = ", ".join(map(repr, splits.train.labels)) or "none"
        raise DataError(
            f"a classification task needs at least two labels in train; got only one label: {only}",
            hint="add rows of another label, or train on conversations instead",
        )
    for name in NAMES[1:]:
        counts = getattr(splits, name).label_counts()
        unseen = sorted(counts.keys() - set(splits.train.labels))
        if unseen:
            label = unseen[0]
            more = f" (also {', '.join(map(repr, unseen[1:]))})" if unseen[1:] else ""
            raise DataError(
                f"label {label!r} occurs in {name} ({counts[label]} rows) but never in train{more}",
                hint="add rows of it to train, take it out, or correct its spelling",
            )


def _check(fractions: Mapping[str, float]) -> None:
    for name, share in fractions.items():
        if not (math.isfinite(share) and 0 <= share <= 1):
            raise InputError(f"{name} must be a fraction between 0 and 1; got {share}")
    if not fractions["train"]:
        raise InputError("train must be above 0; got 0")
    total = sum(fractions.values())
    if abs(total - 1) > 1e-6:
        raise InputError(f"train + validation + test must be 1; got {total:g}")


def _cut_documents(dataset: Dataset, wanted: Mapping[str, float]) -> Splits:
    """Every document in as many parts as there are splits, in reading order: train, validation, test."""
    from luthier.data.read import example_id

    parts: dict[str, list[Example]] = {name: [] for name in NAMES}
    for example in dataset.examples:
        begin, share, text = 0, 0.0, example.text
        for number, (name, size) in enumerate(wanted.items(), 1):
            share += size
            end = len(text) if number == len(wanted) else _pause(text, begin, round(share * len(text)))
            piece = text[begin:end].strip("\n")
            if not piece.strip():
                raise DataError(
                    f"{dataset.name} has {len(dataset)} texts, which are too short to be cut for {len(wanted)} splits",
                    hint="give more text, or all of it to training: data.split.train=1 data.split.validation=0",
                )
            made = replace(example, messages=(*example.messages[:-1], Message("user", piece)))
            parts[name].append(replace(made, id=example_id(made)))
            begin = end
    return Splits(**{k: Dataset(f"{dataset.name}/{k}", "text", tuple(v), dataset.format) for k, v in parts.items()})


def _pause(text: str, begin: int, wanted: int) -> int:
    """The best place for a cut in the twentieth of the text before ``wanted``: after a paragraph, a line, or a word; else there."""
    least = max(begin + 1, wanted - max(1, len(text) // 20))
    for sign in ("\n\n", "\n", " "):
        found = text.rfind(sign, least, wanted)
        if found >= 0:
            return found + len(sign)
    return wanted


def _strata(kind: Kind, by_key: Mapping[str, Sequence[Example]]) -> dict[str, str]:
    """What each group of copies is cut in proportion by; nothing for kinds that have nothing such."""
    if kind == "labelled":
        return {key: _label(examples) for key, examples in by_key.items()}
    if kind == "number":
        values = {key: sum(e.score or 0.0 for e in examples) / len(examples) for key, examples in by_key.items()}
        parts = min(_NUMBER_STRATA, max(1, len(values) // _LEAST_IN_STRATUM))
        ranked = sorted(values, key=lambda key: (values[key], key))
        return {key: f"{rank * parts // len(ranked):02d}" for rank, key in enumerate(ranked)}
    if kind == "entities":  # by the rarest type in them, so that all are on every side
        types = {
            key: {e.type for x in examples for e in from_answer(x.target or "[]")} for key, examples in by_key.items()
        }
        often = Counter(kind for found in types.values() for kind in found)
        return {key: min(found, key=lambda kind: (often[kind], kind), default="") for key, found in types.items()}
    return {}


def _label(examples: Sequence[Example]) -> str:
    """The label of a group of copies: the most frequent one, the first in the alphabet among equals."""
    counts = Counter(e.target or "" for e in examples)
    return min(counts, key=lambda label: (-counts[label], label))


def _targets(rows: int, wanted: Mapping[str, float]) -> dict[str, int]:
    """Rows for each split: by largest remainder, then one row each as far as they reach (train, then test, then validation)."""
    exact = {name: rows * share for name, share in wanted.items()}
    out = {name: int(share + 1e-9) for name, share in exact.items()}
    left = rows - sum(out.values())
    for name in sorted(out, key=lambda name: (round(out[name] - exact[name], 9), -wanted[name]))[:left]:
        out[name] += 1
    for name in [name for name in ("train", "test", "validation") if name in out][:rows]:
        if not out[name]:
            out[max(out, key=lambda other: out[other])] -= 1
            out[name] = 1
    return out


def _deal(sizes: Mapping[str, int], wanted: Mapping[str, float]) -> dict[str, list[str]]:
    """Give groups of copies (large ones first) to the split that lacks most rows."""
    lacking = _targets(sum(sizes.values()), wanted)
    out: dict[str, list[str]] = {name: [] for name in wanted}
    for key in sorted(sizes, key=lambda key: -sizes[key]):
        name = max(lacking, key=lambda name: (lacking[name], wanted[name]))
        out[name].append(key)
        lacking[name] -= sizes[key]
    _fill_empty(out, wanted if len(sizes) >= len(wanted) else ["train"])
    return out


def _fill_empty(chosen: dict[str, list[str]], wanted: Iterable[str]) -> None:
    """Move one group to each wanted split that has none, out of the split with the most groups."""
    for name in wanted:
        if not chosen[name]:
            fullest = max(chosen, key=lambda other: len(chosen[other]))
            chosen[name].append(chosen[fullest].pop())
