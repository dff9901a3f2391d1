"""From a configuration to a job: everything looked up, checked and filled in before a model is loaded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from luthier.core import catalog
from luthier.core.config import Document, apply_overrides, from_mapping, read_yaml
from luthier.core.dataset import Dataset, Splits
from luthier.core.digest import digest_json
from luthier.core.errors import DataError, InputError, UnsupportedError
from luthier.core.model import ModelRecord
from luthier.core.run import Progress, no_progress
from luthier.core.task import PromptTemplate
from luthier.data import extraction
from luthier.data.read import read
from luthier.data.shares import Mixture
from luthier.data.split import check_labels, split
from luthier.data.stream import StreamedDataset, split_streamed, stream
from luthier.models.merge import folds
from luthier.models.new import make
from luthier.store.models import check_name, find
from luthier.training import from_scratch
from luthier.training.config import (
    Chosen,
    DataConfig,
    PromptConfig,
    RunConfig,
    TrainConfig,
    read_run,
    with_defaults,
)
from luthier.training.part import Part, method_for, objective_for
from luthier.training.sources import Source, joined, named
from luthier.training.streamed import streams

if TYPE_CHECKING:
    from luthier.store.database import Store


@dataclass(frozen=True)
class Job:
    """One tuning, fully resolved. ``key`` is equal for equal work; ``origins`` says where each value came from."""

    name: str
    config: RunConfig
    origins: Mapping[str, str]
    base: ModelRecord
    splits: Splits
    prompt: PromptTemplate
    method: Part
    objective: Part
    key: str
    parts: tuple[Mapping[str, Any], ...] = ()
    """Adapters that the method builds on: name and digest of each."""
    reads: Mapping[str, ModelRecord | Dataset] = field(default_factory=dict)
    """Stored models and further data that the objective reads, by their part in it (``teacher``)."""
    sources: tuple[Source, ...] = ()
    """Where the rows of ``splits`` come from, when ``data.sources`` has them; one after another in ``splits``."""
    made: bool = False
    """Whether ``base`` is a new model that was made for this job just now."""

    @property
    def kind(self) -> str:
        """Kind of the data."""
        return self.splits.train.kind

    @property
    def mixture(self) -> Mixture | None:
        """How rows of the sources are drawn; None without sources."""
        if not self.sources:
            return None
        data = self.config.data
        return Mixture(
            tuple(source.name for source in self.sources),
            data.sampled,
            tuple(source.weight for source in self.sources),
            data.temperature,
            data.cap,
            data.epoch_rows,
            math.ceil(self.config.train.epochs),
        )

    @property
    def by_source(self) -> bool:
        """Whether each source has a loss, and labels, of its own."""
        return bool(self.objective.entry.optional("BY_SOURCE"))

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels that the whole model is for."""
        return self.prompt.labels if self.kind == "labelled" and not self.by_source else ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all models that are made: the result's, and one for each source that is a task."""
        return (self.name, *(f"{self.name}-{source.name}" for source in self.sources if self.by_source))

    def datasets(self, part: Literal["train", "validation"]) -> tuple[Dataset, ...]:
        """The rows of a split: a dataset for each source, in turn, or the only one."""
        return tuple(getattr(source.splits, part) for source in self.sources) or (getattr(self.splits, part),)

    @property
    def serving(self) -> Mapping[str, str]:
        """Engine -> swap, merge or no: where the result can be served."""
        found: Mapping[str, str] = self.method.entry.module.SERVING[self.base.architecture]
        return found

    def values(self) -> dict[str, Any]:
        """The resolved configuration, as a run stores it."""
        return self.config.model_dump() | {
            "name": self.name,
            "method": {"name": self.method.entry.name, **self.method.config.model_dump()},
            "objective": {"name": self.objective.entry.name, **self.objective.config.model_dump()},
            "prompt": self.prompt.as_dict(),
        }


def resolve(
    config: str | Path | Mapping[str, Any] | Document,
    overrides: Iterable[str],
    store: Store,
    *,
    splits: Splits | None = None,
    prompt: PromptTemplate | None = None,
    progress: Progress = no_progress,
) -> Job:
    """Read and check everything that does not need the weights. ``progress`` is told how reading long files goes on.

    ``splits`` and ``prompt`` stand in for the sections ``data`` and ``prompt``. Raises InputError, NotFoundError, DataError or
    UnsupportedError, whose messages say what to change.
    """
    document = _read_document(config, overrides)
    run = read_run(document)
    of_kinds = _by_source(run)
    data = _data(run.data, document, splits, store, progress, of_kinds=of_kinds) if run.model.new is not None else None
    base, made = _base(store, run, data[1].train if data is not None else None)
    if base.kind not in ("base", "adapter"):
        raise UnsupportedError(f"model.base must be a base model or an adapter; {base.name} is an {base.kind}")
    method = method_for(base, run.method.name, run.method.options)
    needs = method.entry.optional("needs")
    parts = (
        tuple({key: part[key] for key in ("name", "digest")} for part in needs(store, base, method.config))
        if needs
        else ()
    )
    sources, splits = data or _data(run.data, document, splits, store, progress, of_kinds=of_kinds)
    if of_kinds:
        _require_sources(run, sources, method)
    given = run.objective
    name, options = (given.name, given.options) if given is not None else (None, {})
    objective = objective_for(base, splits.train, name, options, document)
    if objective.entry.module.KINDS == ("labelled",):
        check_labels(splits)
    prompt = _prompt(run, base, splits, given=prompt)
    reads = objective.entry.optional("reads")
    read = dict(reads(store, base, splits.train, prompt, objective.config)) if reads else {}
    origins = {"train." + key: "default" for key in type(run.train).model_fields} | dict(document.origins)
    run = _with_optimizer(with_defaults(run, origins, _defaults(base, method, objective)), origins)
    if run.data.streaming:
        streams(objective.entry)
    work = [
        _told(run.train),
        run.data.overlong,
        method.as_dict(),
        objective.key(),
        prompt.as_dict(),
        splits.train.digest,
        splits.validation.digest,
        base.digest,
        *([list(parts)] if parts else []),
        *([{part: record.digest for part, record in read.items()}] if read else []),
        *([_mixing(run.data, sources)] if sources else []),
    ]
    name = check_name(run.name or _derived_name(base, method, splits.train, digest_json(work)))
    key = digest_json([name, *work])
    return Job(name, run, origins, base, splits, prompt, method, objective, key, parts, read, sources, made)


def _read_document(config: str | Path | Mapping[str, Any] | Document, overrides: Iterable[str]) -> Document:
    if isinstance(config, Document):
        apply_overrides(config, overrides)
        return config
    document = from_mapping(config, overrides) if isinstance(config, Mapping) else read_yaml(config, overrides)
    if "steps" in document.values:
        raise InputError("this is a pipeline of several steps", hint="luthier tune FILE, or luthier.pipeline(...)")
    return document


def _base(store: Store, run: RunConfig, texts: Dataset | None) -> tuple[ModelRecord, bool]:
    """The model that is trained, and whether it was made just now; the tokenizer of a new one may be made of ``texts``."""
    method = catalog.load("methods", run.method.name)
    if run.model.new is not None:
        from_scratch.require_whole(method, "a new model")
        return make(store, run.model.new, texts)
    base = find(store, str(run.model.base))
    if from_scratch.is_new(base):
        from_scratch.require_whole(method, base.name)
    if not folds(base):
        raise UnsupportedError(
            f"model.base {base.name} was made by {base.meta['method']}, whose result stands beside the weights: it cannot be folded into them "
            "to be tuned on",
            hint=f"tune on {base.base}, or make {base.name} with another method, for example method: lora",
        )
    return base, False


def _by_source(run: RunConfig) -> bool:
    """Whether the objective has a loss for each source."""
    return run.objective is not None and bool(catalog.load("objectives", run.objective.name).optional("BY_SOURCE"))


def _data(
    data: DataConfig, document: Document, given: Splits | None, store: Store, progress: Progress, *, of_kinds: bool
) -> tuple[tuple[Source, ...], Splits]:
    """The sources, if there are several, and the rows of all."""
    sources = _sources(data, document, progress, given=given, of_kinds=of_kinds)
    reader = partial(_read, data, document, store if data.streaming else None, progress)
    splits = joined(sources) if sources else _splits(data, reader, given=given)
    _check_splits(splits)
    return sources, splits


def _defaults(base: ModelRecord, method: Part, objective: Part) -> dict[str, Mapping[str, Any]]:
    """Settings that nobody gave, by their origin; later ones win. An objective may ask for a part of the method's learning rate."""
    names = objective.entry.name, method.entry.name
    own: Mapping[str, Any] = method.entry.module.DEFAULTS[base.architecture]
    layers = {
        f"default of objective {names[0]}": objective.entry.module.DEFAULTS.get(base.architecture, {}),
        f"default of method {names[1]}": own,
    }
    factor = objective.entry.optional("RATE_FACTOR")
    if factor is not None and "learning_rate" in own:
        origin = f"default of method {names[1]}, times {factor:g} for objective {names[0]}"
        layers[origin] = {"learning_rate": own["learning_rate"] * factor}
    return layers | {"default of a new model": from_scratch.defaults(base)}


_FIRST = frozenset(
    [
        "epochs",
        "max_steps",
        "max_seconds",
        "learning_rate",
        "schedule",
        "warmup",
        "batch_size",
        "max_tokens_per_batch",
        "weight_decay",
        "clip",
        "seed",
        "validate_every",
        "metric",
        "patience",
        "checkpoint_every",
        "dtype",
        "device",
    ]
)
"""Settings of ``train`` in the first release."""


def _told(train: TrainConfig) -> dict[str, Any]:
    """Settings that decide the work. One that came later than the first release counts only when it is not the default, so that what
    was trained before is found again; ``checkpointing`` never does: the result is the same."""
    default = _filled(TrainConfig()).model_dump()
    told = _filled(train).model_dump(exclude={"checkpointing"})
    return {key: value for key, value in told.items() if key in _FIRST or value != default[key]}


def _filled(train: TrainConfig) -> TrainConfig:
    """``train`` with all options of its optimizer, checked."""
    entry = catalog.load("optimizers", train.optimizer.name)
    options = entry.configure(train.optimizer.options).model_dump()
    return train.model_copy(update={"optimizer": Chosen(name=entry.name, **options)})


def _with_optimizer(run: RunConfig, origins: dict[str, str]) -> RunConfig:
    filled = _filled(run.train)
    for option in filled.optimizer.options:
        origins.setdefault(f"train.optimizer.{option}", "default")
    return run.model_copy(update={"train": filled})


def _splits(data: DataConfig, read_file: Callable[[str], Dataset], *, given: Splits | None) -> Splits:
    if given is not None:
        if data.path or data.train or data.streaming:
            raise InputError("give the data in the configuration or as splits, not both")
        return given
    if data.path:
        cut = data.split
        shares = {"train": cut.train, "validation": cut.validation, "test": cut.test}
        whole = read_file(data.path)
        if isinstance(whole, StreamedDataset):
            return split_streamed(whole, **shares, seed=cut.seed)
        return split(whole, **shares, seed=cut.seed)
    if not data.train:
        raise InputError(
            "data.path, data.train or data.sources is required: where the examples are",
            hint="for example data.path=tickets.jsonl",
        )
    train = read_file(data.train)
    rest = [
        read_file(path) if path else Dataset(f"no {part}", train.kind, ())
        for part, path in (("validation", data.validation), ("test", data.test))
    ]
    return Splits(train, *rest)


def _check_splits(splits: Splits) -> None:
    """Raise DataError for a source, or the only data, that has nothing to train on or is of two kinds."""
    if not len(splits.train):
        raise DataError(f"there are no rows to train on in {splits.train.name}")
    kinds = {part.kind for part in (splits.train, splits.validation) if len(part)}
    if len(kinds) > 1:
        raise DataError(f"training and validation data must be of one kind; got {' and '.join(sorted(kinds))}")


def _require_sources(run: RunConfig, sources: Sequence[Source], method: Part) -> None:
    """Raise InputError where an objective that has a loss for each source cannot have it."""
    name = run.objective.name if run.objective is not None else ""
    if not sources:
        raise InputError(
            f"objective {name} needs data.sources: one for each task",
            hint="for example data: {sources: [{path: a.jsonl}]}",
        )
    if method.entry.module.SAVES == "head":
        raise InputError(
            f"method {method.entry.name} trains heads alone, and objective {name} a body that tasks share",
            hint="choose a method that changes the model: method: lora",
        )


def _sources(
    data: DataConfig, document: Document, progress: Progress, *, given: Splits | None, of_kinds: bool
) -> tuple[Source, ...]:
    """Each source read and cut; of several kinds only where ``of_kinds``. Raises InputError or DataError for sources that cannot be mixed."""
    if data.sources and given is not None:
        raise InputError("give the data in the configuration or as splits, not both")
    found = []
    for source in data.sources:
        own = {key: getattr(source, key) for key in ("path", "train", "validation", "test")}
        read = {key: getattr(source, key) or getattr(data, key) for key in ("limit", "columns")}
        one = data.model_copy(update={**own, **read, "sources": ()})
        splits = _splits(one, partial(_read, one, document, None, progress), given=None)
        _check_splits(splits)
        found.append(Source(source.called, named(splits, source.called), source.weight or 1.0))
    kinds = {source.splits.train.kind: source.name for source in found}
    if len(kinds) > 1 and not of_kinds:
        shown = ", ".join(f"{name} is {kind}" for kind, name in kinds.items())
        raise DataError(f"all data.sources must be of one kind; {shown}", hint="luthier data inspect FILE shows it")
    if data.sampled == "dynamic":
        silent = [source.name for source in found if not len(source.splits.validation)]
        if silent:
            raise InputError(
                f"data.sampling dynamic follows the validation loss of each source; {silent[0]} has no validation rows",
                hint="give it a validation file, or data.split.validation=0.1",
            )
    return tuple(found)


def _mixing(data: DataConfig, sources: Sequence[Source]) -> list[Any]:
    """What of the mixture decides the work."""
    shares = [data.sampled, data.temperature, data.cap, data.epoch_rows]
    return [shares, [source.as_list() for source in sources]]


def _read(data: DataConfig, document: Document, store: Store | None, progress: Progress, path: str) -> Dataset:
    """A file in memory, or with a ``store`` from there."""
    how: dict[str, Any] = {"skip_bad": data.skip_bad, "limit": data.limit, "columns": data.columns}
    place = document.path(path)
    return read(place, **how, progress=progress) if store is None else stream(store, place, **how, progress=progress)


def _prompt(run: RunConfig, base: ModelRecord, splits: Splits, *, given: PromptTemplate | None) -> PromptTemplate:
    if given is not None:
        return given
    section = run.prompt
    if section != PromptConfig():
        if splits.train.kind in ("chat", "pairs", "similarity", "preference", "text"):
            raise InputError(
                f"prompt is for data of texts with an answer (labels, numbers, entities, questions); {splits.train.kind} rows are trained on as they are. Leave it out"
            )
        if base.architecture == "encoder":
            raise InputError(f"prompt is for decoders; the encoder {base.name} reads the bare text. Leave it out")
    instruction = section.instruction
    if not instruction and splits.train.kind in extraction.KINDS and base.architecture != "encoder":
        instruction = extraction.instruction_for(splits.train)
    return PromptTemplate(instruction, section.input, splits.train.labels)


def _derived_name(base: ModelRecord, method: Part, train: Dataset, digest: str) -> str:
    """``smollm2-135m-lora-tickets-1f3a9c``: other work gets another name."""
    stem = train.name.split("/")[0]  # a split is called DATASET/SPLIT
    stem = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in stem).strip("-.")
    return "-".join(part for part in (base.name[:60], method.entry.name, stem[:40], digest[:6]) if part)
