"""Bottleneck adapters in AdapterHub's layout, to and from the tuner ``models.tuners.bottleneck``.

The library computes (``methods/modeling.py``, y the output of a sub-layer, x the residual stream before it, N the norm after the sum, where there is
one): y + A(y) when ``original_ln_before`` is false; y + A(N(y + x)) when it is true, and y + A(y + x) in models without such a norm; y + A(x)
when ``is_parallel``; with A(v) = scaling (W_up f(W_down v + b_down) + b_up). Those are the placements sequential, norm, residual and
parallel. Dropout is elsewhere there and is not taken over: it matters in training alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luthier.core.errors import DataError, UnsupportedError
from luthier.models.adapterhub import PREFIX, USE_PEFT, Names

_PLAIN: tuple[tuple[str, Any, str], ...] = (
    ("original_ln_after", True, "the base's own norm after the sum is left out"),
    ("use_gating", False, "its gate looks at the mean of all positions"),
    ("residual_before_ln", True, "its residual connection begins after the norm"),
    ("adapter_residual_before_ln", False, "it normalises the sum again"),
    ("inv_adapter", None, "it changes the embeddings too"),
    ("cross_adapter", False, "it goes after cross-attention"),
    ("phm_layer", False, "its hypercomplex matrices are shared and drawn otherwise"),
)
"""Options that must have this value, and what another one means."""
_ACTIVATIONS = {"relu": "relu", "swish": "silu", "silu": "silu", "gelu": "gelu", "gelu_new": "gelu_new", "tanh": "tanh"}
_LINEAR = {"adapter_down.0": "down", "adapter_up": "up"}
_AFTER_NORM = {"adapter_norm_before": "before", "adapter_down.1": "down", "adapter_up": "up"}


def from_bottleneck(
    folder: Path, config: Mapping[str, Any], name: str, tensors: Mapping[str, Any], names: Names, blocks: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Configuration and tensors of the tuner. Raises UnsupportedError for options that it computes otherwise, DataError for damaged files."""
    for key, plain, why in _PLAIN:
        if config.get(key, plain) != plain:
            raise UnsupportedError(
                f"{folder}: a bottleneck adapter with {key}={config[key]!r} cannot be taken over: {why}"
            )
    placement = _placement(config, names)
    norm = "before" if config.get("ln_before") else "after" if config.get("ln_after") else "none"
    scaling = config.get("scaling", 1.0)
    if config.get("ln_before") and config.get("ln_after"):
        raise UnsupportedError(f"{folder}: a bottleneck adapter with norms before and after cannot be taken over")
    if scaling == "channel" or (norm == "after" and scaling != 1.0):
        raise UnsupportedError(
            f"{folder}: a bottleneck adapter with scaling={scaling!r} cannot be taken over: it has one for each channel or before its norm"
        )
    activation = str(config["non_linearity"]).lower()
    if activation not in _ACTIVATIONS:
        raise UnsupportedError(f"{folder}: non_linearity must be one of {', '.join(_ACTIVATIONS)}; got {activation!r}")
    where = {place: key for key, place in names.bottleneck.items()}
    pattern = re.compile(
        rf"{re.escape(names.block)}(\d+)\.({'|'.join(map(re.escape, where))})\.adapters\.{re.escape(name)}\.(.+)"
    )
    parts = (_AFTER_NORM if norm == "before" else _LINEAR) | (
        {"adapter_norm_after": "after"} if norm == "after" else {}
    )
    out: dict[str, Any] = {}
    targets: dict[str, str] = {}
    for key, tensor in tensors.items():
        match = pattern.fullmatch(key)
        inner, _, kind = match[3].rpartition(".") if match else ("", "", "")
        if norm == "before" and inner == "adapter_down.0":
            continue  # the norm again, under its place in a sequence
        if match is None or int(match[1]) >= blocks or (inner not in parts and match[3] != "scaling"):
            raise UnsupportedError(f"{folder}: {key!r} is no bottleneck adapter that this model has a place for")
        block, at = f"{names.inside}{names.block}{match[1]}.", where[match[2]]
        target = block + (names.norms if placement == "norm" else names.outputs)[at]
        targets[target] = block + names.inputs[at]
        own = "scale" if match[3] == "scaling" else f"{parts[inner]}.{kind}"
        out[f"{PREFIX}{target}.bottleneck_adapters.{own}"] = tensor
    sizes = {len(tensor) for key, tensor in out.items() if key.endswith(".down.weight")}
    if len(sizes) != 1:
        raise (UnsupportedError if sizes else DataError)(
            f"{folder}: must hold adapters of one size; got sizes {sorted(sizes)}"
        )
    sources = targets if placement in ("parallel", "residual") else {}
    return {
        "peft_type": "BOTTLENECK",
        "placement": placement,
        "target_modules": sorted({*targets, *sources.values()}),
        "sources": sources,
        "norms": [],
        "size": sizes.pop(),
        "activation": _ACTIVATIONS[activation],
        "dropout": 0.0,
        "norm": norm,
        "scale": 1.0 if scaling == "learned" else float(scaling),
        "learn_scale": scaling == "learned",
        "hypercomplex": 0,
    }, out


def _placement(config: Mapping[str, Any], names: Names) -> str:
    if config.get("is_parallel"):
        return "parallel"
    if not config.get("original_ln_before"):
        return "sequential"
    return "norm" if names.norms else "residual"


def to_bottleneck(
    config: Mapping[str, Any], tensors: Mapping[str, Any], names: Names, name: str, model: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The library's options and tensors. Raises UnsupportedError for what has no place there."""
    if config.get("peft_type") != "BOTTLENECK":
        raise UnsupportedError(
            f"AdapterHub's layout can hold LoRA and bottleneck adapters; this one is of PEFT's type {config.get('peft_type')}",
            hint=USE_PEFT,
        )
    for key, why in (
        ("norms", "it trains norms of the base too"),
        ("hypercomplex", "its hypercomplex matrices are shared otherwise there"),
    ):
        if config.get(key):
            raise UnsupportedError(f"AdapterHub's layout cannot hold this adapter: {why}", hint=USE_PEFT)
    if config["norm"] == "after" and (config["learn_scale"] or config["scale"] != 1):
        raise UnsupportedError(
            "AdapterHub's layout cannot hold this adapter: it is scaled after its norm, there before it", hint=USE_PEFT
        )
    placement = config["placement"]
    layers = names.norms if placement == "norm" else names.outputs
    if placement == "residual" and names.norms:
        raise UnsupportedError(
            "AdapterHub's layout cannot hold this adapter: it reads the sum before the norm, there after it",
            hint=USE_PEFT,
        )
    where = {layer: key for key, layer in layers.items()}
    pattern = re.compile(rf"{re.escape(PREFIX + names.inside + names.block)}(\d+)\.(.+?)\.bottleneck_adapters\.(.+)")
    parts = {own: theirs for theirs, own in (_AFTER_NORM if config["norm"] == "before" else _LINEAR).items()} | {
        "after": "adapter_norm_after"
    }
    out: dict[str, Any] = {}
    blocks: dict[int, set[str]] = {}
    for key, tensor in tensors.items():
        match = pattern.fullmatch(key)
        if match is None or match[2] not in where:
            raise UnsupportedError(
                f"AdapterHub's layout has no place for an adapter at {key.removeprefix(PREFIX)}", hint=USE_PEFT
            )
        at = where[match[2]]
        _check_source(config, f"{names.inside}{names.block}{match[1]}.", match[2], names.inputs[at])
        blocks.setdefault(int(match[1]), set()).add(at)
        stem = f"{names.block}{match[1]}.{names.bottleneck[at]}.adapters.{name}."
        inner, _, kind = match[3].rpartition(".")
        out[stem + ("scaling" if match[3] == "scale" else f"{parts[inner]}.{kind}")] = tensor
        if inner == "before":
            out[f"{stem}adapter_down.0.{kind}"] = tensor.clone()
    return _options(config, blocks, model), out


def _check_source(config: Mapping[str, Any], block: str, target: str, sought: str) -> None:
    """Where the adapter reads another module's input, it must be the residual stream."""
    if config["placement"] not in ("parallel", "residual"):
        return
    full = block + target
    source = next((to for of, to in config["sources"].items() if full == of or full.endswith(f".{of}")), "")
    if not (source == block + sought or (block + sought).endswith(f".{source}")):
        raise UnsupportedError(
            f"AdapterHub's layout cannot hold this adapter: it reads the input of {source}, there the residual stream",
            hint=USE_PEFT,
        )


def _options(config: Mapping[str, Any], blocks: Mapping[int, set[str]], model: Any) -> dict[str, Any]:
    places = next(iter(blocks.values()))
    if any(each != places for each in blocks.values()):
        raise UnsupportedError(
            "AdapterHub's layout has adapters at the same places of every block; this one has not", hint=USE_PEFT
        )
    placement, parallel = config["placement"], config["placement"] == "parallel"
    return {
        "adapter_residual_before_ln": False,
        "cross_adapter": False,
        "dropout": 0.0,
        "factorized_phm_W": True,
        "factorized_phm_rule": False,
        "hypercomplex_nonlinearity": "glorot-uniform",
        "init_weights": "mam_adapter" if parallel else "bert",
        "init_weights_seed": None,
        "inv_adapter": None,
        "inv_adapter_reduction_factor": None,
        "is_parallel": parallel,
        "learn_phm": True,
        "leave_out": [block for block in range(int(model.num_hidden_layers)) if block not in blocks],
        "ln_after": config["norm"] == "after",
        "ln_before": config["norm"] == "before",
        "mh_adapter": "mh_adapter" in places,
        "non_linearity": "swish" if config["activation"] == "silu" else config["activation"],
        "original_ln_after": True,
        "original_ln_before": placement in ("norm", "residual"),
        "output_adapter": "output_adapter" in places,
        "phm_bias": True,
        "phm_c_init": "normal",
        "phm_dim": 4,
        "phm_init_range": 0.0001,
        "phm_layer": False,
        "phm_rank": 1,
        "reduction_factor": _factor(int(model.hidden_size), int(config["size"])),
        "residual_before_ln": True,
        "scaling": "learned" if config["learn_scale"] else float(config["scale"]),
        "shared_W_phm": False,
        "shared_phm_rule": True,
        "stochastic_depth": 0.0,
        "use_gating": False,
    }


def _factor(width: int, size: int) -> float:
    """A reduction factor of which ``width // factor`` is ``size``."""
    exact = width / size
    factor = exact if int(width // exact) == size else width / (size + 0.5)
    return int(factor) if float(factor).is_integer() else factor
