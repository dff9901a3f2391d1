"""Master weights: what is trained in fp32, in flat buffers, with any rule of the catalogue ``optimizers`` to update it.

A step of AdamW on hundreds of small LoRA matrices is then a handful of large vector operations; rules that need a parameter's shape get
views. Models in bf16 keep their fp32 masters here (Micikevicius et al. 2018, section 3.1): bf16 has 8 bits of mantissa, and a learning rate
times a gradient is mostly smaller than that. Gradients of micro-batches are summed in fp32 too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from luthier.core import catalog
from luthier.training.config import Chosen
from luthier.training.optimizers._update import Buffer, Cost, Trained, Update

_ALIGNMENT = 16
"""Elements: each parameter starts on a 64-byte line, so that vector code rounds alike wherever the buffer lies."""

_PIECE = 2**20
"""Elements of a gradient that are converted at once."""


@dataclass
class _Group:
    """Parameters that share a dtype, a device and a weight decay, laid out one after another."""

    buffer: Buffer
    parameters: list[nn.Parameter]
    weights: Tensor  # what the model computes with; the masters themselves when the model is in fp32
    raw_gradients: Tensor  # what backward writes; the buffer's gradients themselves when the model is in fp32
    is_empty: bool = True  # no backward of this step has been added: what the gradients hold is of an earlier one

    @staticmethod
    def build(named: list[tuple[str, nn.Parameter]], weight_decay: float, kinds: Mapping[str, Trained]) -> _Group:
        offsets, size = [], 0
        for _, parameter in named:
            offsets.append(size)
            size += -(-parameter.numel() // _ALIGNMENT) * _ALIGNMENT
        first = named[0][1]
        weights = torch.zeros(size, dtype=first.dtype, device=first.device)
        raw = torch.zeros_like(weights)
        for (_, parameter), start in zip(named, offsets, strict=True):
            place = slice(start, start + parameter.numel())
            weights[place] = parameter.detach().reshape(-1)
            parameter.data = weights[place].view(parameter.shape)
            parameter.grad = raw[place].view(parameter.shape)
        exact = first.dtype == torch.float32
        buffer = Buffer(
            tuple(name for name, _ in named),
            tuple(parameter.shape for _, parameter in named),
            tuple(offsets),
            masters=weights if exact else weights.float(),
            gradients=raw if exact else torch.zeros_like(raw, dtype=torch.float32),
            weight_decay=weight_decay,
            hidden=frozenset(name for name, _ in named if kinds[name].hidden),
            embeddings=frozenset(name for name, _ in named if kinds[name].embedding),
        )
        return _Group(buffer, [parameter for _, parameter in named], weights, raw)

    def accumulate(self) -> None:
        """Add what backward has written to the fp32 sums.

        Adding bf16 to fp32 in one operation is ten times slower on a CPU than converting, so the first is a conversion in place and
        the others are converted a piece at a time.
        """
        if self.raw_gradients is self.buffer.gradients:
            return
        if self.is_empty:
            self.buffer.gradients.copy_(self.raw_gradients)
            self.is_empty = False
        else:
            pieces = (torch.split(whole, _PIECE) for whole in (self.buffer.gradients, self.raw_gradients))
            for sums, raw in zip(*pieces, strict=True):
                sums.add_(raw.float())
        self.raw_gradients.zero_()

    def sums(self) -> Tensor:
        """The fp32 sums of this step: zero where no backward was."""
        if self.is_empty and self.raw_gradients is not self.buffer.gradients:
            self.buffer.gradients.zero_()
            self.is_empty = False
        return self.buffer.gradients

    def clear(self) -> None:
        """Begin the next step."""
        self.is_empty = True
        if self.raw_gradients is self.buffer.gradients:
            self.buffer.gradients.zero_()


def adamw(buffers: Sequence[Buffer]) -> Update:
    """The default: AdamW with its usual options."""
    return builder(Chosen(name="adamw"))(buffers)


class Optimizer:
    """Trains the parameters of ``module`` that require a gradient by the rule that ``build`` makes for their buffers.

    The parameters become views into flat buffers until ``release``. Weight decay applies to matrices only: not to biases, gains of
    norms, or other vectors. Raises what ``build`` raises.
    """

    def __init__(
        self,
        module: nn.Module,
        build: Callable[[Sequence[Buffer]], Update] = adamw,
        *,
        weight_decay: float = 0.0,
    ) -> None:
        kinds: dict[tuple[torch.dtype, torch.device, bool], list[tuple[str, nn.Parameter]]] = {}
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                kind = (parameter.dtype, parameter.device, parameter.ndim >= 2)
                kinds.setdefault(kind, []).append((name, parameter))
        known = trained(module)
        self._groups = [
            _Group.build(named, weight_decay if matrices else 0.0, known) for (_, _, matrices), named in kinds.items()
        ]
        self._update = build([group.buffer for group in self._groups])

    def accumulate(self) -> None:
        """Add what backward has written to the fp32 sums; call it after every backward."""
        for group in self._groups:
            group.accumulate()

    def reduce(self, total: Callable[[Tensor], Tensor]) -> None:
        """Replace the gradients of this step by their sums over processes, which ``total`` makes of a buffer."""
        for group in self._groups:
            group.buffer.gradients.copy_(total(group.sums()))

    def step(self, rate: float, clip: float) -> float:
        """One update with learning rate ``rate``; returns the global norm of the gradient before clipping.

        ``clip`` is the largest norm (0 is off). Without a finite norm nothing changes.
        """
        norm = float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g.sums()) for g in self._groups])))
        finite = math.isfinite(norm)
        if finite:
            scale = clip / norm if clip and norm > clip else 1.0
            if scale != 1.0:
                for group in self._groups:
                    group.buffer.gradients.mul_(scale)
            with torch.no_grad():
                self._update.step(rate)
            self.publish()
        for group in self._groups:
            group.clear()
        return norm

    def publish(self) -> None:
        """Bring the fp32 weights into the model, after they were changed from outside."""
        for group in self._groups:
            if group.weights is not group.buffer.masters:
                group.weights.copy_(group.buffer.masters)

    def buffers(self) -> list[Tensor]:
        """The fp32 weights as they lie in memory, flat, with the gaps between parameters."""
        return [group.buffer.masters for group in self._groups]

    def cut(self, flats: Sequence[Tensor]) -> dict[str, Tensor]:
        """Views, by parameter name, of tensors laid out as ``buffers``."""
        pairs = zip(self._groups, flats, strict=True)
        return {name: piece for group, flat in pairs for name, piece in group.buffer.cut(flat).items()}

    def masters(self) -> dict[str, Tensor]:
        """The fp32 weights by parameter name (views: copy before the next step)."""
        return self.cut(self.buffers())

    def gradients(self) -> dict[str, Tensor]:
        """The fp32 sums of the gradients by parameter name (views), as the next step will use them."""
        return self.cut([group.sums() for group in self._groups])

    def load_masters(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the weights, in the model too. Raises KeyError for a missing name."""
        with torch.no_grad():
            for name, piece in self.masters().items():
                piece.copy_(tensors[name])
        self.publish()

    def state(self) -> dict[str, Tensor]:
        """Everything a later ``load_state`` needs to go on exactly: masters, and what the rule keeps."""
        return {f"{_MASTER}{name}": piece for name, piece in self.masters().items()} | self._update.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of ``state``. Raises KeyError when ``state`` is of other parameters."""
        self.load_masters({k.removeprefix(_MASTER): v for k, v in state.items() if k.startswith(_MASTER)})
        self._update.load_state(state)

    def release(self) -> None:
        """Give every parameter its own memory again and drop the gradients."""
        for group in self._groups:
            for parameter in group.parameters:
                parameter.data = parameter.detach().clone()
                parameter.grad = None
        self._groups = []


_MASTER = "master."


def builder(chosen: Chosen) -> Callable[[Sequence[Buffer]], Update]:
    """What makes the chosen rule for buffers. Raises NotFoundError, InputError for wrong options, MissingExtraError."""
    entry = catalog.load("optimizers", chosen.name)
    config = entry.configure(chosen.options)

    def build(buffers: Sequence[Buffer]) -> Update:
        made: Update = entry(buffers, config)
        return made

    return build


def cost(chosen: Chosen, parameters: Sequence[Trained]) -> Cost:
    """What the chosen rule costs on ``parameters``, besides masters and gradients."""
    entry = catalog.load("optimizers", chosen.name)
    found: Cost = entry.module.cost(parameters, entry.configure(chosen.options))
    return found


def trained(module: nn.Module) -> dict[str, Trained]:
    """The parameters that require a gradient by name, whether their weights are there or only sketched.

    Hidden are the matrices inside of repeated layers, the ``nn.ModuleList`` in which transformers keep them.
    """
    lists = tuple(f"{name}." for name, part in module.named_modules() if isinstance(part, nn.ModuleList))
    tables = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    found = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            embedding = id(parameter) in tables
            hidden = parameter.ndim == 2 and not embedding and name.startswith(lists)
            found[name] = Trained(tuple(parameter.shape), hidden, embedding)
    return found
