"""AdamW over fp32 master weights, each group of parameters in one flat buffer.

A step on hundreds of small LoRA matrices is then a handful of large vector operations. Models in bf16 keep their fp32 masters
here (Micikevicius et al. 2018, section 3.1): bf16 has 8 bits of mantissa, and a learning rate times a gradient is mostly smaller
than that. Gradients of micro-batches are summed in fp32 too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

_ALIGNMENT = 16
"""Elements: each parameter starts on a 64-byte line, so that vector code rounds alike wherever the buffer lies."""

_PIECE = 2**20
"""Elements of a gradient that are converted at once."""


@dataclass
class _Group:
    """Parameters that share a dtype, a device and a weight decay, laid out one after another."""

    names: list[str]
    parameters: list[nn.Parameter]
    offsets: list[int]
    masters: Tensor
    gradients: Tensor
    weights: Tensor  # what the model computes with; the masters themselves when the model is in fp32
    raw_gradients: Tensor  # what backward writes; ``gradients`` themselves when the model is in fp32
    shapes: list[torch.Size] = field(default_factory=list)
    is_empty: bool = True  # no backward of this step has been added: what ``gradients`` hold is of an earlier one

    @staticmethod
    def build(named: list[tuple[str, nn.Parameter]]) -> _Group:
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
        return _Group(
            [name for name, _ in named],
            [parameter for _, parameter in named],
            offsets,
            masters=weights if exact else weights.float(),
            gradients=raw if exact else torch.zeros_like(raw, dtype=torch.float32),
            weights=weights,
            raw_gradients=raw,
            shapes=[parameter.shape for _, parameter in named],
        )

    def accumulate(self) -> None:
        """Add what backward has written to the fp32 sums.

        Adding bf16 to fp32 in one operation is ten times slower on a CPU than converting, so the first is a conversion in place and
        the others are converted a piece at a time.
        """
        if self.raw_gradients is self.gradients:
            return
        if self.is_empty:
            self.gradients.copy_(self.raw_gradients)
            self.is_empty = False
        else:
            pieces = (torch.split(whole, _PIECE) for whole in (self.gradients, self.raw_gradients))
            for sums, raw in zip(*pieces, strict=True):
                sums.add_(raw.float())
        self.raw_gradients.zero_()

    def sums(self) -> Tensor:
        """The fp32 sums of this step: zero where no backward was."""
        if self.is_empty and self.raw_gradients is not self.gradients:
            self.gradients.zero_()
            self.is_empty = False
        return self.gradients

    def clear(self) -> None:
        """Begin the next step."""
        self.is_empty = True
        if self.raw_gradients is self.gradients:
            self.gradients.zero_()

    def cut(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of one flat buffer under the parameters' names."""
        pieces = zip(self.names, self.offsets, self.shapes, strict=True)
        return {name: flat[start : start + shape.numel()].view(shape) for name, start, shape in pieces}


class MasterAdamW:
    """AdamW (Loshchilov and Hutter 2019, algorithm 2) on the parameters of ``module`` that require a gradient.

    The parameters become views into flat buffers until ``release``. Weight decay applies to matrices only: not to biases, gains of
    norms, or other vectors.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
    ) -> None:
        kinds: dict[tuple[torch.dtype, torch.device, bool], list[tuple[str, nn.Parameter]]] = {}
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                kind = (parameter.dtype, parameter.device, parameter.ndim >= 2)
                kinds.setdefault(kind, []).append((name, parameter))
        self._groups = [_Group.build(named) for named in kinds.values()]
        self._adam = torch.optim.AdamW(
            [
                {"params": [nn.Parameter(group.masters)], "weight_decay": weight_decay if matrices else 0.0}
                for (_, _, matrices), group in zip(kinds, self._groups, strict=True)
            ],
            lr=0.0,
            betas=betas,
            eps=epsilon,
            fused=True,
        )

    def accumulate(self) -> None:
        """Add what backward has written to the fp32 sums; call it after every backward."""
        for group in self._groups:
            group.accumulate()

    def step(self, rate: float, clip: float, reduce: Callable[[Tensor], Tensor] | None = None) -> float:
        """One update with learning rate ``rate``; returns the global norm of the gradient before clipping.

        ``clip`` is the largest norm (0 is off). ``reduce`` sums a buffer over processes. Without a finite norm nothing changes.
        """
        if reduce is not None:
            for group in self._groups:
                group.gradients.copy_(reduce(group.sums()))
        norm = float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g.sums()) for g in self._groups])))
        finite = math.isfinite(norm)
        if finite:
            scale = clip / norm if clip and norm > clip else 1.0
            for group, options in zip(self._groups, self._adam.param_groups, strict=True):
                options["lr"] = rate
                options["params"][0].grad = group.gradients.mul_(scale) if scale != 1.0 else group.gradients
            self._adam.step()
            self.publish()
        for group in self._groups:
            group.clear()
        return norm

    def publish(self) -> None:
        """Bring the fp32 weights into the model, after they were changed from outside."""
        for group in self._groups:
            if group.weights is not group.masters:
                group.weights.copy_(group.masters)

    def masters(self) -> dict[str, Tensor]:
        """The fp32 weights by parameter name (views: copy before the next step)."""
        return {name: piece for group in self._groups for name, piece in group.cut(group.masters).items()}

    def gradients(self) -> dict[str, Tensor]:
        """The fp32 sums of the gradients by parameter name (views), as the next step will use them."""
        return {name: piece for group in self._groups for name, piece in group.cut(group.sums()).items()}

    def load_masters(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the weights, in the model too. Raises KeyError for a missing name."""
        with torch.no_grad():
            for name, piece in self.masters().items():
                piece.copy_(tensors[name])
        self.publish()

    def state(self) -> dict[str, Tensor]:
        """Everything a later ``load_state`` needs to go on exactly: masters, both moments, the step count."""
        out = {}
        for index, (group, options) in enumerate(zip(self._groups, self._adam.param_groups, strict=True)):
            moments = self._adam.state[options["params"][0]]
            out[f"step.{index}"] = moments["step"].reshape(1) if moments else torch.zeros(1)
            for kind, flat in (("master", group.masters), *((k, moments[k]) for k in _MOMENTS if moments)):
                out |= {f"{kind}.{name}": piece for name, piece in group.cut(flat).items()}
        return out

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of ``state``. Raises KeyError when ``state`` is of other parameters."""
        self.load_masters({k.removeprefix("master."): v for k, v in state.items() if k.startswith("master.")})
        for index, (group, options) in enumerate(zip(self._groups, self._adam.param_groups, strict=True)):
            count = state[f"step.{index}"]
            if not float(count):
                continue
            moments = {kind: torch.zeros_like(group.masters) for kind in _MOMENTS}
            for kind, flat in moments.items():
                for name, piece in group.cut(flat).items():
                    piece.copy_(state[f"{kind}.{name}"])
            self._adam.state[options["params"][0]] = {"step": count[0].clone().to(group.masters.device), **moments}

    def release(self) -> None:
        """Give every parameter its own memory again and drop the gradients."""
        for group in self._groups:
            for parameter in group.parameters:
                parameter.data = parameter.detach().clone()
                parameter.grad = None
        self._groups = []


_MOMENTS = ("exp_avg", "exp_avg_sq")


def parameter_counts(parameters: Iterable[nn.Parameter]) -> tuple[int, int]:
    """(trainable, all)."""
    listed = list(parameters)
    return sum(p.numel() for p in listed if p.requires_grad), sum(p.numel() for p in listed)
