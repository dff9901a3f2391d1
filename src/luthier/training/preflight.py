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
from luthier.data.batch import plan
from luthier.store.runs import list_runs

if TYPE_CHECKING:
    import torch

    from luthier.models.load import LoadedModel
    from luthier.store.database import Store
    from luthier.training.config import TrainConfig
    from luthier.training.optimizers._update import Cost
    from luthier.training.resolve import Job
    from luthier.training.shared import Shared
    from luthier.training.sources import Layout

_IMPORTED_MB = (
    520.0  # a process that has imported torch, transformers and peft, and done nothing (measured, Linux x86-64)
)
_EFFICIENCY = 0.35  # share of a bare multiplication's speed that training reaches (measured, SmolLM2-135M on two cores)
_REMEMBERED = 20
_STEP_FLOPS = 2e8  # what a step costs besides, in operations: Python, small tensors
_UPDATE_FLOPS = 20  # a trained parameter's update
_WORTH_COUNTING = 1e11  # operations; a run of less says more about overhead than about speed
_ENCODER = 2.2  # of a decoder's activations: masks of dropout, and the attention weights that its dropout keeps (measured, MiniLM)
_DECODER = 1.25  # gradients on their way, and what the allocator keeps in pieces of other sizes (measured, SmolLM2-135M with LoRA)
_LOGIT_ROWS = 128  # objectives compute logits in pieces of this many rows


@dataclass(frozen=True)
class Shape:
    """What of a model decides its cost; weights in 4 bits count one by one. ``flows``: the gradient goes through the body, so its
    activations are kept. A token goes through one of the ``stacks`` of ``layers`` each: an encoder-decoder's source through the
    encoder, its target through the decoder."""

    parameters: int
    trainable: int
    flows: bool
    embeddings: int
    width: int
    inner: int
    layers: int
    vocabulary: int
    bytes_each: int
    weight_bytes: float = 0.0  # what the weights take when some are in 4 bits; 0: parameters times bytes_each
    stacks: int = 1
    update: Cost | None = None  # of the optimizer's rule; None: of AdamW
    averaged: bool = False  # an average of the weights is kept
    words: int = 0  # that an encoder's language-model head knows, while it has one

    @property
    def weights_mb(self) -> float:
        """Memory of the weights."""
        return (self.weight_bytes or self.parameters * self.bytes_each) / 1e6


@dataclass(frozen=True)
class Amount:
    """What is run through it: tokens in all, of them those of validations, the padded size of the largest micro-batch that training comes
    to, and the most rows of one. ``kept_logits``: for how many tokens of it the backward pass keeps the logits."""

    steps: int
    tokens: int
    validation_tokens: int
    largest: int
    rows: int = 0
    kept_logits: int = 0


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


def shape_of(model: LoadedModel, train: TrainConfig | None = None) -> Shape:
    """Count a model's parameters, whether its weights are there or only sketched (torch's ``meta`` device), and what the optimizer of
    ``train`` costs on them. Raises InputError where that is for other parameters."""
    from luthier.models.adapters import inner_of
    from luthier.models.quantize import held_bytes, unseen
    from luthier.training.optimizer import cost, trained

    body = inner_of(model)
    config = body.config.get_text_config()
    counts = [(p.numel(), p.requires_grad) for p in model.module.parameters()]
    table = body.get_input_embeddings()
    return Shape(
        parameters=sum(n for n, _ in counts) + unseen(model.module),
        trainable=sum(n for n, trained in counts if trained),
        flows=any(p.requires_grad for p in body.parameters()),
        embeddings=int(table.weight.numel()) if table is not None else 0,
        width=int(config.hidden_size),
        inner=_inner(config),
        layers=int(config.num_hidden_layers),
        vocabulary=int(config.vocab_size) if model.architecture != "encoder" else 0,
        stacks=2 if model.architecture == "encoder-decoder" else 1,
        bytes_each=model.dtype.itemsize,
        weight_bytes=held_bytes(model.module, model.dtype.itemsize) if model.quantization is not None else 0.0,
        update=cost(train.optimizer, list(trained(model.module).values())) if train is not None else None,
        averaged=train is not None and train.ema is not None,
        words=_words(model),
    )


def _words(model: LoadedModel) -> int:
    from luthier.models.adapters import inner_of

    head = model.module.lm_head if model.architecture == "encoder" else None
    return int(inner_of(model).config.vocab_size) if head is not None else 0


def _inner(config: Any) -> int:
    """Width of the feed-forward layers."""
    for name in ("intermediate_size", "d_ff", "encoder_ffn_dim"):
        if getattr(config, name, None):
            return int(getattr(config, name))
    return 4 * int(config.hidden_size)


def amount_of(
    lengths: Sequence[int],
    validation: Sequence[int],
    config: TrainConfig,
    layout: Layout | None = None,
    *,
    whole: bool = False,
) -> Amount:
    """How many steps and tokens ``config`` makes of rows of these lengths, of several sources where ``layout`` says so. ``whole``: the
    objective takes the rows of a step together."""
    from luthier.training.work import planned_steps

    shape: dict[str, Any] = {"batch_size": config.batch_size, "max_tokens": config.max_tokens_per_batch}
    if layout is None:
        steps = plan(lengths, **shape, seed=config.seed, epoch=0)
    else:
        steps = layout.plan(lengths, **shape, seed=config.seed, epoch=0, group=True)
    drawn = [lengths[i] for step in steps for rows in step for i in rows]
    total, _ = planned_steps(config, drawn, len(steps))
    every = config.validate_every or len(steps)
    each = sum(drawn) / len(steps)
    made = [rows for step in steps[:total] for rows in step]
    if whole:  # all rows of a step, in forwards within the budget
        joined = [[i for rows in step for i in rows] for step in steps[:total]]
        largest, rows_at_once = (
            max(sum(lengths[i] for i in rows) for rows in joined),
            max(map(len, joined)),
        )
        largest = min(largest, max(config.max_tokens_per_batch, *lengths))
    else:
        largest = max(len(rows) * max(lengths[i] for i in rows) for rows in made)
        rows_at_once = max(map(len, made))
    return Amount(total, round(total * each), -(-total // every) * sum(validation), largest, rows_at_once)


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
        shape = _in_parts(shape, model, wanted(train.processes, train.device))
    earlier = _earlier(store)
    flops = _flops(shape, amount, again)
    speed, based_on = _speed(earlier, job, model.dtype, device)
    train_s = flops / speed
    limit = job.config.train.max_seconds
    forward = 2.0 * (_body(shape) if shape.flows else shape.trainable) * amount.validation_tokens / speed
    parts = _memory(shape, amount, again)
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


def _in_parts(shape: Shape, model: LoadedModel, count: int) -> Shape:
    """As one of ``count`` processes needs it that share the frozen weights of the blocks: its parts, and two whole blocks for a while."""
    from luthier.training.shard import frozen_bytes, in_parts

    frozen = frozen_bytes(model.module, shape.bytes_each)
    number = len(in_parts(model.module))
    share = 1 / count + min(2, number) / max(number, 1)
    return replace(shape, weight_bytes=shape.parameters * shape.bytes_each + frozen * (share - 1))


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
    return shape.weights_mb + sum(_memory(shape, amount).values())


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
        "worked": max(prediction.flops * share - steps * _STEP_FLOPS, 0.0),
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


def _body(shape: Shape) -> int:
    """Parameters that every token is multiplied with: all but the table of embeddings, which is looked up."""
    return max((shape.parameters - shape.embeddings) // shape.stacks, 1)


def _flops(shape: Shape, amount: Amount, again: bool = False) -> float:
    update = shape.update.flops if shape.update is not None else _UPDATE_FLOPS * shape.trainable
    steps = amount.steps * (_STEP_FLOPS + update)
    if not shape.flows:  # features were computed once; what is left is the head
        return steps + 6.0 * shape.trainable * amount.tokens
    trained = min(shape.trainable, _body(shape))
    return steps + ((6.0 if again else 4.0) * _body(shape) + 2.0 * trained) * amount.tokens


def _memory(shape: Shape, amount: Amount, again: bool = False) -> dict[str, float]:
    """MB by what needs them."""
    exact = shape.bytes_each == 4
    kept, working = (shape.update.state_bytes, shape.update.working_bytes) if shape.update else (8 * shape.trainable, 0)
    # a step: raw gradient, fp32 sum and master where the model is not in fp32; keeping the best: a copy of the masters
    each = (4 if exact else 2 + 4 + 4) + 4 + (4 if shape.averaged else 0)
    optimizer = (shape.trainable * each + kept) / 1e6
    layer: float = shape.bytes_each * (6 * shape.width + 4 * shape.inner) + 12 * shape.width
    if not shape.vocabulary or shape.stacks > 1:
        layer *= _ENCODER
    else:
        layer *= _DECODER
    if again:  # the inputs of all blocks, and one block at a time
        layer = layer / shape.layers + shape.bytes_each * shape.width
    activations = amount.largest * layer * shape.layers / 1e6 if shape.flows else 0.0
    logits = _LOGIT_ROWS * (shape.vocabulary or shape.words) * 10 / 1e6
    logits += amount.kept_logits * shape.vocabulary * (shape.bytes_each + 12) / 1e6  # in fp32, with two gradients
    optimizer += max(working / 1e6 - activations - logits, 0.0)  # an update takes place when these are free again
    return {"optimizer": optimizer, "activations": activations, "logits": logits}


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
