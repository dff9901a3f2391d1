"""Learning how a teacher got there: its rationale is a second task beside the answer (Distilling step-by-step; Hsieh et al. 2023, equations 3 and 4).

    L = mean over examples of l(f([label] x), answer)  +  rationale_weight * mean over examples of l(f([rationale] x), rationale)

l is the mean cross-entropy of the target's tokens. Which task is meant is said before the input; the result is asked for the answer alone, so that it costs
no more than one trained without. A row's rationale is its field ``rationale``, ``reasoning``, ``explanation`` or ``solution``, or what comes before ``####`` in its answer
(``luthier data answers --rationale`` writes such rows of any model). A row without one only bears the first term.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from luthier.core import catalog
from luthier.core.catalog import EntryConfig
from luthier.core.dataset import Dataset, Example
from luthier.core.errors import DataError, UnsupportedError
from luthier.core.task import PromptTemplate
from luthier.data.reasons import RATIONALES, answer_of, rationale_of
from luthier.data.render_source import SourceRenderer
from luthier.models.load import LoadedModel
from luthier.objectives import _seq2seq
from luthier.objectives._log_probs import token_log_probs
from luthier.objectives._loss import Loss
from luthier.objectives._rows import Limits, require_kind, require_labels
from luthier.objectives._shown import Line

KINDS = ("question", "labelled")
ARCHITECTURES = ("decoder", "encoder-decoder")
DEFAULT_FOR = ()
DEFAULTS: Mapping[str, Mapping[str, Any]] = {}
LOSS_ONLY = ("rationale_weight",)


class Config(EntryConfig):
    """``label_prefix`` and ``rationale_prefix`` stand before the input and say which of the two is asked for. ``rationale_weight`` is the paper's lambda."""

    label_prefix: str = "[label] "
    rationale_prefix: str = "[rationale] "
    rationale_weight: float = Field(1.0, gt=0)


@dataclass(slots=True)
class Row:
    """Two rows of sft: one that answers, and one that explains, where there is a rationale."""

    label: Any
    rationale: Any | None

    @property
    def length(self) -> int:
        """Tokens that it costs."""
        return int(self.label.length) + (int(self.rationale.length) if self.rationale is not None else 0)

    @property
    def weight(self) -> int:
        """One example."""
        return 1

    @property
    def source(self) -> str:
        """``file:line``."""
        return str(self.label.source)


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch of sft: ``labels`` rows that answer, then those that explain. ``owners`` (labelled tokens): the row of each; ``counts`` (rows): how many it has."""

    plain: Any
    labels: int
    owners: Tensor
    counts: Tensor

    def lines(self) -> list[Line]:
        """What is read and asked, token by token."""
        found: list[Line] = self.plain.lines()
        return found


def asked(prompt: PromptTemplate, config: Config) -> PromptTemplate:
    """What the result is asked with: the task of answering."""
    return replace(prompt, input=config.label_prefix + prompt.input)


def prepare(dataset: Dataset, model: LoadedModel, prompt: PromptTemplate, config: Config, limits: Limits) -> list[Any]:
    """Tokenise both tasks. Raises UnsupportedError for other data or an encoder, DataError where no row has a rationale, or one no answer or too many
    tokens."""
    require_kind(dataset, KINDS, "step_by_step")
    renderer = model.renderer
    if renderer is None:
        raise UnsupportedError(
            f"objective step_by_step needs a decoder or an encoder-decoder; {model.record.name} is an encoder",
            hint="use objective: classify",
        )
    if dataset.kind == "labelled" and prompt.labels:
        require_labels(dataset, prompt.labels)
    _require_answers(dataset)
    thoughts = [rationale_of(example) for example in dataset.examples]
    if not any(thoughts):
        raise DataError(
            f"{dataset.name}: no row has a rationale (fields {', '.join(RATIONALES[:-1])}, or an answer with ####)",
            hint="luthier data answers FILE --model TEACHER --strategy zero_shot_cot --rationale writes them",
        )
    said = [answer_of(example) for example in dataset.examples]
    labels = _rows(dataset.examples, said, model, asked(prompt, config))
    explains = [place for place, thought in enumerate(thoughts) if thought]
    second = replace(prompt, input=config.rationale_prefix + prompt.input)
    with_reason = [dataset.examples[place] for place in explains]
    reasons = dict(zip(explains, _rows(with_reason, [thoughts[p] for p in explains], model, second), strict=True))
    rows = []
    for place, (example, label) in enumerate(zip(dataset.examples, labels, strict=True)):
        row = Row(label, reasons.get(place))
        parts = [part for part in (row.label, row.rationale) if part is not None]
        longest = max(_tokens(part) for part in parts)
        if limits.admit(example, longest, partial(_shorten, row, renderer, limits.context_length)):
            rows.append(row)
    limits.check()
    return rows


def _require_answers(dataset: Dataset) -> None:
    bare = [e.source or e.id for e in dataset.examples if e.target is None]
    if bare:
        raise DataError(f"{dataset.name}: {len(bare)} rows have no answer: {', '.join(bare[:5])}")


def _rows(examples: Sequence[Example], targets: Sequence[str], model: LoadedModel, prompt: PromptTemplate) -> list[Any]:
    """A row of sft for each example, as long as it comes."""
    entry = catalog.load("objectives", "sft")
    asked_for = tuple(replace(e, target=t) for e, t in zip(examples, targets, strict=True))
    whole = Limits(sys.maxsize)
    rows: list[Any] = entry.module.prepare(
        Dataset("rows", "question", asked_for), model, prompt, entry.configure(), whole
    )
    return rows


def _tokens(part: Any) -> int:
    """What the context must hold: of an encoder-decoder source and target each for itself."""
    if isinstance(part, _seq2seq.PairRow):
        return max(len(part.source_ids), len(part.target_ids))
    return int(part.length)


def _shorten(row: Row, renderer: Any, length: int) -> bool:
    """Cut both; a rationale of which nothing is left is left out."""

    def cut(part: Any) -> bool:
        if isinstance(renderer, SourceRenderer):
            return _seq2seq.shorten(part, renderer, length)
        left: bool = catalog.load("objectives", "sft").module.shorten(part, length)
        return left

    if row.rationale is not None and not cut(row.rationale):
        row.rationale = None
    return cut(row.label)


def collate(rows: Sequence[Any], model: LoadedModel) -> Batch:
    """Both tasks in one padded batch."""
    parts = [row.label for row in rows] + [row.rationale for row in rows if row.rationale is not None]
    plain = catalog.load("objectives", "sft").module.collate(parts, model)
    counts = torch.tensor([part.weight for part in parts], device=model.device)
    owners = torch.arange(len(parts), device=model.device).repeat_interleave(counts)
    return Batch(plain, len(rows), owners, counts)


def loss(model: LoadedModel, batch: Batch, config: Config) -> Loss:
    """Mean over the examples; metrics ``label_loss`` and ``rationale_loss``, the two terms before the weight."""
    hidden = catalog.load("objectives", "sft").module.hidden_at_labels(model, batch.plain)
    values = -token_log_probs(model, hidden, batch.plain.targets)
    each = torch.zeros(len(batch.counts), device=values.device).index_add(0, batch.owners, values) / batch.counts
    label, rationale = each[: batch.labels].sum() / batch.labels, each[batch.labels :].sum() / batch.labels
    metrics = {"label_loss": float(label.detach()), "rationale_loss": float(rationale.detach())}
    return Loss(label + config.rationale_weight * rationale, batch.labels, metrics)
