"""What an objective asks of each token, read off the very batches that its loss gets: for people who want to see what is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from luthier.core.catalog import Entry
from luthier.core.dataset import Dataset
from luthier.core.errors import UnsupportedError
from luthier.core.task import PromptTemplate
from luthier.models.load import LoadedModel
from luthier.models.score import Row as ScoredRow
from luthier.objectives._rows import Limits


@dataclass(frozen=True, slots=True)
class Shown:
    """A token id as the model reads it, and the one that the loss asks for in its place; None where it asks for nothing."""

    read: int
    wanted: int | None = None


Line = list[Shown]
"""One sequence."""


def next_tokens(ids: Tensor, places: Tensor, targets: Tensor) -> list[Line]:
    """Of ids (rows, length) where each flattened place predicts the token after it."""
    return same_places(ids, places + 1, targets)


def same_places(ids: Tensor, places: Tensor, targets: Tensor) -> list[Line]:
    """Of ids (rows, length) where each flattened place is asked for its own token."""
    wanted = dict(zip(places.tolist(), targets.tolist(), strict=True))
    width = ids.shape[1]
    return [
        [Shown(token, wanted.get(number * width + at)) for at, token in enumerate(row)]
        for number, row in enumerate(ids.tolist())
    ]


def answer_lines(rows: Sequence[ScoredRow]) -> list[Line]:
    """A line for every answer of every row, all of whose tokens count, after its prompt, of which none does."""
    return [
        [*map(Shown, row.prompt), *(Shown(token, token) for token in answer)]
        for row in rows
        for answer in row.continuations
    ]


def lines(
    objective: Entry, dataset: Dataset, model: LoadedModel, prompt: PromptTemplate, config: Any
) -> Iterator[tuple[str, list[Line]]]:
    """(source, its sequences) of every row that ``objective`` makes of ``dataset``; ``model`` may be a sketch (``models.shapes``).

    Raises UnsupportedError for an objective whose loss is not on single tokens, or that learns from another model; and what its
    ``prepare`` raises.
    """
    if objective.optional("before") is not None and objective.optional("reads") is not None:
        raise UnsupportedError(
            f"objective {objective.name} learns what its teacher says, which is not computed here",
            hint="sft and classify train the same tokens: --objective sft",
        )
    model = replace(model, device=torch.device("cpu"))
    if (heads := objective.optional("heads_for")) is not None:
        heads(model, dataset, config)
    for row in objective.module.prepare(dataset, model, prompt, config, Limits(model.context_length, "truncate")):
        batch = objective.module.collate([row], model)
        if not hasattr(batch, "lines"):
            raise UnsupportedError(
                f"objective {objective.name} has no loss on single tokens: it compares or scores whole texts",
                hint="leave --objective out to see what the model reads",
            )
        yield row.source, batch.lines()
