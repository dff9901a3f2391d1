"""AdamW with both moments in 8 bits, quantized in blocks of 256 (Dettmers et al. 2022, section 2).

The quantization and the update are those of bitsandbytes (``pip install 'luthier[qlora]'``), on CPUs and CUDA. As in the paper, embeddings
keep fp32 moments (section 2.3), and so do parameters of fewer than ``min_size`` entries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from luthier.core.catalog import EntryConfig
from luthier.models.quantize import library
from luthier.training.optimizers._torch import adamw
from luthier.training.optimizers._update import Buffer, Cost, Trained, total

PAPER = "Dettmers et al. 2022, 8-bit Optimizers via Block-wise Quantization, https://arxiv.org/abs/2110.02861"

_BLOCK = 256
_PIECE = 2**20
"""Elements that are updated at once on a CPU, whose kernel makes fp32 copies of both moments; whole blocks."""

_PREFIX = "quantized."
_STEP = "step"


class Config(EntryConfig):
    """``min_size`` is the least number of entries of a parameter whose moments go into 8 bits; ``embeddings`` puts those of embeddings
    there too. ``beta1``, ``beta2`` and ``epsilon`` as in AdamW."""

    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)
    epsilon: float = Field(1e-8, gt=0)
    min_size: int = Field(4096, ge=1)
    embeddings: bool = False


def build(buffers: Sequence[Buffer], config: Config) -> AdamW8bit:
    """The rule for ``buffers``. Raises MissingExtraError without bitsandbytes."""
    return AdamW8bit(buffers, config)


def cost(trained: Sequence[Trained], config: Config) -> Cost:
    """Two bytes an entry and two fp32 constants a block; two fp32 moments for what is not quantized."""
    small = total(each for each in trained if not _fits(each.size, config, embedding=each.embedding))
    large = total(trained) - small
    return Cost(2 * large + 8 * large // _BLOCK + 8 * small, 16 * min(_PIECE, large), 40.0 * total(trained))


def _fits(size: int, config: Config, *, embedding: bool) -> bool:
    return size >= config.min_size and (config.embeddings or not embedding)


@dataclass
class _Quantized:
    """One parameter's flat masters and gradients, with its moments: codes (uint8, one an entry) and scales (fp32, one a block)."""

    masters: Tensor
    gradients: Tensor
    weight_decay: float
    state: dict[str, Tensor]

    @staticmethod
    def of(parameter: nn.Parameter, weight_decay: float) -> _Quantized:
        assert parameter.grad is not None
        flat = parameter.detach().view(-1)
        codes = {f"codes{i}": torch.zeros(flat.shape, dtype=torch.uint8, device=flat.device) for i in (1, 2)}
        scales = {f"scales{i}": torch.zeros(-(-len(flat) // _BLOCK), device=flat.device) for i in (1, 2)}
        return _Quantized(flat, parameter.grad.view(-1), weight_decay, codes | scales)

    def pieces(self) -> Iterator[tuple[Tensor, Tensor, dict[str, Tensor]]]:
        """Masters, gradients and state, as much as is updated at once."""
        size = _PIECE if self.masters.device.type == "cpu" else len(self.masters)
        for start in range(0, len(self.masters), size):
            entries = slice(start, start + size)
            blocks = slice(start // _BLOCK, -(-(start + size) // _BLOCK))
            state = {kind: each[entries if kind.startswith("codes") else blocks] for kind, each in self.state.items()}
            yield self.masters[entries], self.gradients[entries], state


class AdamW8bit:
    """bitsandbytes' 8-bit Adam for large parameters, torch's AdamW for the rest."""

    def __init__(self, buffers: Sequence[Buffer], config: Config) -> None:
        self._library: Any = library("8-bit moments (optimizer adamw_8bit)")
        self._config, self._steps = config, 0
        self._quantized: dict[str, _Quantized] = {}
        rest: dict[str, nn.Parameter] = {}
        for buffer in buffers:
            for name, parameter in buffer.parameters().items():
                if _fits(parameter.numel(), config, embedding=name in buffer.embeddings):
                    self._quantized[name] = _Quantized.of(parameter, buffer.weight_decay)
                else:
                    rest[name] = parameter
        self._rest = adamw(buffers, rest, (config.beta1, config.beta2), config.epsilon)
        self._levels = {
            device: tuple(self._library.create_dynamic_map(signed=signed).to(device) for signed in (True, False))
            for device in {each.masters.device for each in buffers}
        }

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """See ``Update``."""
        self._rest.step(rate)
        self._steps += 1
        for each in self._quantized.values():
            signed, unsigned = self._levels[each.masters.device]
            for masters, gradients, state in each.pieces():
                self._library.optimizer_update_8bit_blockwise(
                    "adam",
                    gradients,
                    masters,
                    state["codes1"],
                    state["codes2"],
                    self._config.beta1,
                    self._config.beta2,
                    0.0,
                    0.0,
                    self._config.epsilon,
                    self._steps,
                    rate,
                    signed,
                    unsigned,
                    state["scales1"],
                    state["scales2"],
                    weight_decay=each.weight_decay,
                )

    def state(self) -> dict[str, Tensor]:
        """Codes and scales of quantized moments, the moments of the rest, and the count of steps."""
        out = self._rest.state()
        out[_PREFIX + _STEP] = torch.tensor(self._steps)
        for name, each in self._quantized.items():
            out |= {f"{_PREFIX}{kind}.{name}": tensor for kind, tensor in each.state.items()}
        return out

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of ``state``. Raises KeyError when ``state`` is of other parameters."""
        self._rest.load_state(state)
        self._steps = int(state[_PREFIX + _STEP])
        for name, each in self._quantized.items():
            for kind, tensor in each.state.items():
                tensor.copy_(state[f"{_PREFIX}{kind}.{name}"])
