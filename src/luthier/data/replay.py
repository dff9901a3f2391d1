"""Old examples mixed into new ones, so that a model which goes on learning does not forget (Robins 1995; Rolnick et al. 2019; Chaudhry et al. 2019).

What is kept and what is drawn follow from the examples and the seed alone, by digests: no state is carried from step to step, and a repeated step
draws the same. The smallest digests of a stream are a uniform sample of it, as a reservoir's content is (Vitter 1985).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, TypeAlias

from luthier.core.dataset import Dataset, Example
from luthier.core.digest import digest_text

Keep = Literal["balanced", "reservoir"]
_Grouped: TypeAlias = tuple[tuple[int, str | None], Example]


def remember(earlier: Sequence[Dataset], size: int | None, keep: Keep, seed: int) -> tuple[Example, ...]:
    """The memory after ``earlier`` datasets: all their examples, or ``size`` of them.

    balanced: equally many of every label of every dataset (of every dataset, where there are no labels), as far as it has them; reservoir: each example
    is as likely as any other. What is forgotten does not come back: a smaller memory is a part of a larger one, and one after more datasets
    holds of each old one only what it held before.
    """
    every = _grouped(earlier)
    chosen = _chosen(every, len(every) if size is None else size, keep, f"{seed}")
    return tuple(example for _, example in chosen)


def with_replay(
    new: Dataset, earlier: Sequence[Dataset], *, share: float, size: int | None, keep: Keep, seed: int
) -> tuple[Dataset, tuple[Example, ...]]:
    """``new`` with so many remembered examples behind it that they are ``share`` of the whole (or all there are, if that is fewer); and these.

    Which ones is drawn anew for every number of ``earlier`` datasets. An example that ``new`` has itself is not drawn.
    """
    known = {example.id for example in new.examples}
    every = _grouped(earlier)
    held = _chosen(every, len(every) if size is None else size, keep, f"{seed}")
    free = [(group, example) for group, example in held if example.id not in known]
    count = min(len(free), round(len(new) * share / (1 - share)))
    drawn = tuple(example for _, example in _chosen(free, count, keep, f"{seed} draw {len(earlier)}"))
    if not drawn:
        return new, ()
    return replace(new, name=f"{new.name}+{len(drawn)} old", examples=new.examples + drawn), drawn


def _grouped(earlier: Sequence[Dataset]) -> list[_Grouped]:
    """Every example once, with its dataset's number and its label, if it has one."""
    found: dict[str, _Grouped] = {}
    for number, dataset in enumerate(earlier):
        for example in dataset.examples:
            label = example.target if dataset.kind == "labelled" else None
            found.setdefault(example.id, ((number, label), example))
    return list(found.values())


def _chosen(every: Sequence[_Grouped], count: int, keep: Keep, salt: str) -> list[_Grouped]:
    """``count`` of the examples, in the order of their digests; balanced: a first of every group, then a second, and so on."""
    ranked = sorted(every, key=lambda each: digest_text(f"{salt}\n{each[1].id}"))
    if keep == "balanced":
        met: Counter[tuple[int, str | None]] = Counter()
        rounds = []
        for group, _ in ranked:
            rounds.append(met[group])
            met[group] += 1
        ranked = [each for _, each in sorted(zip(rounds, ranked, strict=True), key=lambda pair: pair[0])]
    return ranked[:count]
