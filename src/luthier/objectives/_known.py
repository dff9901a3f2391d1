"""What the data itself says belongs together, so that it is never taken for a negative."""

from __future__ import annotations

from luthier.core.dataset import Dataset
from luthier.core.errors import DataError


def known_positives(dataset: Dataset) -> dict[str, set[str]]:
    """Anchor -> what may not be its negative: itself, and every positive that it has in any row.

    Raises DataError where a row's own negative is one of them.
    """
    found: dict[str, set[str]] = {}
    for example in dataset.examples:
        found.setdefault(example.text, {example.text}).update(example.positives)
    for example in dataset.examples:
        for text in example.negatives:
            if text in found[example.text]:
                what = "the anchor itself" if text == example.text else "a positive of the same anchor in another row"
                raise DataError(
                    f"{example.source or example.id}: the negative {text[:60]!r} is {what}",
                    hint="take it out of the negatives, or the other row out of the data",
                )
    return found
