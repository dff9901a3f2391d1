"""What a tuning run is told: one YAML whose sections are the nouns.

model: {base: smollm2-135m}
data: {path: tickets.jsonl}
prompt: {instruction: "Name the topic. Topics: {labels}"}
method: {name: lora, rank: 16}          # or just: method: lora
objective: {name: classify}             # or left out: follows from the data
train: {epochs: 2, learning_rate: 2e-4}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from luthier.core.config import Document, validate
from luthier.data.shares import Sampling
from luthier.models.new import NewModel
from luthier.training.schedule import Curve, Schedule

Overlong = Literal["error", "truncate", "drop"]

_SAMPLINGS: Mapping[str, tuple[Sampling, ...]] = {
    "temperature": ("temperature", "dynamic"),
    "cap": ("proportional", "temperature", "annealed"),
}


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelConfig(_Section):
    """``base``: name of a stored model; or ``new``: the shape of one that is made now, with random weights."""

    base: str | None = Field(None, min_length=1)
    new: NewModel | None = None

    @model_validator(mode="after")
    def _one(self) -> ModelConfig:
        if (self.base is None) == (self.new is None):
            raise ValueError(
                "give either base (the name of a stored model) or new (the shape of one that is made), one of the two"
            )
        return self


class SplitConfig(_Section):
    """Shares of one file; they sum to 1. Stratified by label; duplicates stay on one side."""

    train: float = Field(0.8, gt=0, le=1)
    validation: float = Field(0.2, ge=0, lt=1)
    test: float = Field(0.0, ge=0, lt=1)
    seed: int = 0


class SourceConfig(_Section):
    """One of several sources: a file cut by ``data.split``, or a file a split, as in ``data``. ``name`` is the file's without an ending when
    left out. ``weight`` is its part of an epoch beside those of the others, for ``sampling: weights``."""

    name: str | None = Field(None, pattern=r"^[^\s/+:.]+$")
    path: str | None = None
    train: str | None = None
    validation: str | None = None
    test: str | None = None
    weight: float | None = Field(None, gt=0, allow_inf_nan=False)
    limit: int | None = Field(None, ge=1)
    columns: dict[str, str] | None = None

    @model_validator(mode="after")
    def _one_way(self) -> SourceConfig:
        if bool(self.path) == bool(self.train) or (self.path and (self.validation or self.test)):
            raise ValueError("a source has either path, or train (with validation, test)")
        return self

    @property
    def called(self) -> str:
        """The name, given or the file's."""
        file = (self.path or self.train or "").removeprefix("hub:").rstrip("/").split("/")[-1]
        return self.name or re.sub(r"[\s/+:]", "-", file.split(".")[0])


class DataConfig(_Section):
    """One file (``path``, cut by ``split``), a file a split (``train``, and if you have them ``validation``, ``test``), or several ``sources``.

    ``skip_bad`` goes on without broken rows; ``limit`` reads only the first rows; ``columns`` renames columns as the reader does.
    ``overlong`` says what happens to a row over the context length: error (names the row), truncate (the middle of its text is
    not touched, its end is cut), or drop (counted).

    ``streaming`` keeps the rows on disk instead of in memory; the result is the same, except that ``split`` cuts by the digest of each row.

    ``sampling``, ``temperature``, ``cap`` and ``epoch_rows`` say how rows of sources are drawn; see ``data.shares``. ``sampling`` left out is
    weights where a source has a weight, else proportional.
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
    streaming: bool = False
    sources: tuple[SourceConfig, ...] = ()
    sampling: Sampling | None = None
    temperature: float = Field(2.0, gt=0, allow_inf_nan=False)
    cap: int | None = Field(None, ge=1)
    epoch_rows: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _one_way(self) -> DataConfig:
        if self.path and (self.train or self.validation or self.test):
            raise ValueError("give either data.path or data.train (with data.validation, data.test), not both")
        if self.streaming and self.sources:
            raise ValueError("streaming reads one file, or a file a split; leave it out for several sources")
        return self

    @model_validator(mode="after")
    def _mixed(self) -> DataConfig:
        given = self.model_fields_set & {"sampling", "temperature", "cap", "epoch_rows"}
        if not self.sources:
            if given:
                raise ValueError(f"{sorted(given)[0]} is for data.sources")
            return self
        if self.path or self.train or self.validation or self.test:
            raise ValueError("give either data.sources or files of data itself, not both")
        names = [source.called for source in self.sources]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two sources are called {twice[0]!r}; give them a name each")
        for key, fits in _SAMPLINGS.items():
            if key in given and self.sampled not in fits:
                raise ValueError(f"{key} is for sampling {' or '.join(fits)}; sampling is {self.sampled}")
        if self.sampled != "weights" and any(source.weight is not None for source in self.sources):
            raise ValueError(f"weight of a source is for sampling weights; sampling is {self.sampled}")
        return self

    @property
    def sampled(self) -> Sampling:
        """How rows of sources are drawn."""
        weighted = any(source.weight is not None for source in self.sources)
        return self.sampling or ("weights" if weighted else "proportional")


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
    ``checkpointing`` computes the activations of each block again in the backward pass instead of keeping them: the same result for a third
    more time. ``auto`` does so only where the preflight says that the memory would not reach otherwise.
    ``processes`` share every step, data parallel, on this machine; auto is one a GPU. ``shard`` lets each of them hold only its part of the
    frozen weights (see ``training.shard``).
    ``optimizer`` is a name of the catalogue, or a name with its options. ``ema`` is the decay of an average of the weights, which is
    validated and kept instead of them. ``max_rise`` stops training when the median loss of ten steps is above that many times
    one more than that of the first ten (0 is off; see ``training.explosion``).
    ``min_rate`` is the share of the peak at which a schedule that falls ends; ``power`` is the exponent of polynomial, and ``cooldown`` the
    steps in which wsd falls, a share of all below 1. What the chosen schedule does not have is refused.
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
    checkpointing: Literal["auto", "on", "off"] = "auto"
    processes: Annotated[int, Field(ge=1)] | Literal["auto"] = 1
    shard: Literal["on", "off"] = "off"
    optimizer: Chosen = Chosen(name="adamw")
    min_rate: float = Field(0.0, ge=0, lt=1)
    power: float | None = Field(None, gt=0)
    cooldown: float | None = Field(None, gt=0)
    ema: float | None = Field(None, gt=0, lt=1)
    max_rise: float = Field(3.0, ge=0)

    @property
    def curve(self) -> Curve:
        """What the schedule takes besides its name."""
        given = {"power": self.power, "decay": self.cooldown}
        return Curve(floor=self.min_rate, **{key: value for key, value in given.items() if value is not None})

    @model_validator(mode="after")
    def _of_several(self) -> TrainConfig:
        if self.shard == "on" and self.processes == 1:
            raise ValueError("shard is for more than one process; give processes a number, or auto (one a GPU)")
        return self

    @model_validator(mode="after")
    def _of_the_schedule(self) -> TrainConfig:
        for key, value, owner in (("power", self.power, "polynomial"), ("cooldown", self.cooldown, "wsd")):
            if value is not None and self.schedule != owner:
                raise ValueError(f"{key} is for schedule {owner}; the schedule is {self.schedule}")
        if self.min_rate and self.schedule == "constant":
            raise ValueError("min_rate is for schedules that fall; the schedule is constant")
        return self

    @field_validator("checkpointing", "shard", mode="before")
    @classmethod
    def _switch(cls, value: Any) -> Any:
        """YAML reads a plain ``on`` as true."""
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value

    @field_validator("optimizer", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        """``optimizer: lion`` means ``optimizer: {name: lion}``; options alone are of the default."""
        if isinstance(value, str):
            return {"name": value}
        return {"name": "adamw", **value} if isinstance(value, Mapping) else value


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
        if "method" not in values and isinstance(model, Mapping) and model.get("new") is not None:
            values["method"] = {"name": "full"}
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
