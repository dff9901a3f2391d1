"""From a job to what is trained: the model with the method in it, and the objective's rows of each split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.core.dataset import Dataset
from luthier.core.run import Progress, no_progress
from luthier.data.stream import StreamedDataset
from luthier.store.database import Store
from luthier.training.resolve import Job
from luthier.training.sources import Layout

if TYPE_CHECKING:
    from luthier.models.load import LoadedModel
    from luthier.objectives._rollout import Rollout
    from luthier.training.shared import Rows, Shared
    from luthier.training.work import Work


@dataclass(frozen=True)
class Prepared:
    """The model and its work. ``validation`` is None without such rows; ``dropped`` and ``truncated`` count rows of both splits."""

    model: LoadedModel
    training: Work
    validation: Work | None
    dropped: int
    truncated: int


def prepare(store: Store, job: Job, progress: Progress, shared: Shared | None) -> Prepared:
    """Load the base, put the method in, make the rows; what the objective's ``before`` needs of the untrained model is computed here."""
    model = _model(store, job, progress, shared)
    training = _rows(model, job, job.datasets("train"), progress, shared)
    held = len(job.splits.validation)
    validation = _rows(model, job, job.datasets("validation"), progress, shared) if held else []
    rollout = _rollout(model, job)
    work = _work(model, job, training, rollout)
    if work.layout is not None:
        work.layout.check([len(part.rows) for part in validation])
    return Prepared(
        model,
        work,
        _work(model, job, validation, rollout) if held else None,
        sum(len(part.dropped) for part in (*training, *validation)),
        sum(len(part.truncated) for part in (*training, *validation)),
    )


def _model(store: Store, job: Job, progress: Progress, shared: Shared | None) -> LoadedModel:
    import torch

    from luthier.models.load import choose_device, choose_dtype, load_model, name_of_dtype
    from luthier.models.merge import merge

    progress("load", 0, 1)
    labels = job.labels
    torch.manual_seed(job.config.train.seed)  # a new head and LoRA's A are random
    train = job.config.train
    load = shared.load if shared is not None else load_model
    held = job.method.entry.optional("quantization") if job.base.kind == "base" else None
    quantization = held(job.method.config) if held is not None else None
    dtype: str = train.dtype
    device = train.device
    if train.shard == "on":  # the device gets its part alone, a block at a time
        dtype, device = name_of_dtype(choose_dtype(dtype, choose_device(device))), "cpu"
    model = load(store, job.base, dtype=dtype, device=device, labels=labels, quantization=quantization)
    if job.base.kind == "adapter":
        model = merge(model)
        model.base = job.base
    model.labels = labels
    model.module.requires_grad_(False)
    built = build(model, job)
    progress("load", 1, 1)
    return built


def build(model: LoadedModel, job: Job) -> LoadedModel:
    """The method in ``model``, and the head that the objective puts on it, if it does.

    Methods train an encoder's head with the body; of a decoder they change the language model alone, so that its head comes afterwards.
    """
    heads, head = _heads(job), model.head
    if model.architecture != "encoder":
        model.put_head(None)
    elif heads is not None:
        heads(model)
    built: LoadedModel = job.method.entry(model, job.method.config)
    if heads is not None and model.architecture != "encoder":
        if head is not None:  # of the tuning that this one goes on from
            built.put_head(head)
        heads(built)
    return built


def _heads(job: Job) -> Callable[[LoadedModel], None] | None:
    """What puts the objective's head on a model: its ``heads``, or its ``heads_for`` when the head depends on the training data."""
    objective, config = job.objective.entry, job.objective.config
    if (of_data := objective.optional("heads_for")) is not None:
        return lambda model: of_data(model, job.splits.train, config)
    heads = objective.optional("heads")
    return None if heads is None else lambda model: heads(model, config)


def _rows(
    model: LoadedModel, job: Job, datasets: Sequence[Dataset], progress: Progress, shared: Shared | None
) -> list[Rows]:
    """The objective's rows of each dataset; never shared where they hold what was computed with this very model."""
    import torch

    before = job.objective.entry.optional("before")
    found = rows_of(model, job, datasets, shared if before is None else None, progress)
    if before is not None:
        model.module.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
            before(model, [row for part in found for row in part.rows], job.objective.config, progress)
    return found


def rows_of(
    model: LoadedModel,
    job: Job,
    datasets: Sequence[Dataset],
    shared: Shared | None,
    progress: Progress = no_progress,
) -> list[Rows]:
    """The objective's rows of each dataset, without what ``before`` adds to them."""
    from luthier.models.load import store_of
    from luthier.training.shared import Rows, prepare_rows
    from luthier.training.streamed import streamed_rows

    how = (model, job.objective.entry, job.prompt, job.objective.config, job.config.data.overlong)
    found = []
    for dataset in datasets:
        if not len(dataset):
            found.append(Rows(()))
        elif isinstance(dataset, StreamedDataset):
            found.append(streamed_rows(store_of(model), dataset, *how, progress))
        else:
            found.append(prepare_rows(dataset, *how, shared))
    return found


def layout_of(job: Job, found: Sequence[Rows]) -> Layout | None:
    """Where the rows of each source lie; None without sources."""
    mixture = job.mixture
    return Layout(mixture, tuple(len(part.rows) for part in found)) if mixture is not None else None


def _rollout(model: LoadedModel, job: Job) -> Rollout | None:
    """What makes experience of prompts, for an objective that learns from answers of the model; it sees the model untrained."""
    make = job.objective.entry.optional("rollout")
    return make(model, job.objective.config) if make is not None else None


def _work(model: LoadedModel, job: Job, found: Sequence[Rows], rollout: Rollout | None) -> Work:
    from luthier.training.work import Work

    objective, config = job.objective.entry, job.objective.config
    whole = bool(objective.optional("WHOLE_STEPS"))
    budget = (job.config.train.max_tokens_per_batch,) if whole else ()
    figures = objective.optional("figures")
    return Work(
        found[0].rows if len(found) == 1 else [row for part in found for row in part.rows],
        lambda rows: objective.module.collate(rows, model, *budget),
        lambda batch: objective(model, batch, config),
        whole,
        rollout,
        layout_of(job, found),
        None if figures is None else lambda outcomes: figures(outcomes, config),
        job.by_source,
    )
