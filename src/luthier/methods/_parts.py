"""The named parts of a model that selective methods train, found by what they are and not by one architecture's names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from luthier.core.errors import InputError, UnsupportedError, did_you_mean
from luthier.methods._targets import linear_layers
from luthier.models.adapters import inner_of
from luthier.models.load import LoadedModel


def stacks(module: Any) -> list[list[str]]:
    """Names of the transformer blocks of each stack from the bottom up: the children of the longest list of modules, or in an
    encoder-decoder those of both outermost lists, the encoder's first. Raises UnsupportedError."""
    import torch

    lists = {name: len(child) for name, child in module.named_modules() if isinstance(child, torch.nn.ModuleList)}
    if not lists:
        raise UnsupportedError(f"{type(module).__name__} has no list of blocks", hint="name the parts: method.parts")
    longest = [max(lists, key=lambda key: lists[key])]
    if getattr(module.config, "is_encoder_decoder", False):
        longest = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    return [[f"{name}.{number}" for number in range(lists[name])] for name in longest]


def norms(module: Any) -> list[str]:
    """Names of the layers that normalise: LayerNorm, RMSNorm and architectures' own classes of that name."""
    import torch

    return [
        name
        for name, layer in module.named_modules()
        if isinstance(layer, torch.nn.LayerNorm | torch.nn.RMSNorm)
        or (type(layer).__name__.endswith("Norm") and isinstance(getattr(layer, "weight", None), torch.nn.Parameter))
    ]


def attention_projections(module: Any) -> list[str]:
    """Names of the linear layers inside attention: query, key, value and output."""
    within = [f"{name}." for name, layer in module.named_modules() if type(layer).__name__.endswith("Attention")]
    return [name for name in linear_layers(module) if any(name.startswith(each) for each in within)]


@dataclass(frozen=True)
class Sublayer:
    """An attention or a feed-forward of a block, by names of layers inside it.

    ``first``: the first linear layer, whose input is the sub-layer's own; ``output``: the linear layer back to the model's width.
    ``norm``: of a feed-forward, the norm before it (``norm_first``) or after its residual sum; None where neither is clear.
    ``block``: the number of its block in the stack.
    """

    kind: Literal["attention", "cross_attention", "feed_forward"]
    first: str
    output: str
    norm: str | None = None
    norm_first: bool = True
    block: int = 0


def sublayers(module: Any) -> list[Sublayer]:
    """The sub-layers of every block in the model's order: of all stacks, if it has an encoder and a decoder.

    A block is a child of an outermost list of modules that hold attention. In a block, an attention is a module of such a class; its
    output is the last linear layer that returns to the model's width, as the feed-forward's is among the layers outside attention.
    Raises UnsupportedError for models without such blocks, and for blocks with several feed-forwards (mixtures of experts).
    """
    layers, every_norm = linear_layers(module), norms(module)
    found = [
        part
        for stack, count in _attending(module)
        for number in range(count)
        for part in _of_block(module, stack, number, layers, every_norm)
    ]
    if not found:
        raise UnsupportedError(
            f"{type(module).__name__} has no blocks of attention and feed-forward that can be told apart",
            hint="name linear layers instead: method=lora method.targets=[...]",
        )
    return found


def _attending(module: Any) -> list[tuple[str, int]]:
    """Name and length of each outermost list of modules that hold attention."""
    import torch

    found: list[tuple[str, int]] = []
    for name, child in module.named_modules():
        inside = any(name.startswith(f"{other}.") for other, _ in found)
        if isinstance(child, torch.nn.ModuleList) and not inside and any(map(_is_attention, child.modules())):
            found.append((name, len(child)))
    return found


def _is_attention(part: Any) -> bool:
    return type(part).__name__.endswith("Attention")


_IN = {"q_proj", "k_proj", "v_proj", "query", "key", "value", "q", "k", "v", "q_lin", "k_lin", "v_lin"}
"""Last parts of names of layers that lead into an attention: where they keep the width, they are not its output."""


def _of_block(
    module: Any, stack: str, number: int, layers: Mapping[str, tuple[int, int]], every_norm: Sequence[str]
) -> Iterator[Sublayer]:
    block = f"{stack}.{number}"
    attentions: list[str] = []
    for name, part in module.get_submodule(block).named_modules(prefix=block):
        if _is_attention(part) and not any(name.startswith(f"{other}.") for other in attentions):
            attentions.append(name)
    width = 0
    for place, attention in enumerate(attentions):
        inside = {name: shape for name, shape in layers.items() if name.startswith(f"{attention}.")}
        back = [n for n, (i, o) in inside.items() if n.rsplit(".", 1)[-1] not in _IN and o == _width(inside)]
        if not back:
            continue
        width = layers[back[-1]][1]
        first = next((name for name in inside if name != back[-1]), back[-1])
        yield Sublayer("cross_attention" if place else "attention", first, back[-1], block=number)
    outside = [
        n for n in layers if n.startswith(f"{block}.") and not any(n.startswith(f"{other}.") for other in attentions)
    ]
    back = [name for name in outside if layers[name][1] == width and name != outside[0]]
    if len(back) > 1 and len({layers[name][0] for name in back}) == 1 and layers[back[0]][0] != width:
        raise UnsupportedError(
            f"the blocks of {type(module).__name__} have {len(back)} feed-forwards each: a mixture of experts",
            hint="name linear layers instead: method=lora method.targets=[...]",
        )
    if back:
        norm = _norm_of_feed_forward(module, block, attentions, width, every_norm)
        yield Sublayer("feed_forward", outside[0], back[-1], norm, _ends_in_a_norm(stack, every_norm), number)


def _width(inside: Mapping[str, tuple[int, int]]) -> int:
    """Of the layers of an attention, what the first takes in: the model's width."""
    return next(iter(inside.values()))[0] if inside else 0


def _norm_of_feed_forward(
    module: Any, block: str, attentions: Sequence[str], width: int, every_norm: Sequence[str]
) -> str | None:
    """The norm that goes with the feed-forward: the last one of the block outside attention, where there is one for each sub-layer."""
    inside = [
        name
        for name in every_norm
        if name.startswith(f"{block}.") and module.get_submodule(name).weight.shape[0] == width
    ]
    outside = [name for name in inside if not any(name.startswith(f"{other}.") for other in attentions)]
    config = getattr(module, "config", None)
    branches = any(getattr(config, key, False) for key in ("use_parallel_residual", "parallel_attn"))
    if not outside or branches or len(inside) != len(attentions) + 1 or "post_feedforward" in outside[-1]:
        return None
    return outside[-1]


def _ends_in_a_norm(stack: str, every_norm: Sequence[str]) -> bool:
    """Whether a norm of its own follows the blocks: so it is where each sub-layer normalises its input, not its sum (Xiong et al. 2020)."""
    parent = stack.rpartition(".")[0]
    beside = [name for name in every_norm if name.rpartition(".")[0] == parent]
    return any("embed" not in name.rsplit(".", 1)[-1] for name in beside)


def narrow(found: Iterable[str], wanted: Sequence[str] | None, *, where: str, what: str) -> list[str]:
    """Those of the names ``found`` that ``wanted`` lists, by name or by end of name (a dot before it); all when it is None.

    Raises InputError for an entry that matches nothing, with near names.
    """
    names = list(found)
    if wanted is None:
        return names
    if not wanted:
        raise InputError(f"{where} must name at least one {what}; got an empty list")
    chosen: set[str] = set()
    for target in wanted:
        matches = {name for name in names if name == target or name.endswith(f".{target}")}
        if not matches:
            known = {name.rsplit(".", 1)[-1] for name in names}
            raise InputError(
                f"{where} must be names (or ends of names) of a {what}; got {target!r}, which matches none. "
                f"{did_you_mean(target.rsplit('.', 1)[-1], known)}"
            )
        chosen |= matches
    return [name for name in names if name in chosen]


def of_modules(module: Any, names: Iterable[str]) -> dict[str, Any]:
    """Name -> parameter of all parameters inside the named modules."""
    found: dict[str, Any] = {}
    for name in names:
        part = module.get_submodule(name)
        found |= {f"{name}.{key}" if name else key: value for key, value in part.named_parameters()}
    return found


def train_only(model: LoadedModel, parameters: Mapping[str, Any]) -> LoadedModel:
    """Freeze everything, then let ``parameters`` (and an encoder's head) require a gradient."""
    inner_of(model).requires_grad_(False)  # the heads beside it are their objectives'
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    if model.architecture == "encoder" and model.module.head is not None:
        model.module.head.requires_grad_(True)
    return model
