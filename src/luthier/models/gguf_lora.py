"""A LoRA file of llama.cpp as a PEFT adapter: the inverse of ``models.gguf.export_lora``.

The file holds, for each adapted matrix, ``NAME.lora_a`` (rank x inputs) and ``NAME.lora_b`` (outputs x rank) and one ``adapter.lora.alpha``
(ggml-org/llama.cpp, ``src/llama-adapter.cpp``): W x + (alpha / rank) B A x, with factor 1 where alpha is 0. For the ``llama`` architecture the rows of B
of query and key are in llama.cpp's order and are put back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luthier.core.errors import DataError, MismatchError, UnsupportedError
from luthier.models.adapterhub import PREFIX
from luthier.models.convert import hf_name, unpermuted
from luthier.models.gguf import Shape, check_gguf
from luthier.models.read_gguf import Gguf

_PART = re.compile(r"(?P<weight>.+\.weight)\.lora_(?P<part>[ab])")


def read_lora(path: Path, base: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """PEFT's configuration and tensors (fp32) of the LoRA file at ``path``, for a base with the ``config.json`` ``base``.

    Raises DataError for a damaged file, UnsupportedError for an adapter that is no LoRA or goes into embeddings, MismatchError for one of
    another architecture.
    """
    import torch

    header = check_gguf(path, holds="adapter")
    shape = Shape.of(base)
    architecture = header.metadata.get("general.architecture")
    if architecture != shape.architecture:
        raise MismatchError(
            f"{path}: is for a model of llama.cpp's architecture {architecture}; got {shape.architecture}"
        )
    kind = header.metadata.get("adapter.type", "lora")
    if kind != "lora":
        raise UnsupportedError(f"{path}: a GGUF adapter of type {kind!r} is not known; lora is")
    pairs = _pairs(header)
    alpha = float(header.metadata.get("adapter.lora.alpha", 0.0))
    heads = {"attn_q": shape.heads, "attn_k": shape.kv_heads} if shape.architecture == "llama" else {}
    tensors: dict[str, Any] = {}
    ranks: dict[str, int] = {}
    for weight, parts in pairs.items():
        module = hf_name(header, weight).removesuffix(".weight")
        a, b = header.read(parts["a"]), header.read(parts["b"])
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
            raise DataError(f"{path}: lora_a and lora_b of {weight} do not belong together: {a.shape} and {b.shape}")
        inner = weight.split(".")[2]
        if inner in heads:
            if b.shape[0] % (2 * heads[inner]):
                raise MismatchError(f"{path}: {weight} has {b.shape[0]} rows, which are not {heads[inner]} heads")
            b = unpermuted(b, heads[inner])
        ranks[module] = a.shape[0]
        tensors[f"{PREFIX}{module}.lora_A.weight"] = torch.from_numpy(a)
        tensors[f"{PREFIX}{module}.lora_B.weight"] = torch.from_numpy(b)
    return _config(ranks, alpha), tensors


def _pairs(header: Gguf) -> dict[str, dict[str, str]]:
    """Weight -> part -> tensor's name."""
    pairs: dict[str, dict[str, str]] = {}
    for name in header.tensors:
        match = _PART.fullmatch(name)
        if match is None or not match["weight"].startswith("blk."):
            raise UnsupportedError(
                f"{header.path}: holds {name!r}, which is not a factor of a layer's weight",
                hint="get the adapter in PEFT's layout instead",
            )
        pairs.setdefault(match["weight"], {})[match["part"]] = name
    for weight, parts in pairs.items():
        if set(parts) != {"a", "b"}:
            raise DataError(f"{header.path}: {weight} has lora_{' and lora_'.join(parts)} alone")
    if not pairs:
        raise DataError(f"{header.path}: holds no tensors")
    return pairs


def _config(ranks: Mapping[str, int], alpha: float) -> dict[str, Any]:
    rank = max(ranks.values())
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha or float(rank),
        "target_modules": sorted(ranks),
        "rank_pattern": {f"^{re.escape(name)}": own for name, own in ranks.items() if own != rank},
        "alpha_pattern": {}
        if alpha
        else {f"^{re.escape(name)}": float(own) for name, own in ranks.items() if own != rank},
    }
