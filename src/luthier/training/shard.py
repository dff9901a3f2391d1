"""Frozen weights in parts: each process holds its part of every block's, and has a block's whole weights only while that block is computed.

Zhao et al. 2023, "PyTorch FSDP", by PyTorch's ``fully_shard`` on the blocks that ``models.checkpointing`` finds. What is trained, and what lies
outside the blocks (embeddings, last norm, head), is whole in every process, so that gradients, optimizer, checkpoints and saving are those of
data parallel training. As a block's weights are gathered from all processes, all must go through the blocks equally often:
a process without rows in a micro-batch computes one with weight 0, validation runs in all, and each forward is agreed on before it begins.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from luthier.core.errors import UnsupportedError
from luthier.models.checkpointing import blocks
from luthier.models.soft_prompt import EMBEDDINGS, is_soft
from luthier.training.processes import Processes

if TYPE_CHECKING:
    from luthier.models.load import LoadedModel
    from luthier.training.resolve import Job

_OFF = "train.shard=off"


def require_shardable(job: Job) -> None:
    """Raise UnsupportedError for a job whose frozen weights cannot lie in parts, or that has none."""
    method, objective = job.method.entry, job.objective.entry
    held = method.optional("quantization") if job.base.kind == "base" else None
    if method.module.SAVES == "weights":
        raise UnsupportedError(
            f"method {method.name} trains the weights of the blocks themselves; train.shard=on is for frozen ones",
            hint=f"a method that leaves them as they are (method=lora), or {_OFF}",
        )
    if method.module.SAVES == "head":
        raise UnsupportedError(
            f"method {method.name} reads the frozen body once for each text, in whichever process has it; with "
            "train.shard=on all would have to read together",
            hint=_OFF,
        )
    if held is not None and held(job.method.config) is not None:
        raise UnsupportedError(f"method {method.name} holds its base in 4 bits, which are not in parts", hint=_OFF)
    for part, when in (("before", "before the first step"), ("after", "after the last step")):
        if objective.optional(part) is not None:
            raise UnsupportedError(
                f"objective {objective.name} runs the whole model {when}, and with train.shard=on no process has it",
                hint=_OFF,
            )


def in_parts(module: nn.Module) -> list[tuple[nn.Module, list[nn.Parameter]]]:
    """The blocks of ``module`` with their frozen parameters, as far as they can be cut; sketches will do.

    Raises UnsupportedError for weights that are computed of others, and for soft prompts whose gradient comes past a block's output.
    """
    if any(hasattr(each, "parametrizations") for each in module.modules()):
        raise UnsupportedError(
            "the method computes weights of the blocks of frozen ones, which are in parts", hint=_OFF
        )
    if is_soft(module):
        config: Any = module.active_peft_config
        if config.peft_type in EMBEDDINGS and config.task_type == "CAUSAL_LM":
            raise UnsupportedError(
                "virtual tokens that are embeddings go through the blocks by themselves, and their gradient comes back by keys and values "
                "alone, when a block's parts are not gathered",
                hint=f"a soft prompt that is keys and values (method=prefix), or {_OFF}",
            )
    found = [(block, [p for p in block.parameters() if not p.requires_grad and p.ndim]) for block in blocks(module)]
    return [(block, frozen) for block, frozen in found if frozen]


def frozen_bytes(module: nn.Module, bytes_each: int) -> int:
    """What the weights take that would lie in parts, in all processes together."""
    each = {id(p): p.numel() * bytes_each for _, frozen in in_parts(module) for p in frozen}
    return sum(each.values())


class Shards:
    """The parts of ``module``'s frozen weights in this process, and what keeps the processes together."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard, share_comm_ctx

        self._processes = Processes(device)
        self._device = device
        cut = in_parts(module)
        if not cut:
            raise UnsupportedError(
                f"{type(module).__name__} has no transformer blocks with frozen weights that could lie in parts",
                hint=_OFF,
            )
        mesh = init_device_mesh(device.type, (self._processes.count,))
        made: list[Any] = []
        for block, frozen in cut:
            kept = set(block.parameters()) - set(frozen)
            # moves these weights to the device and cuts them, a block at a time: no device ever holds the whole model
            made.append(fully_shard(block, mesh=mesh, reshard_after_forward=True, ignored_params=kept))
        share_comm_ctx(made)
        module.to(device)
        for (
            block
        ) in made:  # the gathered weights' tensors come from outside inference mode, so that training can keep them
            block.unshard()
            block.reshard()
        self._hook = made[0].register_forward_pre_hook(lambda *_: self._agree(True), prepend=True)

    def settle(self) -> None:
        """All forwards of this micro-batch are made. Raises UnsupportedError, in all processes, where another one makes more."""
        self._agree(False)

    def _agree(self, goes_on: bool) -> None:
        going = int(self._processes.sum(torch.tensor([int(goes_on)], device=self._device)).item())
        if going not in (0, self._processes.count):
            raise UnsupportedError(
                f"{going} of {self._processes.count} processes need another forward for their part of a micro-batch; with "
                "train.shard=on all must make as many",
                hint=_OFF,
            )

    def close(self) -> None:
        """Agree on nothing any more."""
        self._hook.remove()


@contextmanager
def sharded(model: LoadedModel, device: str) -> Iterator[Shards]:
    """Bring ``model`` to ``device`` with its blocks' frozen weights in parts. They stay so: what was trained is whole, and can be saved.

    Raises UnsupportedError for a model without such weights.
    """
    from luthier.models.load import choose_device
    from luthier.models.score import alone

    where = choose_device(device)
    shards = Shards(model.module, where)
    model.device = where
    try:
        with alone():
            yield shards
    finally:
        shards.close()
