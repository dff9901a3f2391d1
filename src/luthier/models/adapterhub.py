"""AdapterHub's layout: what ``save_adapter(..., use_safetensors=True)`` of its library writes, to and from PEFT's.

A folder holds ``adapter_config.json`` (``model_type``, ``hidden_size``, ``name``, ``config`` with the options of the method, ``version``) and
``adapter.safetensors``, whose names are those of the library's models: ``bert.encoder.layer.0.attention.self.query.loras.NAME.lora_A``,
``bert.encoder.layer.0.output.adapters.NAME.adapter_down.0.weight`` (adapter-hub/adapters 1.2, ``loading.py``, ``methods/``, ``models/*/mixin_*.py``).
LoRA and bottleneck adapters go both ways, tensor by tensor; what either side computes otherwise is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import DataError, MismatchError, UnsupportedError
from luthier.models.adapters import ADAPTER, ADAPTER_CONFIG, inner_of
from luthier.models.read_json import read_json
from luthier.models.weights import missing_weights, read_tensors, write_tensors

if TYPE_CHECKING:
    from luthier.models.load import LoadedModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter.safetensors"
VERSION = "adapters.1.2.0"
"""Whose layout is written."""

PREFIX = "base_model.model."
"""What PEFT writes before every name."""
USE_PEFT = "PEFT's layout can: --format peft"
_EARLIER = {"gelu": "gelu_new", "gelu_orig": "gelu"}
_SAFE = "have it saved with model.save_adapter(..., use_safetensors=True)"


@dataclass(frozen=True)
class Names:
    """Where the library puts things in one architecture. ``around``: the body's name in a model with a head; ``inside``: the same in the
    model that Luthier adapts; ``lora``: the library's key -> layer of a block.

    For each of its places of bottleneck adapters: ``bottleneck``, where in a block they are; ``outputs``, the layer whose output they read;
    ``inputs``, a module that is given the residual stream; ``norms``, the norm after the sum, in models that normalise there.
    """

    model_class: str
    around: str
    block: str
    lora: Mapping[str, str]
    bottleneck: Mapping[str, str]
    outputs: Mapping[str, str]
    inputs: Mapping[str, str]
    norms: Mapping[str, str] = field(default_factory=dict)
    inside: str = ""


def _bert(model_class: str, around: str) -> Names:
    lora = {name[0]: f"attention.self.{name}" for name in ("query", "key", "value")}
    return Names(
        model_class,
        around,
        "encoder.layer.",
        {**lora, "intermediate": "intermediate.dense", "output": "output.dense"},
        {"mh_adapter": "attention.output", "output_adapter": "output"},
        {"mh_adapter": "attention.output.dense", "output_adapter": "output.dense"},
        {"mh_adapter": "attention.self.query", "output_adapter": "intermediate.dense"},
        {"mh_adapter": "attention.output.LayerNorm", "output_adapter": "output.LayerNorm"},
    )


_BESIDE = {"mh_adapter": "attention_adapters", "output_adapter": "output_adapters"}


def _llama(model_class: str) -> Names:
    lora = {name: f"self_attn.{name}_proj" for name in ("q", "k", "v")}
    return Names(
        model_class,
        "model.",
        "layers.",
        # the library counts down_proj as "intermediate" and up_proj as "output" in these models (mixin_llama.py, mixin_mistral.py)
        {**lora, "intermediate": "mlp.down_proj", "output": "mlp.up_proj"},
        _BESIDE,
        {"mh_adapter": "self_attn.o_proj", "output_adapter": "mlp.down_proj"},
        {"mh_adapter": "input_layernorm", "output_adapter": "post_attention_layernorm"},
        inside="model.",
    )


NAMES: Mapping[str, Names] = {
    "bert": _bert("BertAdapterModel", "bert."),
    "roberta": _bert("RobertaAdapterModel", "roberta."),
    "xlm-roberta": _bert("XLMRobertaAdapterModel", "roberta."),
    "llama": _llama("LlamaAdapterModel"),
    "mistral": _llama("MistralAdapterModel"),
    # its fused query, key and value have a LoRA of their own there (LoRAMergedLinear), which PEFT lacks
    "gpt2": Names(
        "GPT2AdapterModel",
        "transformer.",
        "h.",
        {"intermediate": "mlp.c_fc", "output": "mlp.c_proj"},
        _BESIDE,
        {"mh_adapter": "attn.c_proj", "output_adapter": "mlp.c_proj"},
        {"mh_adapter": "ln_1", "output_adapter": "ln_2"},
        inside="transformer.",
    ),
}


@dataclass
class _Lora:
    """What PEFT says of a LoRA: rank and alpha over rank of every layer, by (block, library's key)."""

    ranks: dict[tuple[int, str], int] = field(default_factory=dict)
    scales: dict[tuple[int, str], float] = field(default_factory=dict)
    tensors: dict[str, Any] = field(default_factory=dict)


def read_adapterhub(folder: Path, sketch: LoadedModel) -> tuple[dict[str, Any], dict[str, Any]]:
    """PEFT's configuration and tensors of the adapter in ``folder``, for the model whose shapes are in ``sketch``.

    Raises DataError for damaged files, MismatchError for an adapter of another kind or width of model, UnsupportedError for pickled weights
    and for what PEFT and Luthier compute otherwise.
    """
    told = _read_config(folder)
    names = _names_of(sketch)
    config, name = told["config"], str(told["name"])
    text = _config_of(sketch)
    for key, own in (("model_type", text.model_type), ("hidden_size", text.hidden_size)):
        if told.get(key) not in (None, own):
            raise MismatchError(
                f"{folder}: was made for a model with {key} {told[key]}; {sketch.base.name} has {own}",
                hint="pull the model that it was made for, then this with --base NAME",
            )
    if not (folder / WEIGHTS).is_file():
        raise UnsupportedError(missing_weights(folder, WEIGHTS), hint=_SAFE)
    tensors = _inside(read_tensors(folder / WEIGHTS), names)
    kind = config.get("architecture")
    if kind == "lora":
        return _from_lora(folder, config, str(told.get("version", "")), name, tensors, names, text.num_hidden_layers)
    if kind is None:
        from luthier.models.adapterhub_bottleneck import from_bottleneck

        if "version" not in told:  # before versions were written, names of activations meant others (adapters/utils.py)
            config = config | {"non_linearity": _EARLIER.get(config["non_linearity"], config["non_linearity"])}
        return from_bottleneck(folder, config, name, tensors, names, text.num_hidden_layers)
    raise UnsupportedError(
        f"{folder}: AdapterHub's architecture {kind!r} cannot be taken over; lora and bottleneck adapters can"
    )


def write_adapterhub(adapter: Path, folder: Path, name: str, sketch: LoadedModel) -> None:
    """Write the PEFT adapter in ``adapter`` into ``folder`` as the library would save it under ``name``.

    Raises UnsupportedError that says what has no place in that layout.
    """
    names, text = _names_of(sketch), _config_of(sketch)
    config = read_json(adapter / ADAPTER_CONFIG)
    tensors = read_tensors(adapter / ADAPTER)
    inner_name = re.sub(r"\W", "_", name)  # a dot would be a step in the names of modules
    if config["peft_type"] == "LORA":
        told, out = _to_lora(config, tensors, names, inner_name, text.num_hidden_layers)
    else:
        from luthier.models.adapterhub_bottleneck import to_bottleneck

        told, out = to_bottleneck(config, tensors, names, inner_name, text)
    whole = {
        "config": told,
        "hidden_size": text.hidden_size,
        "model_class": names.model_class,
        "model_name": config.get("base_model_name_or_path"),
        "model_type": text.model_type,
        "name": inner_name,
        "version": VERSION,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(whole, indent=2, sort_keys=True), encoding="utf-8")
    write_tensors(folder / WEIGHTS, {names.around + key: tensor for key, tensor in out.items()})


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(told["config"], dict) or not told["name"]:
            raise TypeError("config must be a mapping and name a text")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: neither PEFT's nor AdapterHub's configuration of an adapter: {error}") from error
    return told  # type: ignore[no-any-return]


def _config_of(sketch: LoadedModel) -> Any:
    return inner_of(sketch).config


def _names_of(sketch: LoadedModel) -> Names:
    kind = _config_of(sketch).model_type
    if kind not in NAMES:
        raise UnsupportedError(
            f"AdapterHub's layout is known for {', '.join(NAMES)}; {sketch.base.name} is a {kind}",
            hint="use PEFT's: --format peft",
        )
    return NAMES[kind]


def _inside(tensors: Mapping[str, Any], names: Names) -> dict[str, Any]:
    """Names from the blocks on, whatever model with or without a head they were saved from."""
    return {key.removeprefix(names.around): tensor for key, tensor in tensors.items()}


def _from_lora(
    folder: Path, config: Mapping[str, Any], version: str, name: str, tensors: dict[str, Any], names: Names, blocks: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    for key, plain, why in (
        ("composition_mode", "add", "(IA)3 of that library rescales before the activation, PEFT's after it"),
        ("use_gating", False, "PEFT has no gates"),
        ("use_dora", False, "its norm leaves alpha out, PEFT's does not"),
        ("vera_d", None, "its vectors are full matrices"),
        ("vera_b", None, "its vectors are full matrices"),
    ):
        if config.get(key, plain) != plain:
            raise UnsupportedError(f"{folder}: a LoRA with {key}={config[key]!r} cannot be taken over: {why}")
    rank, alpha = int(config["r"]), float(config["alpha"])
    if version.startswith("adapters.") and _number(version) < (1, 1, 0):
        alpha = float(rank)  # those did not scale, whatever alpha says (adapter-hub/adapters, pull request 770)
    place = re.compile(rf"{re.escape(names.block)}(\d+)\.(.+)\.loras\.{re.escape(name)}\.lora_([AB])")
    known = set(names.lora.values())
    out, modules = {}, set()
    for key, tensor in tensors.items():
        match = place.fullmatch(key)
        if match is None or match[2] not in known or int(match[1]) >= blocks:
            raise UnsupportedError(f"{folder}: {key!r} is no LoRA that this model has a place for")
        module = f"{names.inside}{names.block}{match[1]}.{match[2]}"
        modules.add(module)
        out[f"{PREFIX}{module}.lora_{match[3]}.weight"] = tensor
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "lora_dropout": float(config.get("dropout", 0.0)),
        "target_modules": sorted(modules),
    }, out


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _to_lora(
    config: Mapping[str, Any], tensors: Mapping[str, Any], names: Names, name: str, blocks: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    from luthier.models.gguf import lora_scale

    for key, why in (
        ("use_dora", "AdapterHub's DoRA leaves alpha out of its norm"),
        ("modules_to_save", "it trains modules of the base whole"),
        ("lora_bias", "it has biases of its own"),
        ("layer_replication", "it repeats layers"),
    ):
        if config.get(key):
            raise UnsupportedError(
                f"AdapterHub's layout cannot hold a LoRA with {key}={config[key]!r}: {why}", hint=USE_PEFT
            )
    if config.get("bias", "none") != "none":
        raise UnsupportedError(f"AdapterHub's layout cannot hold a LoRA with bias={config['bias']!r}", hint=USE_PEFT)
    found = _Lora()
    keys = {layer: key for key, layer in names.lora.items()}
    place = re.compile(rf"{re.escape(PREFIX + names.inside + names.block)}(\d+)\.(.+)\.lora_([AB])\.weight")
    for key, tensor in tensors.items():
        match = place.fullmatch(key)
        if match is None or match[2] not in keys:
            raise UnsupportedError(
                f"AdapterHub's layout has no place for a LoRA at {key.removeprefix(PREFIX)}; in this model it has {', '.join(keys)}",
                hint=USE_PEFT,
            )
        at = int(match[1]), keys[match[2]]
        if match[3] == "A":
            found.ranks[at] = len(tensor)
            found.scales[at] = lora_scale(config, key.removeprefix(PREFIX).removesuffix(".lora_A.weight"), len(tensor))
        found.tensors[f"{names.block}{at[0]}.{match[2]}.loras.{name}.lora_{match[3]}"] = tensor
    return _lora_options(config, found, blocks), found.tensors


def _lora_options(config: Mapping[str, Any], found: _Lora, blocks: int) -> dict[str, Any]:
    """The library's options for the same layers: it has one rank and scale, and the same layers in every block that it does not leave out."""
    if len(set(found.ranks.values())) > 1 or len(set(found.scales.values())) > 1:
        raise UnsupportedError(
            "AdapterHub's layout has one rank and one alpha for all layers; this LoRA has several", hint=USE_PEFT
        )
    by_block: dict[int, set[str]] = {}
    for block, key in found.ranks:
        by_block.setdefault(block, set()).add(key)
    kinds = next(iter(by_block.values()))
    if any(each != kinds for each in by_block.values()):
        raise UnsupportedError(
            "AdapterHub's layout has the same layers in every block; this LoRA has others", hint=USE_PEFT
        )
    rank = next(iter(found.ranks.values()))
    alpha = next(iter(found.scales.values())) * rank
    attention = [key for key in ("q", "k", "v") if key in kinds]
    return {
        "alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "architecture": "lora",
        "attn_matrices": attention or ["q", "v"],
        "composition_mode": "add",
        "dropout": float(config.get("lora_dropout", 0.0)),
        "dtype": None,
        "init_weights": "lora",
        "init_weights_seed": None,
        "intermediate_lora": "intermediate" in kinds,
        "leave_out": [block for block in range(blocks) if block not in by_block],
        "output_lora": "output" in kinds,
        "r": rank,
        "selfattn_lora": bool(attention),
        "use_gating": False,
        "vera_b": None,
        "vera_d": None,
    }
