"""Before training: how much memory and time it will take, by arithmetic on shapes, corrected by what earlier runs really took.

Memory is what the process holds already, plus the weights, the optimizer (fp32 masters and sums of gradients of each trained parameter,
Micikevicius et al. 2018, and what the chosen rule keeps), plus the activations that the backward pass needs for the largest micro-batch. Time is the
floating-point operations of all steps (two a parameter and token forward, two more for the gradient that flows through, two more for
each trained weight; Kaplan et al. 2020, section 2.1) over the speed that this machine reached before with the same base and method, else
with anything, else in a multiplication that takes a tenth of a second. Every run keeps prediction and outcome, so the next
prediction can say how wrong earlier ones were.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from luthier.core.model import ModelRecord
from luthier.store.runs import list_runs
from luthier.training.cost import STEP_FLOPS, Amount, amount_of, body, divided, memory, operations, shape_of

if TYPE_CHECKING:
    import torch

    from luthier.models.load import LoadedModel
    from luthier.store.database import Store
    from luthier.training.config import TrainConfig
    from luthier.training.resolve import Job
    from luthier.training.shared import Shared
    from luthier.training.sources import Layout

_IMPORTED_MB = (
    520.0  # a process that has imported torch, transformers and peft, and done nothing (measured, Linux x86-64)
)
_EFFICIENCY = 0.35  # share of a bare multiplication's speed that training reaches (measured, SmolLM2-135M on two cores)
_REMEMBERED = 20
_WORTH_COUNTING = 1e11  # operations; a run of less says more about overhead than about speed


@dataclass(frozen=True)
class Errors:
    """Median relative errors of ``runs`` earlier predictions, of the same base and method where there are any (``same``)."""

    runs: int
    memory: float
    time: float
    same: bool


@dataclass(frozen=True)
class Prediction:
    """``peak_mb`` of this process (or of the accelerator), ``train_s`` in steps, ``seconds`` with validations. ``parts`` are MB.

    ``based_on`` says where the speed comes from; ``checkpointing`` that activations are computed again, as asked or because memory needs it.
    ``raw_mb`` is what the arithmetic added before the correction by earlier runs.
    """

    peak_mb: float
    train_s: float
    seconds: float
    steps: int
    tokens: int
    trainable: int
    flops: float
    raw_mb: float
    free_mb: float
    based_on: str
    errors: Errors | None = None
    parts: Mapping[str, float] = field(default_factory=dict)
    checkpointing: bool = False

    @property
    def fits(self) -> bool:
        """Whether the machine has that much free memory."""
        return self.peak_mb - self.parts.get("process", 0.0) <= self.free_mb

    def as_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Prediction:
        """Inverse of ``as_dict``."""
        errors = data.get("errors")
        return Prediction(**{**data, "errors": Errors(**errors) if errors else None})


def predict(
    store: Store,
    job: Job,
    model: LoadedModel,
    lengths: Sequence[int],
    validation: Sequence[int] = (),
    *,
    layout: Layout | None = None,
    loaded: bool = True,
) -> Prediction:
    """What training ``job`` will take. ``model`` holds what the method put into it; ``layout``: where the rows of several sources lie;
    ``loaded``: its weights are in memory already.

    With ``train.checkpointing: auto`` it is first tried without.
    """
    from luthier.models.checkpointing import blocks

    asked = job.config.train.checkpointing
    whole = bool(job.objective.entry.optional("WHOLE_STEPS"))
    amount = amount_of(lengths, validation, job.config.train, layout, whole=whole)
    kept = job.objective.entry.optional("kept_logits")
    if kept is not None:
        amount = replace(amount, kept_logits=amount.rows * kept(model, job.objective.config))
    plain = _predict(store, job, model, amount, loaded=loaded, again=asked == "on")
    if asked != "auto" or plain.fits or not plain.parts["activations"] or not blocks(model.module):
        return plain
    return _predict(store, job, model, amount, loaded=loaded, again=True)


def _predict(store: Store, job: Job, model: LoadedModel, amount: Amount, *, loaded: bool, again: bool) -> Prediction:
    """As ``predict``; ``again``: activations are computed again."""
    from luthier.models.load import choose_device
    from luthier.training.memory import free_mb, resident_mb
    from luthier.training.processes import wanted

    train = job.config.train
    cut = train.shard == "on"
    device = model.device if loaded and not cut else choose_device(train.device)
    shape = shape_of(model, train)
    if cut:
        shape = divided(shape, model, wanted(train.processes, train.device))
    earlier = _earlier(store)
    flops = operations(shape, amount, again)
    speed, based_on = _speed(earlier, job, model.dtype, device)
    train_s = flops / speed
    limit = job.config.train.max_seconds
    forward = 2.0 * (body(shape) if shape.flows else shape.trainable) * amount.validation_tokens / speed
    parts = memory(shape, amount, again)
    share = job.method.entry.optional("activation_share")
    if share is not None:
        parts["activations"] *= share(job.method.config)
    if not loaded and job.reads:
        parts["other models"] = sum(
            _weights_mb(store, each, model) for each in job.reads.values() if isinstance(each, ModelRecord)
        )
    raw = sum(parts.values())
    extra = raw * _median([e["took_mb"] / e["raw_mb"] for e in _like(earlier, job) if e["raw_mb"] > 0], 1.0)
    weights = shape.weights_mb
    process = 0.0 if device.type == "cuda" else resident_mb() if loaded else max(_IMPORTED_MB, resident_mb())
    if (
        loaded and device.type != "cuda"
    ):  # weights that were mapped from a file come into memory when they are first used
        start = process = max(process, _IMPORTED_MB + weights)
    else:
        start = process + weights
    shown = {"process": process, **({} if start == process else {"weights": weights}), **parts}
    reading = 0.0
    if (
        shape.weight_bytes and not loaded and device.type != "cuda"
    ):  # they become 4 bits layer by layer, and are read before
        reading = process + shape.parameters * shape.bytes_each / 1e6
    return Prediction(
        peak_mb=max(start + extra, reading),
        train_s=train_s if limit is None else min(train_s, limit),
        seconds=train_s + forward if limit is None else min(train_s + forward, limit),
        steps=amount.steps,
        tokens=amount.tokens,
        trainable=shape.trainable,
        flops=flops,
        raw_mb=raw,
        free_mb=free_mb(device),
        based_on=based_on,
        errors=_errors(earlier, job),
        parts={name: round(value, 1) for name, value in shown.items()},
        checkpointing=again,
    )


def _weights_mb(store: Store, record: ModelRecord, like: LoadedModel) -> float:
    """Memory of the weights of a model that the objective reads, in the dtype of ``like``."""
    from luthier.models.shapes import load_shapes

    count = sum(int(p.numel()) for p in load_shapes(store, record).module.parameters())
    return count * like.dtype.itemsize / 1e6


def outline(store: Store, job: Job, shared: Shared | None = None) -> LoadedModel:
    """The model of ``job`` in shapes alone, with its method in it. Raises what the method raises when it cannot go in."""
    from luthier.training.prepare import build
    from luthier.training.shared import Shared

    labels = job.labels
    train = job.config.train
    model = (shared or Shared()).sketch(
        [job.base.digest, list(labels), train.dtype, train.device], lambda: _shapes_only(store, job)
    )
    model.record = model.base = job.base
    model.labels = job.labels
    model.module.requires_grad_(False)
    return build(model, job)


def sketch(
    store: Store, job: Job, shared: Shared | None = None
) -> tuple[LoadedModel, Sequence[int], Sequence[int], Layout | None]:
    """The model of ``job`` without its weights (shapes only), the lengths of its training and validation rows, and where the former lie
    when they are of several sources."""
    from luthier.training.prepare import layout_of, rows_of
    from luthier.training.work import lengths_of

    model = outline(store, job, shared)
    if model.architecture == "encoder":
        model.module.pooled = _no_features
    training, validation = (rows_of(model, job, job.datasets(part), shared) for part in ("train", "validation"))
    layout = layout_of(job, training)
    if layout is not None:
        layout.check([len(part.rows) for part in validation])
    lengths, held = (
        lengths_of(parts[0].rows) if len(parts) == 1 else [row.length for part in parts for row in part.rows]
        for parts in (training, validation)
    )
    return model, lengths, held, layout


def training_mb(model: LoadedModel, config: TrainConfig | None = None) -> float:
    """MB that training needs besides the process, for what a method put into ``model`` (a sketch will do): weights, optimizer, and the
    activations and logits of one micro-batch of ``max_tokens_per_batch`` tokens."""
    from luthier.training.config import TrainConfig

    shape = shape_of(model, config)
    amount = Amount(1, 0, 0, (config or TrainConfig()).max_tokens_per_batch)
    return shape.weights_mb + sum(memory(shape, amount).values())


def look_ahead(store: Store, job: Job, shared: Shared | None = None) -> Prediction:
    """The prediction for a job whose weights are not loaded. Costs a second or two: imports, and tokenising the rows, which
    ``shared`` keeps for the training itself."""
    model, lengths, validation, layout = sketch(store, job, shared)
    return predict(store, job, model, lengths, validation, layout=layout, loaded=False)


def outcome(prediction: Prediction, job: Job, *, peak_mb: float, train_s: float, steps: int) -> dict[str, Any]:
    """What a run's summary keeps: the prediction beside what happened, for the predictions to come.

    A run that ended early (patience, time, Ctrl-C) is compared over the steps that it made.
    """
    from luthier.models.load import choose_device, choose_dtype

    share = steps / prediction.steps if prediction.steps else 1.0
    train = job.config.train
    started = prediction.parts.get("process", 0.0)
    return {
        "base": job.base.name,
        "method": job.method.entry.name,
        "objective": job.objective.entry.name,
        "dtype": str(choose_dtype(train.dtype, choose_device(train.device))),
        "peak_mb": round(prediction.peak_mb, 1),
        "train_s": round(prediction.train_s * share, 3),
        "raw_mb": round(prediction.raw_mb, 1),
        "took_mb": round(max(peak_mb - started, 0.0), 1),
        "flops": prediction.flops * share,
        "worked": max(prediction.flops * share - steps * STEP_FLOPS, 0.0),
        "memory_error": round(abs(prediction.peak_mb - peak_mb) / peak_mb, 4) if peak_mb else 0.0,
        "time_error": round(abs(prediction.train_s * share - train_s) / train_s, 4) if train_s else 0.0,
        "seconds": round(train_s, 3),
    }


def _shapes_only(store: Store, job: Job) -> LoadedModel:
    from luthier.models.adapters import inner_of
    from luthier.models.load import choose_device, choose_dtype
    from luthier.models.shapes import load_shapes

    labels = job.labels
    found = load_shapes(store, job.base, labels=labels)
    dtype = choose_dtype(job.config.train.dtype, choose_device(job.config.train.device))
    inner_of(found).to(dtype)
    return replace(found, dtype=dtype)


def _no_features(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Features of rows whose body is frozen: there are no weights to compute them, and only their number matters."""
    return input_ids.new_zeros((len(input_ids), 1))


def _earlier(store: Store) -> list[dict[str, Any]]:
    """What earlier runs kept of prediction and outcome, newest first."""
    found = [run.summary.get("predicted") for run in list_runs(store, "tune", limit=200) if run.status == "done"]
    return [dict(each) for each in found if each]


def _like(earlier: Sequence[Mapping[str, Any]], job: Job) -> list[Mapping[str, Any]]:
    same = [e for e in earlier if (e["base"], e["method"]) == (job.base.name, job.method.entry.name)]
    nearest = [e for e in same if e.get("objective") == job.objective.entry.name]
    return (nearest or same)[:_REMEMBERED]


def _speed(
    earlier: Sequence[Mapping[str, Any]], job: Job, dtype: torch.dtype, device: torch.device
) -> tuple[float, str]:
    """Operations a second, and where the figure comes from."""
    same = [e["flops"] / e["seconds"] for e in _like(earlier, job) if e["seconds"] > 0 and e["flops"] > 0]
    if same:
        return _median(same, 1.0), f"{_runs(len(same))} of {job.method.entry.name} on {job.base.name}"
    alike = [e for e in earlier if e.get("dtype", str(dtype)) == str(dtype)]  # bf16 is several times as fast as fp32
    other = [e for e in alike if e["seconds"] > 0 and e["worked"] > _WORTH_COUNTING]
    if other:
        speeds = [e["flops"] / e["seconds"] for e in other[:_REMEMBERED]]
        return _median(speeds, 1.0), f"{_runs(len(speeds))} of other methods or models"
    return calibrate(dtype, device) * _EFFICIENCY, "a short calibration"


def _runs(count: int) -> str:
    return f"{count} earlier run{'' if count == 1 else 's'}"


def _errors(earlier: Sequence[Mapping[str, Any]], job: Job) -> Errors | None:
    same = _like(earlier, job)
    used = same or list(earlier[:_REMEMBERED])
    if not used:
        return None
    return Errors(
        len(used),
        _median([e["memory_error"] for e in used], 0.0),
        _median([e["time_error"] for e in used], 0.0),
        bool(same),
    )


def _median(values: Sequence[float], without: float) -> float:
    return statistics.median(values) if values else without


def calibrate(dtype: torch.dtype, device: torch.device, seconds: float = 0.1) -> float:
    """Operations a second of a matrix product of the size that small models have, on this machine."""
    import torch

    a, b = (torch.ones(shape, dtype=dtype, device=device) for shape in ((512, 768), (768, 2048)))
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        for _ in range(4):
            torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        done += 4
    return done * 2.0 * 512 * 768 * 2048 / (time.perf_counter() - began)
