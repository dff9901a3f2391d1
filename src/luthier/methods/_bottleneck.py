"""What the methods that put bottleneck networks into blocks share: which sub-layers, how many units, how many parameters."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal, Protocol, TypeVar

from luthier.core.errors import InputError, UnsupportedError
from luthier.methods._parts import Sublayer, norms, sublayers
from luthier.methods._peft import task_type, wrap
from luthier.methods._targets import choose, linear_layers
from luthier.models.adapters import inner_of
from luthier.models.load import LoadedModel

ATTENTION, CROSS_ATTENTION, FEED_FORWARD = "attention", "cross_attention", "feed_forward"

Activation = Literal["relu", "gelu", "gelu_new", "silu", "tanh"]
Norm = Literal["none", "before", "after"]


class Sized(Protocol):
    """A Config that says how many units its adapters have."""

    @property
    def bottleneck(self) -> int | None: ...
    @property
    def reduction(self) -> float: ...
    @property
    def model_fields_set(self) -> set[str]: ...


SizedConfig = TypeVar("SizedConfig", bound=Sized)


def one_size(config: SizedConfig) -> SizedConfig:
    """A validator of Configs. Raises ValueError when the size was given in two ways."""
    if {"bottleneck", "reduction"} <= config.model_fields_set:
        raise ValueError("bottleneck and reduction say the same thing: give one of them")
    return config


def parts(module: Any, kinds: Collection[str], blocks: Sequence[int] | None, *, method: str) -> list[Sublayer]:
    """The sub-layers of these kinds in the blocks with these numbers (of each stack; None: in all).

    Raises InputError for a block that is not there, UnsupportedError for a model without a kind that was asked for.
    """
    every = sublayers(module)
    count = 1 + max(part.block for part in every)
    wrong = [number for number in blocks or () if not 0 <= number < count]
    if blocks is not None and (wrong or not blocks):
        raise InputError(
            f"method.blocks must be numbers from 0 to {count - 1}; got {wrong[0] if wrong else 'an empty list'}"
        )
    for kind in kinds:
        if not any(part.kind == kind for part in every):
            raise UnsupportedError(
                f"method {method} finds no {kind.replace('_', '-')} in the blocks of {type(module).__name__}",
                hint="name linear layers instead: method=adapter method.targets=[...], or method=lora method.targets=[...]",
            )
    return [part for part in every if part.kind in kinds and (blocks is None or part.block in blocks)]


def feed_forwards(module: Any, blocks: Sequence[int] | None, *, method: str) -> tuple[list[Sublayer], int]:
    """The feed-forwards of these blocks and their width. Raises UnsupportedError where a block's norms are not one for each part."""
    found = parts(module, [FEED_FORWARD], blocks, method=method)
    unclear = [part.output for part in found if part.norm is None]
    if unclear:
        raise UnsupportedError(
            f"method {method} needs one norm for each sub-layer; those around {unclear[0]} are others",
            hint=f"beside the feed-forward instead: method=adapter method.targets=[{unclear[0].rpartition('.')[2]}]",
        )
    layers = linear_layers(module)
    return found, one_width([layers[part.output][1] for part in found], method=method)


def after_feed_forward(found: Sequence[Sublayer]) -> dict[str, Any]:
    """The tuner's options for adapters after these feed-forwards and their residual sums (Pfeiffer et al. 2021, appendix A)."""
    norm_of = {part.output: str(part.norm) for part in found}
    if found[0].norm_first:
        return {"targets": list(norm_of), "placement": "residual", "sources": norm_of}
    return {"targets": list(norm_of.values()), "placement": "norm"}


def beside_feed_forward(module: Any, blocks: Sequence[int] | None, *, method: str) -> tuple[dict[str, str], int]:
    """Second linear layer of each feed-forward -> the first, whose input an adapter beside it reads; and the width of both."""
    found = parts(module, [FEED_FORWARD], blocks, method=method)
    layers = linear_layers(module)
    widths = [layers[part.output][1] for part in found] + [layers[part.first][0] for part in found]
    return {part.output: part.first for part in found}, one_width(widths, method=method)


def outputs(
    module: Any,
    targets: str | Sequence[str],
    kinds: Collection[str],
    blocks: Sequence[int] | None,
    *,
    method: str,
) -> dict[str, int]:
    """Name -> width of the linear layers after which adapters go: those that ``targets`` names, or (auto) the sub-layers' last ones."""
    if targets != "auto":
        if blocks is not None:
            raise InputError("method.blocks is for targets auto; named targets say themselves which blocks they are in")
        return {name: out for name, (_, out) in choose(module, targets, where="method.targets").items()}
    layers = linear_layers(module)
    return {part.output: layers[part.output][1] for part in parts(module, kinds, blocks, method=method)}


def size_of(width: int, config: Sized, *, multiple: int = 1) -> int:
    """Units of an adapter: ``bottleneck``, or ``width / reduction`` rounded down to a ``multiple`` (which is the least).

    Raises InputError for more units than the width, or for a ``bottleneck`` that is no multiple.
    """
    bottleneck = config.bottleneck
    if bottleneck is None:
        return max(multiple, int(width / config.reduction) // multiple * multiple)
    if bottleneck > width:
        raise InputError(
            f"method.bottleneck must be at most {width}, the width of the layers that it goes between; got {bottleneck}"
        )
    if bottleneck % multiple:
        raise InputError(f"method.bottleneck must be a multiple of method.n, {multiple}; got {bottleneck}")
    return bottleneck


def one_width(widths: Collection[int], *, method: str) -> int:
    """The width of all targets. Raises InputError when they differ."""
    if len(set(widths)) > 1:
        raise InputError(
            f"method.targets of method {method} must return one width; got layers of {', '.join(map(str, sorted(set(widths))))}",
            hint="name layers that return to the model's width, such as o_proj and down_proj",
        )
    return next(iter(widths))


def plain_parameters(width: int, size: int, *, norm: str, learn_scale: bool = False) -> int:
    """Down and up with their biases, a norm of its own, a learned scale."""
    return 2 * width * size + size + width + (2 * width if norm != "none" else 0) + int(learn_scale)


def prefix_parameters(module: Any, attentions: Sequence[Sublayer], length: int) -> int:
    """``length`` keys and values in each of these attentions."""
    from luthier.models.tuners._prefix_attention import heads_of

    sizes = [heads_of(module.get_submodule(part.first.rpartition(".")[0])) for part in attentions]
    return sum(2 * length * heads * each for heads, each in sizes)


def norm_parameters(module: Any) -> int:
    """Gains and biases of all of the model's norms."""
    return sum(p.numel() for name in norms(module) for p in module.get_submodule(name).parameters())


def insert(model: LoadedModel, method: str, targets: Collection[str], **options: Any) -> LoadedModel:
    """Put adapters after ``targets``; ``options`` are those of the tuner's configuration (``models.tuners.bottleneck``)."""
    from luthier.models import tuners

    named = {*targets, *options.get("norms", ()), *options.get("sources", {}).values()}
    settings = tuners.tuner("bottleneck").CONFIG(target_modules=sorted(named), task_type=task_type(model), **options)
    return wrap(model, settings, method=method)


def trained_norms(model: LoadedModel, wanted: bool) -> list[str]:
    """The norms to train beside adapters: all of the model's, or none."""
    return norms(inner_of(model)) if wanted else []
