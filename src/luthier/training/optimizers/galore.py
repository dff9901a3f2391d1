"""GaLore: Adam in a low-rank projection of the gradient (Zhao et al. 2024, algorithm 2).

The gradient of a hidden matrix is projected onto its own ``rank`` leading singular vectors on the shorter side, found anew every
``update_every`` steps; the moments live in the projection, and what Adam makes of them is projected back and scaled. Embeddings, heads,
vectors, and matrices with no side above ``rank`` go by AdamW.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, nn

from luthier.core.catalog import EntryConfig
from luthier.core.errors import InputError
from luthier.training.optimizers._torch import adamw
from luthier.training.optimizers._update import Buffer, Cost, Trained, largest, total

PAPER = "Zhao et al. 2024, GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection, https://arxiv.org/abs/2403.03507"

_PREFIX = "projected."
_KINDS = ("basis", "exp_avg", "exp_avg_sq")
_STEP = "step"


class Config(EntryConfig):
    """``rank`` of the projection, steps between new ones (``update_every``), and ``scale`` of the step (alpha in the paper); ``beta1``,
    ``beta2`` and ``epsilon`` as in AdamW. Defaults are the paper's."""

    rank: int = Field(128, ge=1)
    update_every: int = Field(200, ge=1)
    scale: float = Field(0.25, gt=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)
    epsilon: float = Field(1e-8, gt=0)


def build(buffers: Sequence[Buffer], config: Config) -> GaLore:
    """The rule for ``buffers``. Raises InputError when no hidden matrix is larger than the rank."""
    return GaLore(buffers, config)


def cost(trained: Sequence[Trained], config: Config) -> Cost:
    """A basis and two moments of rank ``rank`` for a matrix, two fp32 moments for others. Projecting there and back takes
    4 * rank operations an entry; the bases are computed in fp64. Raises InputError when no hidden matrix is larger than the rank."""
    matrices = [each for each in trained if each.hidden and min(each.shape) > config.rank]
    _require_matrices(matrices, config)
    kept = 8 * (total(trained) - total(matrices))
    flops = 20.0 * total(trained)
    for each in matrices:
        low, high = min(each.shape), max(each.shape)
        kept += 4 * config.rank * (low + 2 * high)
        flops += 4.0 * config.rank * each.size + (2.0 * low * each.size + 9.0 * low**3) / config.update_every
    return Cost(kept, 12 * largest(matrices), flops)


@dataclass
class _Matrix:
    """One projected parameter: ``basis`` is (shorter side, rank)."""

    parameter: nn.Parameter
    weight_decay: float
    state: dict[str, Tensor]

    @property
    def is_wide(self) -> bool:
        """Whether the rows are the shorter side."""
        return self.parameter.shape[0] <= self.parameter.shape[1]


class GaLore:
    """Projected Adam for large matrices, torch's AdamW for the rest."""

    def __init__(self, buffers: Sequence[Buffer], config: Config) -> None:
        self._config, self._steps = config, 0
        self._matrices: dict[str, _Matrix] = {}
        rest: dict[str, nn.Parameter] = {}
        for buffer in buffers:
            for name, parameter in buffer.parameters().items():
                if name in buffer.hidden and min(parameter.shape) > config.rank:
                    self._matrices[name] = _Matrix(parameter, buffer.weight_decay, {})
                else:
                    rest[name] = parameter
        _require_matrices(self._matrices, config)
        self._rest = adamw(buffers, rest, (config.beta1, config.beta2), config.epsilon)

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """See ``Update``."""
        self._rest.step(rate)
        fresh = self._steps % self._config.update_every == 0
        self._steps += 1
        for matrix in self._matrices.values():
            self._step(matrix, rate, fresh=fresh)

    def _step(self, matrix: _Matrix, rate: float, *, fresh: bool) -> None:
        c, state, weights = self._config, matrix.state, matrix.parameter
        assert weights.grad is not None
        gradient = weights.grad if matrix.is_wide else weights.grad.T
        if fresh:
            state["basis"] = leading_basis(gradient, c.rank)
        projected = state["basis"].T @ gradient
        if "exp_avg" not in state:
            state |= {kind: torch.zeros_like(projected) for kind in ("exp_avg", "exp_avg_sq")}
        first = state["exp_avg"].lerp_(projected, 1.0 - c.beta1)
        second = state["exp_avg_sq"].mul_(c.beta2).addcmul_(projected, projected, value=1.0 - c.beta2)
        divisor = (second / (1.0 - c.beta2**self._steps)).sqrt_().add_(c.epsilon)
        change = state["basis"] @ (first / divisor)
        weights.mul_(1.0 - rate * matrix.weight_decay)
        size = rate * c.scale / (1.0 - c.beta1**self._steps)
        weights.add_(change if matrix.is_wide else change.T, alpha=-size)

    def state(self) -> dict[str, Tensor]:
        """Basis and moments of projected matrices, the moments of the rest, and the count of steps."""
        out = self._rest.state()
        out[_PREFIX + _STEP] = torch.tensor(self._steps)
        for name, matrix in self._matrices.items():
            out |= {f"{_PREFIX}{kind}.{name}": tensor for kind, tensor in matrix.state.items()}
        return out

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of ``state``. Raises KeyError when ``state`` is of other parameters."""
        self._rest.load_state(state)
        self._steps = int(state[_PREFIX + _STEP])
        for name, matrix in self._matrices.items():
            device = matrix.parameter.device
            wanted = _KINDS if self._steps else ()
            matrix.state = {kind: state[f"{_PREFIX}{kind}.{name}"].clone().to(device) for kind in wanted}


def leading_basis(matrix: Tensor, rank: int) -> Tensor:
    """The ``rank`` leading left singular vectors of ``matrix`` (rows, columns), rows <= columns: (rows, rank) fp32, leading first.

    They are the eigenvectors of its Gram matrix, computed in fp64, which for small sides is several times quicker than a decomposition of
    the whole. Each one's largest entry is positive, so that the sign, which is free, is always the same.
    """
    exact = matrix.double()
    vectors: Tensor = torch.linalg.eigh(exact @ exact.T).eigenvectors[:, -rank:].flip(1)
    signs = vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    return (vectors * signs).float().contiguous()


def _require_matrices(matrices: Sized, config: Config) -> None:
    if not matrices:
        raise InputError(
            f"optimizer galore projects hidden matrices onto rank {config.rank}, and none that is trained is larger",
            hint="it is made for method=full; take a smaller train.optimizer.rank, or train.optimizer=adamw",
        )
