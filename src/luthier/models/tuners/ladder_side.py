"""Ladder side-tuning: a small network beside the frozen one reads its hidden states, and no gradient goes through the large one.

Sung, Cho and Bansal 2022, "LST: Ladder Side-Tuning for Parameter and Memory Efficient Transfer Learning", section 3. With h_i the output
of the backbone's block i (h_0 its input), S_i the side block (the backbone's own class, every width divided by r), D_i a
down-projection and mu_i = sigmoid(alpha_i / T): s_0 = D_0 h_0, s_i = S_i(mu_i s_{i-1} + (1 - mu_i) D_i h_i), and the model's output is
U norm(s_L), which the frozen head reads. Backbone blocks run without autograd.

The side state travels in further columns of the tensor that the blocks hand on: whoever calls them one by one, packs rows or caches
keys and values needs to know nothing of it. Side blocks have layer numbers after the backbone's in the key-value cache. In
encoder-decoder models the side decoder attends to the side encoder, whose states are further columns of the encoder's output.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.config import PeftConfig
from peft.utils.peft_types import PeftType
from torch import Tensor, nn

from luthier.models import rows
from luthier.models.tuners._layer import TransparentLayer, TunerModel
from luthier.models.tuners._stacks import Stack, attention_modules, stacks

NAME = "ladder_side"
_SIZES = ("hidden_size", "intermediate_size", "n_inner", "d_ff", "d_kv", "head_dim")


@dataclass
class LadderSideConfig(PeftConfig):
    """``reduction`` r; a side block at every ``every``-th block; ``output``: side or added; ``temperature`` T of the gates."""

    target_modules: Any = field(default=None)
    reduction: int = 8
    every: int = 1
    output: str = "side"
    temperature: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["LADDER_SIDE"]


@dataclass(frozen=True)
class Place:
    """Where a wrapped module stands in its stack: the ``number`` of its block (the count of blocks for the norm after the last)."""

    number: int
    count: int
    width: int
    feeds: bool
    has_norm: bool
    rotary: Any = field(default=None, compare=False)


def targets(module: nn.Module) -> list[str]:
    """Names of all blocks and of the norms after the last ones."""
    return [name for stack in stacks(module) for name in stack.names]


def side_numbers(count: int, every: int) -> list[int]:
    """Which of ``count`` blocks have a side block: every ``every``-th, the last one always."""
    return [number for number in range(count) if (count - 1 - number) % every == 0]


def side_config(config: Any, reduction: int) -> Any:
    """The backbone's configuration with every width divided. Raises ValueError where one cannot be."""
    small = copy.deepcopy(config)
    heads = int(config.num_attention_heads)
    width = int(getattr(config, "head_dim", None) or getattr(config, "d_kv", None) or config.hidden_size // heads)
    step = 2 if hasattr(config, "rope_parameters") else 1  # rotary embedding turns pairs
    for key in (key for key in _SIZES if isinstance(getattr(config, key, None), int)):
        size, least = int(getattr(config, key)), step if key == "head_dim" else 1
        if size % reduction or size // reduction < least:
            raise ValueError(f"reduction {reduction} does not divide {key} {size}")
        setattr(small, key, size // reduction)
    if width % (reduction * step):
        raise ValueError(f"reduction {reduction} does not divide the width {width} of a head")
    return small


class Rung(nn.Module):
    """What one adapter has at one block: D and the gate before its side block, D_0 before the first, U after the last (BERT)."""

    def __init__(self, place: Place, block: nn.Module, config: LadderSideConfig) -> None:
        super().__init__()
        backbone: Any = next(each.config for each in block.modules() if hasattr(each, "config"))
        small = side_config(backbone, config.reduction)
        width = place.width // config.reduction
        self.bottom = nn.Linear(place.width, width) if place.number == 0 else None
        numbers = side_numbers(place.count, config.every)
        self.down = self.gate = self.block = None
        if place.number in numbers:
            self.down = nn.Linear(place.width, width)
            self.gate = nn.Parameter(torch.zeros(()))
            self.block = type(block)(small, layer_idx=place.number)  # as some models choose by it how to attend
        last = place.number == place.count - 1 and not place.has_norm
        self.up = _up(width, place.width, config) if last else None
        self.temperature, self.added = config.temperature, config.output == "added"
        self.sides, self.number = len(numbers), numbers.index(place.number) if place.number in numbers else -1
        self.configs: tuple[Any, Any] = (backbone, small)
        self.attentions = [] if self.block is None else attention_modules(self.block)
        self.rotary = None
        if place.rotary is not None:  # its own: the heads are narrower
            with torch.device("cpu"):
                self.rotary = type(place.rotary)(config=small)

    def forward(self, state: Tensor, hidden: Tensor, arguments: dict[str, Any], first: int) -> Tensor:
        """The side state after this block. ``arguments`` are those of the backbone's block, ``first`` the cache's first free layer."""
        if self.block is None or self.down is None or self.gate is None:
            return state
        gate = torch.sigmoid(self.gate / self.temperature)
        state = gate * state + (1 - gate) * self.down(hidden)
        self._go_along(state, arguments, first + self.number)
        out = self.block(hidden_states=state, **arguments)
        return out[0] if isinstance(out, tuple) else out  # type: ignore[no-any-return]

    def _go_along(self, state: Tensor, arguments: dict[str, Any], layer: int) -> None:
        backbone, small = self.configs
        if small._attn_implementation != backbone._attn_implementation:
            small._attn_implementation = backbone._attn_implementation
        for each in self.attentions:
            each.layer_idx = layer
        _make_room(arguments.get("past_key_values"), layer)
        if self.rotary is not None:
            arguments["position_embeddings"] = self.rotary(state, arguments["position_ids"])


class Top(nn.Module):
    """What one adapter has at the norm after the last block: a norm of its own and, unless a decoder reads it, U."""

    def __init__(self, place: Place, norm: Any, config: LadderSideConfig) -> None:
        super().__init__()
        width = place.width // config.reduction
        eps = next(getattr(norm, key) for key in ("eps", "variance_epsilon") if hasattr(norm, key))
        self.norm = type(norm)(width, eps=eps)
        self.up = None if place.feeds else _up(width, place.width, config)
        self.added = config.output == "added"


def _up(width: int, to: int, config: LadderSideConfig) -> nn.Linear:
    up = nn.Linear(width, to)
    if config.output == "added":  # beside the backbone's own output it starts as nothing
        nn.init.zeros_(up.weight)
        nn.init.zeros_(up.bias)
    return up


def _make_room(cache: Any, layer: int) -> None:
    """Caches that transformers makes for the backbone's layers get more."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    for each in (cache, getattr(cache, "self_attention_cache", None), getattr(cache, "cross_attention_cache", None)):
        if isinstance(each, DynamicCache) and each.layer_class_to_replicate is None:
            while len(each.layers) <= layer:
                each.layers.append(DynamicLayer())


class LadderLayer(TransparentLayer):
    """A backbone's block (or its last norm) with the adapters' side parts.

    Takes (batch, length, width) from below the first block, afterwards (batch, length, width + side widths); gives plain width at
    the top. Rows that no adapter answers leave with the backbone's own output.
    """

    adapter_layer_names = ("ladder_side",)
    other_param_names = ("widths",)
    NO_MERGE = "ladder_side is a network beside the base"

    def __init__(self, base_layer: nn.Module, place: Place) -> None:
        super().__init__(base_layer)
        self.place = place
        self.ladder_side = nn.ModuleDict({})
        self.widths: dict[str, int] = {}
        self._signature = inspect.signature(base_layer.forward)

    def update_layer(self, name: str, config: LadderSideConfig) -> None:
        """Add an adapter."""
        kind = Top if self.place.number == self.place.count else Rung
        self.ladder_side[name] = kind(self.place, self.base_layer, config)
        self.widths[name] = self.place.width // config.reduction

    def in_use(self) -> list[str]:
        """Adapters whose side states are in the further columns: of a mixed batch all that are here, so that columns and layer numbers
        stay when rows leave; else the selected one."""
        if rows.current() is not None:
            return list(self.widths) if any(name in self.widths for name in rows.current() or ()) else []
        return [] if self.disable_adapters else [name for name in self.active_adapters if name in self.widths]

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As the backbone's module, the side states going along."""
        names = self.in_use()
        if not names:
            return self.base_layer(hidden_states, *args, **kwargs)
        own, states = self._split(hidden_states, names)
        if self.place.number == self.place.count:
            return self._top(own, states)
        arguments = self._arguments(args, kwargs)
        read, sides = arguments.get("encoder_hidden_states"), dict.fromkeys(names)
        if read is not None:
            arguments["encoder_hidden_states"], sides = self._split(read, names)
        with torch.no_grad():
            out = self.base_layer(hidden_states=own, **arguments)
        hidden = out[0] if isinstance(out, tuple) else out
        if isinstance(out, tuple) and "position_bias" in arguments:  # T5: the first block makes it for all
            arguments["position_bias"], arguments["encoder_decoder_position_bias"] = out[1], out[2]
        first = self.place.count
        for name in names:
            rung: Any = self.ladder_side[name]
            if rung.bottom is not None:
                states[name] = rung.bottom(own)
            if name in self._answering(names):
                with_side = arguments if read is None else arguments | {"encoder_hidden_states": sides[name]}
                states[name] = rung(states[name], hidden, dict(with_side), first)
            first += rung.sides
        if not self.place.has_norm and self.place.number == self.place.count - 1:
            whole = self._given(hidden, {name: self._up(name, hidden, states[name]) for name in names})
        else:
            whole = torch.cat([hidden, *states.values()], -1)
        return (whole, *out[1:]) if isinstance(out, tuple) else whole

    def _answering(self, names: list[str]) -> set[str]:
        """Those of ``names`` that answer a row."""
        mixed = rows.current()
        return set(names) if mixed is None else set(names) & {name for name in mixed if name is not None}

    def _arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """All arguments but the first by name, whichever way the model gave them."""
        bound = self._signature.bind(None, *args, **kwargs).arguments
        return {**{k: v for k, v in bound.items() if k not in ("hidden_states", "kwargs")}, **bound.get("kwargs", {})}

    def _split(self, states: Tensor, names: list[str]) -> tuple[Tensor, dict[str, Any]]:
        """The backbone's columns, detached, and each adapter's (None below the first block)."""
        width = self.place.width
        if states.shape[-1] == width:
            return states.detach(), dict.fromkeys(names)
        parts = torch.split(states, [width, *(self.widths[name] for name in names)], -1)
        return parts[0].detach(), dict(zip(names, parts[1:], strict=True))

    def _top(self, own: Tensor, states: dict[str, Any]) -> Tensor:
        with torch.no_grad():
            hidden = self.base_layer(own)
        parts: dict[str, Any] = {name: self.ladder_side[name] for name in states}
        normed = {name: parts[name].norm(state) for name, state in states.items()}
        if self.place.feeds:
            return torch.cat([hidden, *normed.values()], -1)
        return self._given(hidden, {name: self._up(name, hidden, state) for name, state in normed.items()})

    def _up(self, name: str, hidden: Tensor, state: Tensor) -> Tensor:
        side: Any = self.ladder_side[name]
        return hidden + side.up(state) if side.added else side.up(state)  # type: ignore[no-any-return]

    def _given(self, hidden: Tensor, outs: dict[str, Tensor]) -> Tensor:
        mixed = rows.current()
        if mixed is None:
            return next(iter(outs.values()))
        return torch.stack([outs[n][row] if n in outs else hidden[row] for row, n in enumerate(mixed)])


class LadderSideModel(TunerModel):
    """The tuner."""

    prefix = "ladder_"
    tuner_layer_cls = LadderLayer

    def _prepare_adapter_config(self, peft_config: Any, model_config: Any) -> Any:
        if peft_config.target_modules is None:
            peft_config.target_modules = targets(self.model)
        return peft_config

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        self._places = {name: place for stack in stacks(model) for name, place in _places(stack, model).items()}

    def _create_and_replace(
        self, peft_config: Any, adapter_name: str, target: Any, target_name: str, parent: Any, current_key: str
    ) -> None:
        if isinstance(target, LadderLayer):
            target.update_layer(adapter_name, peft_config)
            return
        if current_key not in self._places:
            raise ValueError(f"{current_key} is no block of the model and no norm after its last one")
        layer = LadderLayer(target, self._places[current_key])
        layer.update_layer(adapter_name, peft_config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: Any, child_name: str, new_module: Any, child: Any) -> None:
        """A block has no weight of its own to hand on, which PEFT's way expects."""
        setattr(parent, child_name, new_module)
        where = next(child.parameters()).device
        if isinstance(new_module, LadderLayer) and not any(p.is_meta for p in list[Any](new_module.parameters())):
            new_module.ladder_side.to(where)

    def cache_layers(self) -> int:
        """Layers that the side blocks in use have in a key-value cache, after the backbone's."""
        layers = [each for each in self.model.modules() if isinstance(each, LadderLayer)]
        top = layers[-1] if layers else None  # the stack that generates is the last
        if top is None:
            return 0
        below = next(each for each in reversed(layers) if each.place.number < each.place.count)
        rungs: dict[str, Any] = {name: below.ladder_side[name] for name in top.in_use()}
        return sum(int(rung.sides) for rung in rungs.values())


def _places(stack: Stack, model: Any) -> dict[str, Place]:
    count, has_norm = len(stack.blocks), stack.norm is not None
    rotary = getattr(stack.owner, "rotary_emb", None)
    width = int(model.config.get_text_config().hidden_size)
    return {name: Place(number, count, width, stack.feeds, has_norm, rotary) for number, name in enumerate(stack.names)}


CONFIG, MODEL = LadderSideConfig, LadderSideModel
