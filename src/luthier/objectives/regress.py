"""Regression: a linear layer of one output says the number that belongs to a text.

The targets are standardised by the mean and the deviation of the training targets, z = (y - mean) / deviation, which are stored with the head,
so that answers come in the data's own unit. For the output f the loss of a row, by ``loss``, is

    mse (f - z)^2     mae |f - z|     huber  (f - z)^2 / 2 where |f - z| <= delta, else delta (|f - z| - delta / 2)   (Huber 1964, eq. 2.4)

An encoder's layer reads the pooled vector, a decoder's the hidden state at the end of the prompt (Radford et al. 2018, section 3.3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from luthier.core.catalog import EntryConfig
from luthier.core.dataset import Dataset
from luthier.core.errors import DataError, UnsupportedError
from luthier.core.task import PromptTemplate
from luthier.models.adapters import inner_of
from luthier.models.heads import NumberHead
from luthier.models.load import LoadedModel
from luthier.models.regression import prompt_outputs
from luthier.objectives import _head
from luthier.objectives._label_texts import shorten_prompt
from luthier.objectives._loss import Loss
from luthier.objectives._rows import Limits, require_kind

KINDS = ("number",)
ARCHITECTURES = ("decoder", "encoder")
DEFAULT_FOR = ("number",)
DEFAULTS: Mapping[str, Mapping[str, Any]] = {}
LOSS_ONLY = ("loss", "delta")


class Config(EntryConfig):
    """``loss``: ``mse``, ``mae`` (less moved by outliers) or ``huber`` (between them; ``delta`` in standard deviations of the targets)."""

    loss: Literal["mse", "mae", "huber"] = "mse"
    delta: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _delta_is_of_huber(self) -> Config:
        if "delta" in self.model_fields_set and self.loss != "huber":
            raise ValueError(f"delta is of loss huber; loss is {self.loss}. Leave it out")
        return self


@dataclass(slots=True)
class PromptRow:
    """A prompt's ids and its number."""

    prompt: list[int]
    label: float
    source: str

    @property
    def length(self) -> int:
        """Tokens that it costs."""
        return len(self.prompt)

    @property
    def weight(self) -> int:
        """One example."""
        return 1


@dataclass(frozen=True, slots=True)
class PromptBatch:
    """Prompts and their numbers (rows,)."""

    prompts: list[list[int]]
    labels: Tensor


def heads_for(model: LoadedModel, train: Dataset, config: Config) -> None:
    """A linear layer of one output with the scale of the training targets; one from an earlier tuning stays, with its own scale.

    Raises UnsupportedError for another architecture or kind, DataError for targets that are all the same.
    """
    require_kind(train, KINDS, "regress")
    if model.architecture not in ARCHITECTURES:
        raise UnsupportedError(
            f"objective regress needs a decoder or an encoder; {model.record.name} is of architecture {model.architecture}",
            hint="say the number as text instead: objective: sft",
        )
    head = model.head
    if not isinstance(head, NumberHead):
        targets = torch.tensor([_target(e) for e in train.examples], dtype=torch.float64)
        mean, deviation = float(targets.mean()), float(targets.std(correction=0))
        if not deviation:
            raise DataError(f"every target of {train.name} is {mean:g}: there is nothing to learn")
        head = NumberHead(inner_of(model).config.get_text_config().hidden_size, mean, deviation)
    model.put_head(head.to(model.device).requires_grad_(True))


def _target(example: Any) -> float:
    if example.score is None:
        raise DataError(f"{example.source or example.id}: regress needs a number; this row has none")
    return float(example.score)


def prepare(dataset: Dataset, model: LoadedModel, prompt: PromptTemplate, config: Config, limits: Limits) -> list[Any]:
    """Tokenise texts (an encoder's) or prompts (a decoder's). Raises UnsupportedError for another kind, DataError for an overlong row."""
    require_kind(dataset, KINDS, "regress")
    wanted = [_target(e) for e in dataset.examples]
    if model.architecture == "encoder":
        return list(_head.prepare_rows(dataset, model, wanted, limits))
    assert model.renderer is not None  # decoders have one
    prompts = model.renderer.prompt_ids_batch([prompt.messages(e.text) for e in dataset.examples])
    rows = []
    for example, ids, number in zip(dataset.examples, prompts, wanted, strict=True):
        row = PromptRow(ids, number, example.source or example.id)
        shorten = partial(shorten_prompt, row, example.text, limits.context_length, model, prompt)
        if limits.admit(example, row.length, shorten):
            rows.append(row)
    limits.check()
    return rows


def collate(rows: Sequence[Any], model: LoadedModel) -> _head.HeadBatch | PromptBatch:
    """One batch of ``prepare``'s rows."""
    if model.architecture == "encoder":
        return _head.collate(rows, model)
    return PromptBatch([row.prompt for row in rows], torch.tensor([row.label for row in rows], device=model.device))


def loss(model: LoadedModel, batch: _head.HeadBatch | PromptBatch, config: Config) -> Loss:
    """Mean over the examples; metric ``mae`` in the data's unit, and with ``figures`` Pearson's and Spearman's correlation."""
    if isinstance(batch, PromptBatch):
        outputs = prompt_outputs(model, batch.prompts)
    else:
        outputs = _head.label_logits(model, batch)
    head: NumberHead = model.head
    labels = batch.labels.to(torch.float32)
    wanted, said = (labels - head.mean) / head.deviation, outputs[:, 0].float()
    if config.loss == "huber":
        value = F.huber_loss(said, wanted, delta=config.delta)
    else:
        value = F.mse_loss(said, wanted) if config.loss == "mse" else F.l1_loss(said, wanted)
    numbers = head.numbers(outputs.detach())
    pairs = zip(numbers.tolist(), labels.tolist(), strict=True)
    mae = float((numbers - labels).abs().mean())
    return Loss(value, len(labels), {"mae": mae}, tuple(pairs))


def figures(outcomes: Sequence[tuple[float, float]], config: Config) -> dict[str, float]:
    """Pearson's and Spearman's correlation of (said, wanted) over a whole set; 0 where either side is the same everywhere."""
    from scipy.stats import rankdata

    said, wanted = (torch.tensor(column, dtype=torch.float64) for column in zip(*outcomes, strict=True))
    ranks = (torch.from_numpy(rankdata(column.numpy())) for column in (said, wanted))
    return {"pearson": _correlation(said, wanted), "spearman": _correlation(*ranks)}


def _correlation(one: Tensor, other: Tensor) -> float:
    if len(one) < 2 or not (float(one.std()) and float(other.std())):
        return 0.0
    return float(torch.corrcoef(torch.stack([one, other]))[0, 1])
