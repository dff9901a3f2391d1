"""Layer-wise distillation: a student's layers imitate those of its teacher (TinyBERT; Jiao et al. 2020, equations 7 to 11).

Of every example, means over its real tokens, and the mean over the examples, of

    embeddings * MSE(E_s W_e, E_t)  +  sum over layers m of  hidden * MSE(H_s[m] W_h, H_t[g(m)])  +  attention * MSE(A_s[m], A_t[g(m)])
    +  prediction * cross-entropy(softmax(z_t / T), softmax(z_s / T))

E are the embeddings' outputs, H the layers', A the attention scores before the softmax, z the logits of the labels. W are learned where
the widths differ, and thrown away afterwards. On plain text there are no labels, and the last term is left out: the general
distillation that comes first in the paper. For decoders z are the logits of the tokens that sft (conversations, questions) or causal_lm
(plain text) train on, a mean over those of the example, and A only what a token sees: itself and what is before it. The teacher reads every batch anew: all its layers and scores are too much to keep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from luthier.core import catalog
from luthier.core.catalog import EntryConfig
from luthier.core.dataset import Dataset
from luthier.core.errors import DataError, InputError, MismatchError, UnsupportedError
from luthier.core.model import ModelRecord
from luthier.core.run import Progress
from luthier.core.task import PromptTemplate
from luthier.data.batch import pad
from luthier.models.adapters import inner_of
from luthier.models.decode import hidden_states
from luthier.models.load import LoadedModel, store_of
from luthier.models.watch import Seen, watch, watch_scores
from luthier.objectives import _head, _teacher
from luthier.objectives._language import states_at
from luthier.objectives._loss import Loss
from luthier.objectives._rows import Limits, require_kind, require_labels
from luthier.objectives._soft_targets import soft_cross_entropy
from luthier.store.database import Store
from luthier.store.models import find

KINDS = ("labelled", "text", "chat", "question")
ARCHITECTURES = ("encoder", "decoder")
DEFAULT_FOR = ()
DEFAULTS: Mapping[str, Mapping[str, Any]] = {}


_PROJECTIONS = "projections"


class Config(EntryConfig):
    """``teacher``: name of a stored model, base or tuned, with the student's architecture, tokenizer and (for labelled rows) labels.

    ``layers``: which layer of the teacher each layer of the student imitates: uniform (every so-manieth, the last one among them), last (the
    teacher's last ones), or a list with one layer of the teacher for each of the student's, counted from 0. ``embeddings``, ``hidden``,
    ``attention`` and ``prediction`` are the weights of the four terms; 0 leaves a term out. ``temperature`` T softens the predictions.
    """

    teacher: str = Field(min_length=1)
    layers: Literal["uniform", "last"] | tuple[int, ...] = "uniform"
    embeddings: float = Field(1.0, ge=0)
    hidden: float = Field(1.0, ge=0)
    attention: float = Field(1.0, ge=0)
    prediction: float = Field(1.0, ge=0)
    temperature: float = Field(1.0, gt=0)


@dataclass(slots=True)
class Row:
    """Token ids, the label's index (-1: none), the teacher, and of a decoder the places that predict a trained token."""

    ids: list[int]
    label: int
    source: str
    teacher: LoadedModel | None = None
    places: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        """Tokens that it costs."""
        return len(self.ids)

    @property
    def weight(self) -> int:
        """One example."""
        return 1


@dataclass(frozen=True, slots=True)
class Batch:
    """ids and mask (rows, length), padded on the right; labels (rows), None where there are none. Of a decoder ``places`` index the flattened positions
    that predict, and ``shares`` (places) sum to 1 in each row."""

    ids: Tensor
    mask: Tensor
    labels: Tensor | None
    teacher: LoadedModel
    places: Tensor | None = None
    shares: Tensor | None = None


def mapping(layers: str | Sequence[int], student: int, teacher: int) -> list[int]:
    """The teacher's layer, from 0, that each of ``student`` layers imitates. Raises InputError for a list that does not fit."""
    if layers == "uniform":
        return [(place + 1) * teacher // student - 1 for place in range(student)]
    if layers == "last":
        return [teacher - student + place for place in range(student)]
    given = [int(each) for each in layers]
    if len(given) != student or any(not 0 <= each < teacher for each in given):
        raise InputError(
            f"objective.layers must name one of the teacher's layers 0 to {teacher - 1} for each of the student's {student}; got {given}"
        )
    return given


def reads(
    store: Store, base: ModelRecord, train: Dataset, prompt: PromptTemplate, config: Config
) -> Mapping[str, ModelRecord]:
    """The teacher, checked against the student without reading weights."""
    _require_fit(base, train)
    record = _teacher.check(store, base, train, prompt, config.teacher)
    ours, theirs = _teacher.sizes(store, base), _teacher.sizes(store, record)
    if ours.layers > theirs.layers:
        raise MismatchError(
            f"the student {base.name} has {ours.layers} layers, its teacher {record.name} only {theirs.layers}"
        )
    mapping(config.layers, ours.layers, theirs.layers)
    if config.attention and ours.heads != theirs.heads:
        raise MismatchError(
            f"the student {base.name} has {ours.heads} attention heads, its teacher {record.name} {theirs.heads}",
            hint="leave the attention out: objective.attention=0",
        )
    if (
        base.architecture == "encoder"
        and train.kind == "text"
        and "prediction" in config.model_fields_set
        and config.prediction
    ):
        raise InputError("objective.prediction is for labelled rows; plain text has no labels. Leave it out")
    if train.kind == "labelled" and not config.prediction:
        raise InputError(
            "objective.prediction must be above 0 for labelled rows: the head would learn nothing",
            hint="for the layers alone give plain text (rows with text only), then tune the result on the labelled rows",
        )
    if not (config.embeddings or config.hidden or config.attention):
        raise InputError("all of objective.embeddings, hidden and attention are 0", hint="use objective: distill")
    return {"teacher": record}


def _require_fit(base: ModelRecord, train: Dataset) -> None:
    """Raise UnsupportedError for an architecture or a kind of data that has no layers to compare, or no words to predict."""
    if base.architecture not in ARCHITECTURES:
        raise UnsupportedError(
            f"objective distill_layers needs an encoder or a decoder; {base.name} is of architecture {base.architecture}",
            hint="use objective: distill",
        )
    kinds = KINDS[:2] if base.architecture == "encoder" else KINDS[1:]
    if train.kind not in kinds:
        raise UnsupportedError(
            f"the layers of {base.name}, of architecture {base.architecture}, are distilled on data of kind {', '.join(kinds)}; "
            f"{train.name} is {train.kind}",
            hint="use objective: distill",
        )


def heads(model: LoadedModel, config: Config) -> None:
    """Projections to the teacher's width where it is another, and sight of the attention scores."""
    store = store_of(model)
    wide, narrow = _teacher.sizes(store, find(store, config.teacher)).width, _width(model)
    if wide != narrow:
        made = {name: nn.Linear(narrow, wide, bias=False).to(model.device) for name in ("embeddings", "hidden")}
        wanted = {"embeddings": config.embeddings, "hidden": config.hidden}
        found = nn.ModuleDict({name: each for name, each in made.items() if wanted[name]})
        model.module.add_module(_PROJECTIONS, found)
    if config.attention:
        watch_scores(inner_of(model))


def _width(model: LoadedModel) -> int:
    return int(inner_of(model).config.get_text_config().hidden_size)


def after(model: LoadedModel, rows: Sequence[Any], config: Config, progress: Progress) -> None:
    """The projections have served."""
    model.module._modules.pop(_PROJECTIONS, None)


def prepare(dataset: Dataset, model: LoadedModel, prompt: PromptTemplate, config: Config, limits: Limits) -> list[Any]:
    """Tokenise. Raises DataError for empty texts, labels that training lacks and overlong rows, UnsupportedError where no layer is trained."""
    require_kind(dataset, KINDS, "distill_layers")
    if model.architecture == "decoder":
        return _decoder_rows(dataset, model, prompt, limits)
    if model.module.body_is_frozen:
        raise UnsupportedError(
            "objective distill_layers trains layers; this method leaves them as they are", hint="method: lora or full"
        )
    empty = [e.source or e.id for e in dataset.examples if not e.text.strip()]
    if empty:
        raise DataError(f"{dataset.name}: {len(empty)} rows hold no text: {', '.join(empty[:5])}", hint="remove them")
    if dataset.kind == "labelled":
        require_labels(dataset, model.labels)
        return [Row(row.ids, int(row.label), row.source) for row in _head.prepare(dataset, model, limits)]
    encoded = model.tokenizer([e.text for e in dataset.examples], truncation=False, verbose=False)["input_ids"]
    rows = [Row(list(ids), -1, e.source or e.id) for e, ids in zip(dataset.examples, encoded, strict=True)]

    def shorten(row: Row) -> bool:
        row.ids = row.ids[: limits.context_length - 1] + row.ids[-1:]
        return True

    kept = [
        row
        for e, row in zip(dataset.examples, rows, strict=True)
        if limits.admit(e, row.length, lambda row=row: shorten(row))  # type: ignore[misc]
    ]
    limits.check()
    return kept


def _decoder_rows(dataset: Dataset, model: LoadedModel, prompt: PromptTemplate, limits: Limits) -> list[Any]:
    """Rows of sft, or of causal_lm with a document each."""
    entry = catalog.load("objectives", "causal_lm" if dataset.kind == "text" else "sft")
    config = entry.configure({"pack": False} if dataset.kind == "text" else {})
    found = entry.module.prepare(dataset, model, prompt, config, limits)
    if dataset.kind != "text":
        return [Row(row.ids, -1, row.source, places=tuple(row.places)) for row in found]
    each = [document for row in found for document in row.documents]
    return [Row(d.ids, -1, d.source, places=tuple(range(d.start - 1, len(d.ids) - 1))) for d in each]


def before(model: LoadedModel, rows: Sequence[Any], config: Config, progress: Progress) -> None:
    """Open the teacher; the rows of training and of validation have one in common, and let go of it together."""
    if not rows:
        return
    progress("teacher", 0, 1)
    teacher = _teacher.shared(config.teacher, model, max(row.length for row in rows))
    if config.attention:
        watch_scores(inner_of(teacher))
    for row in rows:
        row.teacher = teacher
    progress("teacher", 1, 1)


def collate(rows: Sequence[Any], model: LoadedModel) -> Batch:
    """One padded batch."""
    if model.architecture == "decoder":
        return _decoder_batch(rows, model)
    ids, mask = _head.padded(rows, model)
    labels = None if rows[0].label < 0 else torch.tensor([row.label for row in rows], device=model.device)
    return Batch(ids, mask, labels, rows[0].teacher)


def _decoder_batch(rows: Sequence[Any], model: LoadedModel) -> Batch:
    assert model.renderer is not None  # decoders have one
    batch, device = pad([row.ids for row in rows], model.renderer.pad_id), model.device
    width = batch.ids.shape[1]
    places = [number * width + place for number, row in enumerate(rows) for place in row.places]
    shares = [1 / len(row.places) for row in rows for _ in row.places]
    held = torch.tensor(places, device=device), torch.tensor(shares, device=device)
    return Batch(batch.ids.to(device), batch.attention_mask.to(device), None, rows[0].teacher, *held)


def loss(model: LoadedModel, batch: Batch, config: Config) -> Loss:
    """Mean over the examples; each term before its weight is a metric, and ``accuracy`` where there are labels."""
    with torch.no_grad(), watch(inner_of(batch.teacher)) as theirs:
        said = _run(batch.teacher, batch)
    with watch(inner_of(model)) as ours:
        scores = _run(model, batch)
    real = batch.mask.float()
    projections: Any = getattr(model.module, "projections", {})
    terms = _terms(ours, theirs, real, projections, config, causal=model.architecture == "decoder")
    metrics = {}
    if batch.labels is not None:
        order = _teacher.places_of(model.labels, batch.teacher)
        wanted = (said[:, order].float() / config.temperature).softmax(-1)
        terms["prediction"] = -(wanted * (scores.float() / config.temperature).log_softmax(-1)).sum(-1)
        metrics["accuracy"] = float((scores.detach().argmax(-1) == batch.labels).float().mean())
    if batch.places is not None and batch.shares is not None and config.prediction:
        at = batch.places
        soft = soft_cross_entropy(
            model.module,
            states_at(scores, at),
            batch.teacher.module,
            states_at(said, at),
            config.temperature,
            batch.shares,
        )
        terms["prediction"] = soft / len(batch.ids)
    total = torch.stack([getattr(config, name) * term.mean() for name, term in terms.items()]).sum()
    metrics |= {name: float(term.detach().mean()) for name, term in terms.items()}
    return Loss(total, len(batch.ids), metrics)


def _run(model: LoadedModel, batch: Batch) -> Tensor:
    """Logits of the labels; pooled vectors, which nobody reads, of plain text; a decoder's last hidden states."""
    if model.architecture == "decoder":
        return hidden_states(model.module, batch.ids)
    out: Tensor = (model.module.pooled if batch.labels is None else model.module)(batch.ids, batch.mask)
    return out


def _terms(
    ours: Seen, theirs: Seen, real: Tensor, projections: Any, config: Config, *, causal: bool
) -> dict[str, Tensor]:
    """(rows) of each term, over real tokens: a soft prompt's and padding are left out."""
    length, counts = real.shape[1], real.sum(1)
    pairs = mapping(config.layers, len(ours.hidden) - 1, len(theirs.hidden) - 1)

    def apart(name: str, one: Tensor, other: Tensor) -> Tensor:
        mine = one[:, -length:].float()
        mine = projections[name](mine) if name in projections else mine
        return ((mine - other[:, -length:].float()).square().mean(-1) * real).sum(1) / counts

    terms = {}
    if config.embeddings:
        terms["embeddings"] = apart("embeddings", ours.hidden[0], theirs.hidden[0])
    if config.hidden:
        each = [apart("hidden", ours.hidden[m + 1], theirs.hidden[g + 1]) for m, g in enumerate(pairs)]
        terms["hidden"] = torch.stack(each).sum(0)
    if config.attention:
        visible = real[:, :, None] * real[:, None, :]
        visible = visible.tril() if causal else visible
        total = torch.zeros_like(counts)
        for m, g in enumerate(pairs):
            one, other = (s[..., -length:, -length:].float() for s in (ours.scores[m], theirs.scores[g]))
            total = total + ((one - other).square().mean(1) * visible).sum((1, 2)) / visible.sum((1, 2))
        terms["attention"] = total
    return terms
