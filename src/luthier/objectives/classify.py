"""Classification: a head on encoders; on decoders and encoder-decoders the labels' texts are scored against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.dataset import Dataset
from luthier.core.errors import DataError, InputError
from luthier.core.task import PromptTemplate
from luthier.models.load import LoadedModel
from luthier.objectives import _head, _label_texts
from luthier.objectives._loss import Loss
from luthier.objectives._rows import Limits, require_kind, require_labels

KINDS = ("labelled",)
ARCHITECTURES = ("decoder", "encoder", "encoder-decoder")
DEFAULT_FOR = ("labelled",)
DEFAULTS: Mapping[str, Mapping[str, Any]] = {}
LOSS_ONLY = (
    "label_smoothing",
)  # settings that rows do not depend on, so that trainings which differ in them share rows

LATER = ("lm_weight",)  # settings that came after the first release: at their defaults they have no part in a run's key

STREAMED = (_head.HeadRow, _label_texts.TextRow)


class Config(EntryConfig):
    """``label_smoothing``: share of the target that is spread over all labels (Szegedy et al. 2016, section 7).

    ``generative_weight`` (not for encoders, which have nothing to generate): weight of the right label's own log-likelihood, so that free
    generation answers with exactly the label too. ``lm_weight`` (decoders): weight of the language-model loss of the text that is classified,
    the mean over its tokens (Radford et al. 2018, eq. 5, where it is 0.5).
    """

    label_smoothing: float = Field(0.0, ge=0, lt=1)
    generative_weight: float = Field(1.0, ge=0)
    lm_weight: float = Field(0.0, ge=0)


def prepare(dataset: Dataset, model: LoadedModel, prompt: PromptTemplate, config: Config, limits: Limits) -> list[Any]:
    """Tokenise for ``model.labels``. Raises DataError for fewer than two labels, a label not among them, an overlong row."""
    require_kind(dataset, KINDS, "classify")
    if len(model.labels) < 2:
        raise DataError(
            f"classification needs at least two labels; {dataset.name} has {', '.join(map(repr, model.labels)) or 'none'}"
        )
    require_labels(dataset, model.labels)
    if model.architecture == "encoder" and "generative_weight" in config.model_fields_set:
        raise InputError(
            "objective.generative_weight is for models that generate; an encoder's head does not. Leave it out"
        )
    if config.lm_weight and model.architecture != "decoder":
        raise InputError(
            f"objective.lm_weight is for decoders, which predict their text; {model.record.name} is of architecture {model.architecture}. "
            "Leave it out"
        )
    if model.architecture == "encoder":
        return list(_head.prepare(dataset, model, limits))
    return list(_label_texts.prepare(dataset, model, prompt, limits, texts=bool(config.lm_weight)))


def kept_logits(model: LoadedModel, config: Config) -> int:
    """For how many tokens of one row the backward pass keeps logits: those of the labels' texts."""
    return 0 if model.architecture == "encoder" else _label_texts.places(model)


def collate(rows: Sequence[Any], model: LoadedModel) -> Any:
    """One batch of ``prepare``'s rows."""
    part: Any = _head if model.architecture == "encoder" else _label_texts
    return part.collate(rows, model)


def loss(model: LoadedModel, batch: Any, config: Config) -> Loss:
    """Mean loss over the examples; metric ``accuracy``."""
    if model.architecture == "encoder":
        return _head.loss(model, batch, config.label_smoothing)
    return _label_texts.loss(model, batch, config.label_smoothing, config.generative_weight, config.lm_weight)
