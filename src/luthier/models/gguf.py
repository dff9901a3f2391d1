"""GGUF files, as llama.cpp reads them: whole decoders, LoRA adapters, and a check that a file is whole.

The format is ggml-org/ggml ``docs/gguf.md`` (version 3). Two things differ from a Hugging Face folder. Names are llama.cpp's
(``blk.3.attn_q.weight``). And for the ``llama`` architecture the rows of the query and key projections are reordered: Hugging Face
rotates dimension ``i`` of a head together with ``i + width / 2``, llama.cpp with ``i + 1``.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from luthier.core.errors import DataError, InputError, MismatchError, UnsupportedError
from luthier.core.run import Progress, no_progress
from luthier.models.read_gguf import Gguf, read_header

if TYPE_CHECKING:
    import gguf

    from luthier.models.load import LoadedModel

Array = npt.NDArray[Any]

TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1")
"""Tensor types that can be written. Vectors stay F32; in Q4 files the embeddings and the output layer are Q8_0."""

ARCHITECTURES: Mapping[str, str] = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
"""Hugging Face class -> llama.cpp architecture."""

_WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_IN_BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@dataclass(frozen=True)
class Shape:
    """What of a model's configuration decides how its tensors are named and ordered."""

    architecture: str
    heads: int
    kv_heads: int
    tied: bool

    @staticmethod
    def of(config: Mapping[str, Any]) -> Shape:
        """From ``config.json``. Raises UnsupportedError that names what llama.cpp would compute differently."""
        named = (config.get("architectures") or ["none"])[0]
        if named not in ARCHITECTURES:
            raise UnsupportedError(f"GGUF export knows {', '.join(ARCHITECTURES)}; this model is a {named}")
        if config.get("use_sliding_window", named == "MistralForCausalLM") and config.get("sliding_window"):
            raise UnsupportedError(f"GGUF export of a {named} with sliding_window is not supported")
        if config.get("hidden_act", "silu") not in ("silu", "swish"):
            raise UnsupportedError(
                f"GGUF export of a {named} with hidden_act={config['hidden_act']!r} is not supported"
            )
        heads = int(config["num_attention_heads"])
        tied = bool(config.get("tie_word_embeddings", False))
        return Shape(ARCHITECTURES[named], heads, int(config.get("num_key_value_heads") or heads), tied)

    def name(self, parameter: str) -> str | None:
        """llama.cpp's name of a Hugging Face parameter; None when there is no place for it."""
        module, _, kind = parameter.rpartition(".")
        if kind not in ("weight", "bias") or (module == "lm_head" and self.tied):
            return None
        if module in _WHOLE:
            return f"{_WHOLE[module]}.{kind}"
        block = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", module)
        if block is None or block[2] not in _IN_BLOCK:
            return None
        return f"blk.{block[1]}.{_IN_BLOCK[block[2]]}.{kind}"

    def reorder(self, name: str, rows: Array) -> Array:
        """Query and key rows in llama.cpp's order; anything else as it is. ``rows``: (outputs, ...)."""
        inner = name.split(".")[2] if name.startswith("blk.") else ""
        heads = {"attn_q": self.heads, "attn_k": self.kv_heads}.get(inner)
        if heads is None or self.architecture != "llama":
            return rows
        half = rows.shape[0] // heads // 2
        paired = rows.reshape(heads, 2, half, -1).swapaxes(1, 2)
        return np.ascontiguousarray(paired).reshape(rows.shape)


def export_base(model: LoadedModel, path: Path, type: str = "F16", *, progress: Progress = no_progress) -> None:  # noqa: A002
    """Write a decoder without adapters (base, merged or fully tuned) as one GGUF file, tensor by tensor.

    ``type`` is one of ``TYPES``. The file appears whole or not at all. Raises UnsupportedError for architectures, position
    encodings or tokenizers that llama.cpp computes otherwise, InputError for an unknown type, DataError for weights that are not
    finite in ``type``, StoreError when the disk refuses.
    """
    import gguf

    from luthier.models.gguf_vocabulary import Vocabulary

    if type not in TYPES:
        raise InputError(f"type must be one of {', '.join(TYPES)}; got {type!r}")
    if model.architecture != "decoder":
        raise UnsupportedError(f"GGUF export is for decoders; {model.record.name} is an {model.architecture}")
    config = model.module.config.to_dict()
    shape = Shape.of(config)
    vocabulary = Vocabulary.of(model.tokenizer, int(config["vocab_size"]), model.renderer)
    tensors = list(_tensors(model.module, shape))
    with _written(path, shape.architecture) as writer:
        _add_hyperparameters(writer, model, config, type)
        vocabulary.add_to(writer)
        kinds = [_tensor_type(name, value.shape, type) for name, value in tensors]
        for (name, value), kind in zip(tensors, kinds, strict=True):
            stored = gguf.quant_shape_to_byte_shape(tuple(value.shape), kind)
            writer.add_tensor_info(name, tuple(value.shape), np.dtype(np.float32), math.prod(stored), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for done, ((name, value), kind) in enumerate(zip(tensors, kinds, strict=True), 1):
            plain = shape.reorder(name, value.detach().to("cpu").float().numpy())
            writer.write_tensor_data(_quantized(name, plain, kind))
            progress(f"export {type}", done, len(tensors))


def export_lora(folder: Path, base_folder: Path, path: Path, *, name: str = "") -> None:
    """Write a LoRA adapter (PEFT's layout, in ``folder``) as a GGUF adapter for the base in ``base_folder``.

    llama.cpp scales by alpha / rank with one alpha for the file; what PEFT scales otherwise (rsLoRA, alpha and rank patterns) is
    folded into B. Raises UnsupportedError for what such a file cannot hold (DoRA, trained biases, embeddings or whole modules,
    other methods), DataError for damaged files.
    """
    from luthier.models.weights import read_tensors

    refuse_beyond_lora(folder)
    config, base = _read_json(folder / "adapter_config.json"), _read_json(base_folder / "config.json")
    shape = Shape.of(base)
    pairs: dict[str, dict[str, Array]] = {}
    for key, tensor in read_tensors(folder / "adapter_model.safetensors").items():
        match = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", key)
        target = shape.name(f"{match[1]}.weight") if match else None
        if match is None or target is None or target == "token_embd.weight":
            raise UnsupportedError(f"a LoRA GGUF cannot hold {key!r} of this base", hint=_MERGE)
        pairs.setdefault(match[1], {})[match[2]] = tensor.float().numpy()
    alpha = float(config["lora_alpha"])
    with _written(path, shape.architecture) as writer:
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", alpha)
        writer.add_name(name or folder.name)
        for module, pair in sorted(pairs.items()):
            if set(pair) != {"A", "B"} or pair["A"].shape[0] != pair["B"].shape[1]:
                raise DataError(f"{folder}: lora_A and lora_B of {module} do not belong together")
            target = f"{shape.name(f'{module}.weight')}"
            rank = pair["A"].shape[0]
            folded = lora_scale(config, module, rank) * rank / alpha if alpha else 0.0
            rows = shape.reorder(target, pair["B"] * np.float32(folded))
            writer.add_tensor(f"{target}.lora_a", np.ascontiguousarray(pair["A"]))
            writer.add_tensor(f"{target}.lora_b", np.ascontiguousarray(rows))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()


_MERGE = "fold it into the weights instead: luthier export NAME --merge"


def refuse_beyond_lora(folder: Path) -> None:
    """Raise UnsupportedError, naming the reason, unless the PEFT adapter in ``folder`` is one that a LoRA GGUF can hold."""
    if not (folder / "adapter_config.json").exists():
        raise UnsupportedError(f"{folder}: holds no PEFT adapter", hint=_MERGE)
    if (folder / "luthier.json").exists() and (held := _read_json(folder / "luthier.json").get("quantization")):
        raise UnsupportedError(
            f"a LoRA GGUF goes on the plain base; this adapter was trained on it in {held.get('kind')}", hint=_MERGE
        )
    config = _read_json(folder / "adapter_config.json")
    if config.get("peft_type") != "LORA":
        raise UnsupportedError(f"a LoRA GGUF needs a LoRA adapter; got {config.get('peft_type')}", hint=_MERGE)
    embeds = {"embed_tokens", "lm_head"} & set(config.get("target_modules") or ())
    bias = config.get("bias", "none")
    for key, bad in {
        "use_dora": config.get("use_dora"),
        "bias": bias if bias != "none" else None,
        "lora_bias": config.get("lora_bias"),
        "fan_in_fan_out": config.get("fan_in_fan_out"),
        "modules_to_save": config.get("modules_to_save"),
        "target_modules": sorted(embeds),
        "layer_replication": config.get("layer_replication"),
    }.items():
        if bad:
            raise UnsupportedError(f"a LoRA GGUF cannot hold an adapter with {key}={bad!r}", hint=_MERGE)


def lora_scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """What PEFT multiplies B A x with: alpha / rank, or alpha / sqrt(rank) with rsLoRA (Kalajdzievski 2023)."""
    alpha = config["lora_alpha"]
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", module):
            alpha = value
            break
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _tensors(module: Any, shape: Shape) -> Iterator[tuple[str, Any]]:
    """(llama.cpp name, tensor) of every parameter, in the module's order; then the frequency factors, when there are any."""
    for parameter, value in module.state_dict().items():
        name = shape.name(parameter)
        if name is not None:
            yield name, value
        elif not (parameter == "lm_head.weight" and shape.tied):
            raise UnsupportedError(f"GGUF export has no place for the parameter {parameter!r}")
    factors = _frequency_factors(module, shape)
    if factors is not None:
        yield "rope_freqs.weight", factors


def _frequency_factors(module: Any, shape: Shape) -> Any:
    """By what each rotation frequency is divided against plain RoPE, float32 of half a head's width; None for plain RoPE."""
    import torch

    rope = module.config.rope_parameters
    kind = rope.get("rope_type", "default")
    if kind == "default":
        return None
    if kind not in ("linear", "llama3") or shape.architecture != "llama":
        raise UnsupportedError(f"GGUF export of {shape.architecture} with rope_type {kind!r} is not supported")
    used = module.model.rotary_emb.inv_freq.detach().to("cpu").float()
    exponent = torch.arange(0, len(used), dtype=torch.float32) / len(used)
    return 1.0 / rope["rope_theta"] ** exponent / used


def _tensor_type(name: str, size: tuple[int, ...], type: str) -> gguf.GGMLQuantizationType:  # noqa: A002
    import gguf

    kinds = gguf.GGMLQuantizationType
    if len(size) == 1:
        return kinds.F32
    if type.startswith("Q4") and name in ("token_embd.weight", "output.weight"):
        type = "Q8_0"  # noqa: A001
    kind = kinds[type]
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    return kind if size[-1] % block == 0 else kinds.F16


def _quantized(name: str, values: Array, kind: gguf.GGMLQuantizationType) -> Array:
    from gguf.quants import quantize

    with np.errstate(over="ignore"):  # seen and said below
        stored: Array = quantize(np.ascontiguousarray(values, dtype=np.float32), kind)
    if not np.isfinite(stored if stored.dtype == np.float16 else values).all():
        raise DataError(
            f"{name} holds values that are not finite in {kind.name}",
            hint="export with --type BF16, which has the range of F32",
        )
    return stored


def _add_hyperparameters(writer: gguf.GGUFWriter, model: LoadedModel, config: Mapping[str, Any], type: str) -> None:  # noqa: A002
    import gguf

    heads, width = int(config["num_attention_heads"]), int(config["hidden_size"])
    per_head = int(config.get("head_dim") or width // heads)
    writer.add_type("model")
    writer.add_name(model.record.name)
    if model.base.licence != "unknown":
        writer.add_license(model.base.licence)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if type == "F32" else f"MOSTLY_{type}"])
    writer.add_vocab_size(int(config["vocab_size"]))
    writer.add_context_length(int(config["max_position_embeddings"]))
    writer.add_embedding_length(width)
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(heads)
    writer.add_head_count_kv(int(config.get("num_key_value_heads") or heads))
    writer.add_key_length(per_head)
    writer.add_value_length(per_head)
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    writer.add_rope_dimension_count(per_head)
    writer.add_rope_freq_base(float(model.module.config.rope_parameters["rope_theta"]))


@contextmanager
def _written(path: Path, architecture: str) -> Iterator[gguf.GGUFWriter]:
    """A writer whose file takes its name only when the block ends well."""
    import gguf

    from luthier.store.home import disk_errors, sync_folder

    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with disk_errors(path):
            writer = gguf.GGUFWriter(aside, architecture)
            try:
                yield writer
                for file in writer.fout or ():
                    file.flush()
                    os.fsync(file.fileno())
            finally:
                writer.close()
            aside.replace(path)
            sync_folder(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def check_gguf(path: Path, *, holds: str = "model") -> Gguf:
    """Check the head of a GGUF file, that every tensor lies inside the file, and that it holds a ``model`` or an ``adapter``.

    Takes a tenth of a second, so that llama.cpp never sees a damaged file. Raises DataError that says what is wrong.
    """
    header = read_header(path)
    found = header.metadata.get("general.type", "model")
    if found != holds or (holds == "model" and "token_embd.weight" not in header.tensors):
        raise DataError(f"{path}: expected a GGUF {holds}; it holds {found!r} with {len(header.tensors)} tensors")
    return header


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise MismatchError(f"{path}: expected a JSON object; got {type(data).__name__}")
    return data
