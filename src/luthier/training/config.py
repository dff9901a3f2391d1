"""What a tuning run is told: one YAML whose sections are the nouns.

model: {base: smollm2-135m}
data: {path: tickets.jsonl}
prompt: {instruction: "Name the topic. Topics: {labels}"}
method: {name: lora, rank: 16}          # or just: method: lora
objective: {name: classify}             # or left out: follows from the data
train: {epochs: 2, learning_rate: 2e-4}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from luthier.core.config import Document, validate
from luthier.training.schedule import Schedule

Overlong = Literal["error", "truncate", "drop"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelConfig(_Section):
    """``base``: name of a stored base model."""

    base: str = Field(min_length=1)


class SplitConfig(_Section):
    """Shares of one file; they sum to 1. Stratified by label; duplicates stay on one side."""

    train: float = Field(0.8, gt=0, le=1)
    validation: float = Field(0.2, ge=0, lt=1)
    test: float = Field(0.0, ge=0, lt=1)
    seed: int = 0


class DataConfig(_Section):
    """Either one file (``path``, cut by ``split``), or a file a split (``train``, and if you have them ``validation``, ``test``).

    ``skip_bad`` goes on without broken rows; ``limit`` reads only the first rows; ``columns`` renames columns as the reader does.
    ``overlong`` says what happens to a row over the context length: error (names the row), truncate (the middle of its text is
    not touched, its end is cut), or drop (counted).
    """

    path: str | None = None
    train: str | None = None
    validation: str | None = None
    test: str | None = None
    split: SplitConfig = SplitConfig()
    skip_bad: bool = False
    limit: int | None = Field(None, ge=1)
    columns: dict[str, str] | None = None
    overlong: Overlong = "error"

    @model_validator(mode="after")
    def _one_way(self) -> DataConfig:
        if self.path and (self.train or self.validation or self.test):
            raise ValueError("give either data.path or data.train (with data.validation, data.test), not both")
        return self


class PromptConfig(_Section):
    """How a text becomes a conversation, for labelled and question data; see ``core.task.PromptTemplate``."""

    instruction: str = ""
    input: str = "{input}"

    @field_validator("input")
    @classmethod
    def _holds_input(cls, value: str) -> str:
        if "{input}" not in value:
            raise ValueError("must hold {input}, the place of the row's text")
        return value


class Chosen(BaseModel):
    """The name of a catalogue entry and its options (checked by the entry's own Config)."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str

    @property
    def options(self) -> dict[str, Any]:
        """The options without the name."""
        return dict(self.model_extra or {})


class TrainConfig(_Section):
    """The one training loop. A value left out is the objective's or method's own default, which is measured.

    An optimizer step sees ``batch_size`` rows, in micro-batches of at most ``max_tokens_per_batch`` tokens with padding; their
    gradients are averaged over all that the loss counts in the step (tokens, or examples). Training ends after ``epochs`` (parts
    allowed), or sooner after ``max_steps``, before more than ``max_tokens``, after ``max_seconds``, or ``patience`` validations without a
    better ``metric``; the schedule ends with whichever of steps, tokens and seconds comes first. ``warmup`` is a share of the steps
    below 1, else a number of steps. ``clip`` bounds the gradient's norm (0 is off).
    ``validate_every`` and ``checkpoint_every`` count steps; left out: each epoch, and about once a minute.
    ``metric`` is the name of a validation metric; it decides which weights are kept (for losses the lowest, else the highest).
    """

    epochs: float = Field(3, gt=0)
    max_steps: int | None = Field(None, ge=1)
    max_seconds: float | None = Field(None, gt=0)
    max_tokens: int | None = Field(None, ge=1)
    learning_rate: float = Field(1e-4, gt=0)
    schedule: Schedule = "cosine"
    warmup: float = Field(0.1, ge=0)
    batch_size: int = Field(16, ge=1)
    max_tokens_per_batch: int = Field(2048, ge=1)
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(1.0, ge=0)
    seed: int = Field(0, ge=0)
    validate_every: int | None = Field(None, ge=1)
    metric: str = "validation_loss"
    patience: int | None = Field(None, ge=1)
    checkpoint_every: int | None = Field(None, ge=1)
    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    device: str = "auto"


class RunConfig(_Section):
    """A whole run. ``name`` is the result's name in the store; derived when left out."""

    name: str | None = Field(None, min_length=1)
    model: ModelConfig
    data: DataConfig = DataConfig()
    prompt: PromptConfig = PromptConfig()
    method: Chosen
    objective: Chosen | None = None
    train: TrainConfig = TrainConfig()

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, values: Any) -> Any:
        """``method: lora`` means ``method: {name: lora}``, ``model: smollm2-135m`` means ``model: {base: smollm2-135m}``."""
        if not isinstance(values, Mapping):
            return values
        keys = {"method": "name", "objective": "name", "model": "base"}
        values = {k: {keys[k]: v} if k in keys and isinstance(v, str) else v for k, v in values.items()}
        model = values.get("model")
        if isinstance(model, Mapping) and "name" in model:  # an override of one key after the short form
            values["model"] = {"base": model["name"], **{k: v for k, v in model.items() if k != "name"}}
        return values


def read_run(document: Document) -> RunConfig:
    """Validate a document. Raises InputError whose lines name key, allowed and given values, and origin."""
    return validate(RunConfig, document.values, origins=document.origins)


def with_defaults(config: RunConfig, origins: dict[str, str], layers: Mapping[str, Mapping[str, Any]]) -> RunConfig:
    """Fill ``train`` values that nobody gave from ``layers`` (origin -> values; later layers win); notes their origins."""
    given = config.train.model_fields_set
    values = config.train.model_dump(exclude_unset=True)
    for origin, layer in layers.items():
        for key, value in layer.items():
            if key not in given:
                values[key] = value
                origins[f"train.{key}"] = origin
    return config.model_copy(update={"train": validate(TrainConfig, values, where="train")})
