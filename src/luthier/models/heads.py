"""Heads whose answers are no labels of a closed set: what their outputs mean is stored with them.

A head is a linear layer in fp32. One of plain ``nn.Linear`` gives scores (labels, rewards, relevance); the classes here say themselves how
their outputs become an answer. The manifest of a trained model holds ``describe(head)``, and ``build_head`` makes the same head of it again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.errors import DataError
from luthier.models.weights import AGAIN

NUMBER, TAGS = "number", "tags"


class NumberHead(nn.Linear):
    """One output: how many ``deviation`` the number lies above ``mean``, both of the training targets."""

    answers = NUMBER
    mean: Tensor
    deviation: Tensor

    def __init__(self, width: int, mean: float = 0.0, deviation: float = 1.0) -> None:
        super().__init__(width, 1, dtype=torch.float32)
        nn.init.normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)  # before training the answer is the mean
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("deviation", torch.tensor(deviation, dtype=torch.float32))

    def numbers(self, outputs: Tensor) -> Tensor:
        """Outputs (rows, 1) in the unit of the data, (rows,) fp32."""
        return outputs[:, 0].float() * self.deviation + self.mean


class TagHead(nn.Linear):
    """For every token the classes O, and B and I of each of ``types``; ``subtokens`` says which tokens of a word are read: first, or all."""

    answers = TAGS

    def __init__(self, width: int, types: Sequence[str], subtokens: str = "first") -> None:
        super().__init__(width, 1 + 2 * len(types), dtype=torch.float32)
        nn.init.normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)
        self.types, self.subtokens = tuple(types), subtokens


def answers_of(head: Any) -> str:
    """What a head answers with: ``number``, ``tags``, or "" for plain scores (and for no head)."""
    return str(getattr(head, "answers", ""))


def describe(head: nn.Linear) -> dict[str, Any]:
    """What a manifest says of a head without labels."""
    answers = answers_of(head)
    more = {"types": list(head.types), "subtokens": head.subtokens} if isinstance(head, TagHead) else {}
    return {"outputs": head.out_features, **({"answers": answers} if answers else {}), **more}


def build_head(described: Mapping[str, Any], width: int, tensors: Mapping[str, Tensor]) -> nn.Linear:
    """The head that a manifest describes, with the tensors of its file. Raises DataError for one that is not known or does not fit."""
    answers = described.get("answers") or ""
    outputs = len(tensors["weight"])
    if answers == NUMBER and outputs == 1:
        head: nn.Linear = NumberHead(width)
    elif answers == TAGS and outputs == 1 + 2 * len(described.get("types") or ()):
        head = TagHead(width, described["types"], described.get("subtokens", "first"))
    elif not answers:
        head = nn.Linear(width, outputs, bias="bias" in tensors)
    else:
        raise DataError(f"a head that answers with {answers!r} and has {outputs} outputs is not known", hint=AGAIN)
    try:
        head.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise DataError(f"the head's file does not fit its description: {error}", hint=AGAIN) from error
    return head


def number_text(value: float) -> str:
    """A number as an answer: six significant digits, never an exponent."""
    written = format(Decimal(f"{value:.6g}"), "f")
    return written.rstrip("0").rstrip(".") if "." in written else written
