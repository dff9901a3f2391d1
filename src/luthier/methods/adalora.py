"""AdaLoRA: the ranks of LoRA wander to the layers that need them while training.

Zhang et al. 2023, "Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning": the correction is P E Q with E diagonal (equation 3), P and Q
are pulled towards orthogonality (equation 4, as the authors' code weighs it), and the singular values that matter least (equations 7
to 11) are set to zero, until ``rank`` a layer is left on average (equation 12). A layer may lose all of its ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from luthier.core.catalog import EntryConfig
from luthier.methods._peft import check_rank, target_names, task_type, wrap
from luthier.methods._targets import choose
from luthier.models.adapters import inner_of, quiet_peft
from luthier.models.load import LoadedModel

if TYPE_CHECKING:
    from torch import Tensor

PAPER = "Zhang et al. 2023, Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning, https://arxiv.org/abs/2303.10512"
FAMILY = "reparametrised"
SAVES = "adapter"
SERVING: Mapping[str, Mapping[str, str]] = {
    "decoder": {"torch": "swap", "llamacpp": "merge"},
    "encoder": {"torch": "swap", "llamacpp": "no"},
    "encoder-decoder": {"torch": "swap", "llamacpp": "no"},
}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "decoder": {"learning_rate": 2e-3},
    "encoder": {"learning_rate": 6e-3},
    "encoder-decoder": {"learning_rate": 2e-3},
}


class Config(EntryConfig):
    """``rank`` that is left a layer, on average; ``start_rank`` of every layer at the start (left out: half as much again).

    ``alpha``: the correction is multiplied by alpha / start_rank (left out: twice start_rank). ``dropout`` on the input. ``targets``:
    all_linear, or names (or ends of names) of linear layers such as [q_proj, v_proj].

    ``warmup``: the share of the steps before ranks begin to go, ``final``: the share after the last has gone; between them they go at every
    ``interval``-th step. A training that ends early, or whose best validation came early, keeps more. ``smoothing`` of a weight's importance over steps, ``caution`` of its
    uncertainty (the paper's beta 1 and beta 2). ``orthogonality``: the weight of that term of the loss.
    """

    rank: int = Field(8, ge=1)
    start_rank: int | None = Field(None, ge=1)
    alpha: float | None = Field(None, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: Literal["all_linear"] | list[str] = "all_linear"
    warmup: float = Field(0.1, ge=0, lt=1)
    final: float = Field(0.3, ge=0, lt=1)
    interval: int = Field(1, ge=1)
    smoothing: float = Field(0.85, gt=0, lt=1)
    caution: float = Field(0.85, gt=0, lt=1)
    orthogonality: float = Field(0.5, ge=0)

    @model_validator(mode="after")
    def _room(self) -> Config:
        """Ranks must have something to go from, and steps to go in."""
        if self.start_rank is not None and self.start_rank < self.rank:
            raise ValueError(f"start_rank must be at least rank ({self.rank}); got {self.start_rank}")
        if self.warmup + self.final >= 1:
            raise ValueError(f"warmup and final must leave steps between them; got {self.warmup:g} + {self.final:g}")
        return self

    @property
    def first_rank(self) -> int:
        """start_rank, worked out."""
        return self.start_rank if self.start_rank is not None else (3 * self.rank + 1) // 2


def build(model: LoadedModel, config: Config) -> LoadedModel:
    """Put P, E and Q into the targets. Raises InputError for targets that match nothing or too high a start rank."""
    from peft import AdaLoraConfig

    chosen = choose(inner_of(model), config.targets, where="method.targets")
    check_rank(chosen, config.first_rank, where="method.start_rank")
    with quiet_peft():
        settings = AdaLoraConfig(
            init_r=config.first_rank,
            target_r=config.rank,
            lora_alpha=config.alpha or 2.0 * config.first_rank,
            lora_dropout=config.dropout,
            total_step=2,  # PEFT's own schedule is not used: steps() has the optimizer's fp32 weights and gradients
            orth_reg_weight=config.orthogonality,
            target_modules=target_names(config.targets, chosen),
            task_type=task_type(model),
        )
    built = wrap(model, settings, method="adalora")
    for name, parameter in inner_of(built).named_parameters():
        if ".ranknum." in name:
            parameter.requires_grad_(False)
    return built


def steps(model: LoadedModel, config: Config) -> Allocation:
    """What happens around each optimizer step: orthogonality before it, importance and ranks after it."""
    return Allocation(config)


def trained_parameters(module: Any, config: Config) -> int:
    """start_rank (inputs + outputs + 1) of every target."""
    chosen = choose(module, config.targets, where="method.targets").values()
    return sum(config.first_rank * (inputs + outputs + 1) for inputs, outputs in chosen)


class Allocation:
    """The ranks' importance so far, and which of them are left. Names are those of the parameters: ``...lora_E.default``."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._gradients: dict[str, Tensor] = {}
        self._importance: dict[str, Tensor] = {}
        self._uncertainty: dict[str, Tensor] = {}
        self._left: dict[str, Tensor] = {}

    def before(self, step: int, total: int, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
        """Add the gradient of the orthogonality term, the mean of ||P'P - I|| and ||Q Q' - I|| over the layers."""
        import torch

        named = {name: kind for name in weights if (kind := _kind(name))}
        sides = [name for name, kind in named.items() if kind != "lora_E"]
        for name in sides:
            rows = weights[name] if named[name] == "lora_A" else weights[name].T
            off = rows @ rows.T - torch.eye(len(rows), device=rows.device)
            norm = torch.linalg.vector_norm(off)
            if norm > 0:
                pull = (2.0 * self.config.orthogonality / len(sides) / norm) * (off @ rows)
                gradients[name].add_(pull if named[name] == "lora_A" else pull.T)
        self._gradients = {name: gradients[name].clone() for name in named}

    def after(self, step: int, total: int, weights: Mapping[str, Tensor]) -> None:
        """Note how much the loss hangs on each weight, and set the values to zero for which there is no room any more."""
        first, last = int(self.config.warmup * total), total - int(self.config.final * total)
        if step < last or not self._importance:
            self._note(weights)
        values = [name for name in weights if _kind(name) == "lora_E"]
        if step <= last:
            most, least = self.config.first_rank * len(values), self.config.rank * len(values)
            room = most
            if step == last:
                room = least
            elif step > first and step % self.config.interval == 0:
                room = int((most - least) * (1 - (step - first) / (last - first)) ** 3 + least)
            if room < most:
                self._left = self._chosen(values, most - room)
                for name, left in self._left.items():
                    weights[name].masked_fill_(~left, 0.0)
        else:
            for name, left in self._left.items():
                weights[name].masked_fill_(~left, 0.0)
        self._gradients = {}

    def _note(self, weights: Mapping[str, Tensor]) -> None:
        """Equations 8 to 10: smoothed |weight x gradient|, and smoothed distance from it."""
        import torch

        for name, gradient in self._gradients.items():
            now = (weights[name] * gradient).abs()
            known = self._importance.setdefault(name, torch.zeros_like(now))
            known.lerp_(now, 1 - self.config.smoothing)
            self._uncertainty.setdefault(name, torch.zeros_like(now)).lerp_(
                (now - known).abs(), 1 - self.config.caution
            )

    def _chosen(self, values: list[str], gone: int) -> dict[str, Tensor]:
        """Which ranks stay when ``gone`` of all go, the least important ones (equation 7)."""
        import torch

        scores = {name: self._importance[name] * self._uncertainty[name] for name in self._importance}
        triplets = {
            name: scores[name].view(-1)
            + scores[name.replace("lora_E", "lora_A")].mean(1)
            + scores[name.replace("lora_E", "lora_B")].mean(0)
            for name in values
        }
        bound = torch.cat(list(triplets.values())).kthvalue(gone).values
        return {name: (score > bound).view(-1, 1) for name, score in triplets.items()}

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        kinds = {"importance": self._importance, "uncertainty": self._uncertainty, "left": self._left}
        return {f"{kind}.{name}": tensor for kind, found in kinds.items() for name, tensor in found.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of ``state``."""
        kinds = {"importance": self._importance, "uncertainty": self._uncertainty, "left": self._left}
        for key, tensor in state.items():
            kind, _, name = key.partition(".")
            kinds[kind][name] = tensor.clone()


def _kind(name: str) -> str:
    """Which part of the product a parameter is; "" for others (an encoder's head)."""
    return next((kind for kind in ("lora_A", "lora_B", "lora_E") if f".{kind}." in name), "")
