"""GGUF to Hugging Face layout, so that a model that came quantised can be trained like any other.

Only architectures whose weights map one to one are taken (the Llama family); everything in the file must find its place, or the
file is refused. The numbers are those that llama.cpp computes with, rounded to bf16: quantised weights carry fewer significant
bits than that, and torch and an exported GGUF then start from the very same values.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from luthier.core.errors import DataError, UnsupportedError
from luthier.core.run import Progress, no_progress
from luthier.models.gguf_tokenizer import build_tokenizer
from luthier.models.read_gguf import Gguf, read_header
from luthier.store.home import disk_errors, write_atomic

if TYPE_CHECKING:
    import torch

ARCHITECTURES: Mapping[str, str] = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
"""GGUF architecture -> transformers class."""

_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_IN_BLOCK = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")


def convert(path: Path, target: Path, progress: Progress = no_progress, *, stage: str = "convert") -> dict[str, Any]:
    """Write ``config.json``, ``model.safetensors`` and the tokenizer of a GGUF file into ``target``.

    Returns what is worth remembering: ``dtype``, ``quantization``, ``licence``. Raises DataError for a damaged file,
    UnsupportedError for an architecture, tokenizer or tensor that cannot be taken over exactly.
    """
    header = read_header(path)
    config = config_of(header)
    tokenizer = build_tokenizer(path, header.metadata)
    names = {name: hf_name(header, name) for name in header.tensors}
    _check_complete(header, config, names)
    dtype = _dtype(header)
    tensors: dict[str, torch.Tensor] = {}
    for done, (name, new) in enumerate(names.items()):
        progress(stage, done, len(names))
        tensors[new] = _tensor(header, name, config, dtype)
    from luthier.models.weights import write_tensors

    with disk_errors(target):
        write_tensors(target / "model.safetensors", tensors)
        write_atomic(target / "config.json", json.dumps(config | {"dtype": dtype}, indent=2, sort_keys=True))
        write_atomic(target / "generation_config.json", json.dumps(_generation(header.metadata), indent=2))
        tokenizer.save_pretrained(str(target))
    progress(stage, len(names), len(names))
    return {
        "dtype": dtype,
        "quantization": header.quantization,
        "licence": str(header.metadata.get("general.license", "")),
    }


def config_of(header: Gguf) -> dict[str, Any]:
    """The ``config.json`` of a GGUF header."""
    meta, name = header.metadata, str(header.metadata.get("general.architecture"))
    if name not in ARCHITECTURES:
        raise UnsupportedError(
            f"{header.path.name}: GGUF architecture must be one of {', '.join(ARCHITECTURES)}; got {name!r}",
            hint="pull the model in Hugging Face layout instead: hf:org/name or file:FOLDER",
        )
    scaling = meta.get(f"{name}.rope.scaling.type", "none")
    if scaling != "none" or "rope_freqs.weight" in header.tensors or f"{name}.expert_count" in meta:
        raise UnsupportedError(
            f"{header.path.name}: scaled positions and experts are not taken from GGUF files",
            hint="pull the model in Hugging Face layout instead: hf:org/name or file:FOLDER",
        )
    try:
        heads, width = int(meta[f"{name}.attention.head_count"]), int(meta[f"{name}.embedding_length"])
        config = {
            "architectures": [ARCHITECTURES[name]],
            "model_type": name,
            "vocab_size": header.tensors["token_embd.weight"].shape[0],
            "hidden_size": width,
            "intermediate_size": int(meta[f"{name}.feed_forward_length"]),
            "num_hidden_layers": int(meta[f"{name}.block_count"]),
            "num_attention_heads": heads,
            "num_key_value_heads": int(meta.get(f"{name}.attention.head_count_kv", heads)),
            "head_dim": int(meta.get(f"{name}.attention.key_length", width // heads)),
            "max_position_embeddings": int(meta[f"{name}.context_length"]),
            "rms_norm_eps": _single(meta[f"{name}.attention.layer_norm_rms_epsilon"]),
            "rope_parameters": {"rope_type": "default", "rope_theta": _single(meta.get(f"{name}.rope.freq_base", 1e4))},
            "hidden_act": "silu",
            "tie_word_embeddings": "output.weight" not in header.tensors,
        }
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise DataError(f"{header.path}: the GGUF header lacks or garbles {error}") from error
    if name == "llama":
        config["attention_bias"] = "blk.0.attn_q.bias" in header.tensors
        config["mlp_bias"] = "blk.0.ffn_up.bias" in header.tensors
    return config | _token_ids(meta)


def hf_name(header: Gguf, name: str) -> str:
    """The transformers name of a GGUF tensor of the Llama family. Raises UnsupportedError for one that has no place there."""
    if name in _TOP:
        return _TOP[name]
    match = _BLOCK.fullmatch(name)
    if match and match[2] in _IN_BLOCK:
        return f"model.layers.{match[1]}.{_IN_BLOCK[match[2]]}.{match[3]}"
    raise UnsupportedError(
        f"{header.path.name}: tensor {name!r} has no place in a {header.metadata.get('general.architecture')} model",
        hint="pull the model in Hugging Face layout instead: hf:org/name or file:FOLDER",
    )


def unpermuted(values: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Undo the row order of llama-architecture query and key weights in GGUF files.

    There, rotary pairs are neighbours (2i, 2i+1); in transformers they are half a head apart (i, i + head_dim / 2).
    """
    rows = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
    return np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(values.shape)


def _tensor(header: Gguf, name: str, config: Mapping[str, Any], dtype: str) -> torch.Tensor:
    import torch

    values = header.read(name)
    if config["model_type"] == "llama" and ".attn_q." in name:
        values = unpermuted(values, config["num_attention_heads"])
    elif config["model_type"] == "llama" and ".attn_k." in name:
        values = unpermuted(values, config["num_key_value_heads"])
    if not np.isfinite(values).all():
        raise DataError(f"{header.path}: tensor {name!r} holds values that are not numbers; the file is damaged")
    return torch.from_numpy(values).to(getattr(torch, dtype))


def _dtype(header: Gguf) -> str:
    """bfloat16 for quantised and bf16 files; files of whole floats keep what they have."""
    return {"F32": "float32", "F16": "float16"}.get(header.quantization, "bfloat16")


def _check_complete(header: Gguf, config: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """Hold names and shapes against the model that transformers would build from ``config``, without allocating it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    values = {key: value for key, value in config.items() if key != "model_type"}
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **values))
    wanted = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    if config["tie_word_embeddings"]:
        wanted.pop("lm_head.weight", None)
    has = {new: header.tensors[old].shape for old, new in names.items()}
    if has != wanted:
        different = sorted(key for key in {*has, *wanted} if has.get(key) != wanted.get(key))
        key = different[0]
        raise DataError(
            f"{header.path}: {len(different)} tensors do not fit the header, first {key!r}: "
            f"expected {wanted.get(key, 'none')}, got {has.get(key, 'none')}"
        )


def _single(value: Any) -> float:
    """The short decimal behind a float32: 1e-05 rather than 9.999999747378752e-06."""
    return float(f"{float(value):.7g}")


def _token_ids(meta: Mapping[str, Any]) -> dict[str, int]:
    keys = (("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding"))
    return {k: int(meta[f"tokenizer.ggml.{n}_token_id"]) for k, n in keys if f"tokenizer.ggml.{n}_token_id" in meta}


def _generation(meta: Mapping[str, Any]) -> dict[str, Any]:
    """``generation_config.json``: an answer ends at end-of-text and, where the file names one, at end-of-turn."""
    found: dict[str, Any] = dict(_token_ids(meta))
    turn = meta.get("tokenizer.ggml.eot_token_id")
    if turn is not None and turn != found.get("eos_token_id"):
        found["eos_token_id"] = [found["eos_token_id"], int(turn)] if "eos_token_id" in found else int(turn)
    return found
