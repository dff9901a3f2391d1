"""Several tasks on one body while it is trained: the head and the labels of each, of which one at a time is the model's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from luthier.models.load import LoadedModel


class TaskHeads(nn.Module):
    """The heads by task, for those that have one, the labels of all, and the logarithms of their variances where these are trained."""

    def __init__(
        self, labels: Mapping[str, Sequence[str]], heads: Mapping[str, Any], *, variances: bool = False
    ) -> None:
        super().__init__()
        self.labels = {task: tuple(of) for task, of in labels.items()}
        self.heads = nn.ModuleDict({task: head for task, head in heads.items() if head is not None})
        self.log_variances = nn.ParameterDict(
            {task: nn.Parameter(torch.zeros(())) for task in labels} if variances else {}
        )

    def of(self, task: str) -> Any:
        """The head of ``task``; None where its objective has none."""
        return dict(self.heads.items()).get(task)


@contextmanager
def answering(model: LoadedModel, task: str) -> Iterator[None]:
    """Within the block ``model`` has the head and the labels of ``task``, as a model of that task alone would."""
    heads, labels = model.head, model.labels
    assert isinstance(heads, TaskHeads)
    model.put_head(heads.of(task))
    model.labels = heads.labels[task]
    try:
        yield
    finally:
        model.put_head(heads)
        model.labels = labels


@contextmanager
def bare(model: LoadedModel) -> Iterator[None]:
    """Within the block ``model`` is the body that all tasks share, without any head."""
    heads = model.head
    model.put_head(None)
    try:
        yield
    finally:
        model.put_head(heads)
