"""What a training costs by arithmetic on shapes: parameters, tokens, floating-point operations and memory, without a weight in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from luthier.data.batch import plan

if TYPE_CHECKING:
    from luthier.models.load import LoadedModel
    from luthier.training.config import TrainConfig
    from luthier.training.optimizers._update import Cost
    from luthier.training.sources import Layout

STEP_FLOPS = 2e8  # what a step costs besides, in operations: Python, small tensors
_UPDATE_FLOPS = 20  # a trained parameter's update
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


def divided(shape: Shape, model: LoadedModel, count: int) -> Shape:
    """As one of ``count`` processes needs it that share the frozen weights of the blocks: its parts, and two whole blocks for a while."""
    from luthier.training.shard import frozen_bytes, in_parts

    frozen = frozen_bytes(model.module, shape.bytes_each)
    number = len(in_parts(model.module))
    share = 1 / count + min(2, number) / max(number, 1)
    return replace(shape, weight_bytes=shape.parameters * shape.bytes_each + frozen * (share - 1))


def body(shape: Shape) -> int:
    """Parameters that every token is multiplied with: all but the table of embeddings, which is looked up."""
    return max((shape.parameters - shape.embeddings) // shape.stacks, 1)


def operations(shape: Shape, amount: Amount, again: bool = False) -> float:
    """Floating-point operations of all steps; ``again``: activations are computed again in the backward pass."""
    update = shape.update.flops if shape.update is not None else _UPDATE_FLOPS * shape.trainable
    steps = amount.steps * (STEP_FLOPS + update)
    if not shape.flows:  # features were computed once; what is left is the head
        return steps + 6.0 * shape.trainable * amount.tokens
    trained = min(shape.trainable, body(shape))
    return steps + ((6.0 if again else 4.0) * body(shape) + 2.0 * trained) * amount.tokens


def memory(shape: Shape, amount: Amount, again: bool = False) -> dict[str, float]:
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
