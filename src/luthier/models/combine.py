"""New models out of tuned ones: an adapter merged into a base model of its own, and several LoRA or (IA)3 adapters made one.

A combination is the weighted sum of the updates, sum_i w_i s_i B_i A_i for each layer. ``cat`` puts the factors side by side: exact, the
ranks add up; PEFT's ``add_weighted_adapter`` does it. ``svd`` keeps the sum's largest singular directions: the best approximation of
that rank (Eckart and Young 1936), and exact where the rank suffices. It is found from the factors: SmolLM2-135M takes two seconds where
PEFT, which decomposes the full matrices, takes over a minute.

(IA)3 adapters rescale rows and columns, W diag(l): the weighted sum of their updates is the one vector 1 + sum_i w_i (l_i - 1), exact.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from luthier.core.errors import InputError, MismatchError, UnsupportedError
from luthier.core.model import ModelRecord
from luthier.core.run import Progress, no_progress
from luthier.models.inspect_adapter import tuned_record
from luthier.models.read_json import read_json

if TYPE_CHECKING:
    import torch

    from luthier.models.load import LoadedModel
    from luthier.store.database import Store

HOW = ("cat", "svd")
_DTYPES = {"F32": "fp32", "BF16": "bf16", "F16": "fp16"}
_KEPT = ("template_digest", "context_length", "parameters", "dtype")


def merge_into_base(
    store: Store, name: str, new: str | None = None, *, progress: Progress = no_progress
) -> ModelRecord:
    """Write the base with the tuned model ``name`` folded in as a base model of its own, ``new`` (left out: ``NAME-merged``).

    The sum is computed in fp32 and rounded once to the dtype of the base's files. An encoder's head is not part of a base. Raises
    UnsupportedError for methods that cannot be merged, ConflictError when the name is taken.
    """
    from luthier.models.load import load_model
    from luthier.models.merge import merge, require_mergeable
    from luthier.store.models import check_name, find

    record = tuned_record(store, name)
    require_mergeable(record)
    made = check_name(new or f"{name}-merged")
    _require_free(store, made)
    root = record
    while root.kind != "base" and root.base:
        root = find(store, root.base)
    dtype = _file_dtype(store, root)
    progress("merge", 0, 3)
    model = load_model(store, record, dtype=dtype, device="cpu")
    model = merge(model)
    progress("merge", 1, 3)
    meta = {key: root.meta[key] for key in _KEPT if key in root.meta} | {"source": f"merged:{name}"}
    progress("merge", 2, 3)
    base = register_base(store, model, record, made, "merged into", meta)
    progress("merge", 3, 3)
    return base


def register_base(
    store: Store, model: LoadedModel, of: ModelRecord, name: str, relation: str, meta: Mapping[str, Any]
) -> ModelRecord:
    """Write ``model``, without an encoder's head, as the base model ``name``; ``relation`` is lineage's word for how it came from ``of``."""
    from luthier.models.attach import MANIFEST, save_trained
    from luthier.store.artifacts import put, staged
    from luthier.store.lineage import Node, record_edge
    from luthier.store.models import register

    if model.architecture == "encoder":
        model.module.head = None
        model.labels = ()
    with staged(store) as folder:
        save_trained(model, folder, {"saves": "weights"})
        (folder / MANIFEST).unlink()  # a base has no manifest
        digest, size = put(store, folder)
    record = ModelRecord(name, "base", of.architecture, digest, size, licence=of.licence, meta=dict(meta))
    made = register(store, record)
    record_edge(store, Node("model", of.name), relation, Node("model", name))
    return made


def combine(
    store: Store,
    names: Sequence[str],
    new: str,
    *,
    weights: Sequence[float] | None = None,
    how: Literal["cat", "svd"] = "cat",
    rank: int | None = None,
    progress: Progress = no_progress,
) -> ModelRecord:
    """Register ``new``, the weighted sum of the LoRA (or of the (IA)3) adapters ``names`` of one base. Left out, all weights are 1 / their number.

    ``rank`` of an svd; left out, the largest of the adapters'. Encoders' heads are averaged with the same weights (over their sum) when their
    labels are equal. Raises InputError for less than two names, a wrong number of weights or a weight that is no number, MismatchError for
    adapters of different bases, templates or labels, UnsupportedError for what is no sum, ConflictError when the name is taken.
    """
    from luthier.models.attach import read_manifest
    from luthier.store.artifacts import path_of
    from luthier.store.models import check_name, find

    check_name(new)
    _require_free(store, new)
    given = _weights(names, weights, how, rank)
    records = [tuned_record(store, name) for name in names]
    folders = [path_of(store, record.digest) for record in records]
    manifests = [read_manifest(folder) for folder in folders]
    configs = [_config(folder, manifest) for folder, manifest in zip(folders, manifests, strict=True)]
    rescaled = all(config.get("peft_type") == "IA3" for config in configs)
    if rescaled and how == "svd":
        raise InputError("how svd cuts ranks, and (IA)3 adapters have none; leave it out: their sum is exact")
    for record, config in zip(records, configs, strict=True):
        if not rescaled or config.get("modules_to_save"):
            _require_lora(record, config)
    _require_alike(names, manifests)
    base = find(store, records[0].base or manifests[0]["base"]["name"])
    if rescaled:
        return _rescaled(store, base, records, manifests, configs, folders, new, given, progress)
    return _combined(store, base, records, manifests, new, given, how, rank, progress)


def _weights(names: Sequence[str], weights: Sequence[float] | None, how: str, rank: int | None) -> list[float]:
    if len(names) < 2:
        raise InputError(f"combine takes two adapters or more; got {len(names)}")
    if len(set(names)) < len(names):
        raise InputError(
            f"combine takes each adapter once; got {', '.join(names)}", hint="give it a larger weight instead"
        )
    if how not in HOW:
        raise InputError(f"how must be {' or '.join(HOW)}; got {how!r}")
    if rank is not None and (how != "svd" or rank < 1):
        raise InputError(f"rank must be at least 1 and goes with svd; got {rank} with {how}")
    found = [1.0 / len(names)] * len(names) if weights is None else [float(weight) for weight in weights]
    if len(found) != len(names):
        raise InputError(f"weights must be one for each of the {len(names)} adapters; got {len(found)}")
    if not all(math.isfinite(weight) for weight in found) or not any(found):
        raise InputError(f"weights must be finite numbers, not all of them 0; got {', '.join(map(str, found))}")
    return found


def _require_free(store: Store, name: str) -> None:
    from luthier.core.errors import ConflictError
    from luthier.store.models import list_models

    taken = {record.name: record.kind for record in list_models(store)}
    if name in taken:
        raise ConflictError(
            f"the name {name!r} is taken by another {taken[name]}", hint="choose another name: --as NAME"
        )


def _config(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """PEFT's configuration of an adapter, {} of anything else."""
    if manifest["saves"] != "adapter":
        return {}
    from luthier.models.adapters import ADAPTER_CONFIG

    return read_json(folder / ADAPTER_CONFIG)


def _require_lora(record: ModelRecord, config: Mapping[str, Any]) -> None:
    from luthier.models.merge import require_mergeable

    problem = ""
    if config.get("peft_type") != "LORA":
        problem = f"was made by {record.meta.get('method') or record.meta.get('saves')}"
    elif config.get("use_dora"):
        problem = "has magnitudes of its own (DoRA), which are not a sum"
    elif config.get("modules_to_save") or config.get("bias", "none") != "none" or config.get("lora_bias"):
        problem = "trained weights of the base too"
    if not problem:
        return
    hint = f"make a base of it instead: luthier adapters merge {record.name}"
    try:
        require_mergeable(record)
    except UnsupportedError:
        hint = "adapters between layers are combined by training: luthier tune RUN.yaml method=adapter_fusion"
        if config.get("peft_type") != "BOTTLENECK":
            hint = "serve them side by side and choose with each request: luthier serve NAME NAME"
    raise UnsupportedError(f"combine adds up LoRA adapters, or (IA)3 adapters; {record.name} {problem}", hint=hint)


def _require_alike(names: Sequence[str], manifests: Sequence[Mapping[str, Any]]) -> None:
    first = manifests[0]
    for name, manifest in zip(names[1:], manifests[1:], strict=True):
        if manifest["base"]["digest"] != first["base"]["digest"]:
            raise MismatchError(
                f"{names[0]} was trained on {first['base']['name']} ({first['base']['digest'][:12]}), {name} on "
                f"{manifest['base']['name']} ({manifest['base']['digest'][:12]}); adapters of one base can be combined"
            )
        if manifest.get("quantization") != first.get("quantization"):
            raise MismatchError(
                f"{names[0]} and {name} were trained on the base in different forms (plain, or in 4 bits)"
            )
        if manifest.get("template_digest") != first.get("template_digest"):
            raise MismatchError(f"{names[0]} and {name} were trained with different chat templates")
        if first["architecture"] == "encoder" and list(manifest.get("labels") or ()) != list(first.get("labels") or ()):
            raise MismatchError(
                f"{names[0]} tells {', '.join(first.get('labels') or ['nothing'])} apart, {name} "
                f"{', '.join(manifest.get('labels') or ['nothing'])}; encoders are combined when their labels are the same"
            )


def _rescaled(
    store: Store,
    base: ModelRecord,
    records: Sequence[ModelRecord],
    manifests: Sequence[Mapping[str, Any]],
    configs: Sequence[Mapping[str, Any]],
    folders: Sequence[Path],
    new: str,
    weights: list[float],
    progress: Progress,
) -> ModelRecord:
    from luthier.models.adapters import ADAPTER, ADAPTER_CONFIG
    from luthier.models.attach import HEAD, MANIFEST
    from luthier.models.weights import read_tensors, write_tensors
    from luthier.store.artifacts import put, staged

    progress("combine", 0, 2)
    names = [record.name for record in records]
    total = _sum_of_vectors(names, [read_tensors(folder / ADAPTER) for folder in folders], weights)
    told = {**configs[0]}
    for key in ("target_modules", "feedforward_modules"):
        told[key] = sorted({name for config in configs for name in config.get(key) or ()})
    said = {"names": names, "weights": weights, "how": "sum", "rank": None}
    prompt = _shared_prompt(manifests)
    manifest = {**manifests[0], "prompt": prompt, "method": {"name": "ia3", "config": said}, "run_id": None}
    with staged(store) as folder:
        (folder / ADAPTER_CONFIG).write_text(json.dumps(told, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        write_tensors(folder / ADAPTER, total)
        if all((each / HEAD).exists() for each in folders):
            write_tensors(folder / HEAD, _mean([read_tensors(each / HEAD) for each in folders], weights))
        text = json.dumps(manifest, indent=2, ensure_ascii=False, sort_keys=True)
        (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
        stored = put(store, folder)
    progress("combine", 1, 2)
    made = _register_sum(store, base, records, new, stored, manifest, sum(tensor.numel() for tensor in total.values()))
    progress("combine", 2, 2)
    return made


def _sum_of_vectors(
    names: Sequence[str], found: Sequence[Mapping[str, torch.Tensor]], weights: Sequence[float]
) -> dict[str, torch.Tensor]:
    """The sum of (IA)3 adapters: a layer that one of them leaves alone has the vector of ones there."""
    import torch

    shapes = {key: tensor.shape for tensors in found for key, tensor in tensors.items()}
    total: dict[str, torch.Tensor] = {}
    for key, shape in shapes.items():
        own = [tensors[key] for tensors in found if key in tensors]
        if any(tensor.shape != shape for tensor in own):
            raise MismatchError(
                f"{key} rescales the inputs of a layer in one of {', '.join(names)} and the outputs in another"
            )
        vectors = (tensors.get(key, torch.ones(shape)).float() for tensors in found)
        moved = sum(weight * (vector - 1.0) for weight, vector in zip(weights, vectors, strict=True))
        total[key] = (1.0 + moved).to(own[0].dtype)  # type: ignore[union-attr]
    return total


def _shared_prompt(manifests: Sequence[Mapping[str, Any]]) -> Any:
    """The prompt that all were tuned with; None when they were tuned with different ones."""
    prompts = [manifest.get("prompt") for manifest in manifests]
    return prompts[0] if all(each == prompts[0] for each in prompts) else None


def _register_sum(
    store: Store,
    base: ModelRecord,
    records: Sequence[ModelRecord],
    new: str,
    stored: tuple[str, int],
    manifest: Mapping[str, Any],
    parameters: int,
) -> ModelRecord:
    """Register the combination of ``records`` whose files are ``stored``, (digest, size), with lineage."""
    from luthier.store.lineage import Node, record_edge
    from luthier.store.models import register

    meta = {
        **records[0].meta,
        "method": manifest["method"]["name"],
        "saves": "adapter",
        "prompt": manifest["prompt"],
        "combined": manifest["method"]["config"],
        "trainable_parameters": parameters,
    }
    record = ModelRecord(new, "adapter", base.architecture, *stored, licence=base.licence, base=base.name, meta=meta)
    made = register(store, record)
    for each in records:
        record_edge(store, Node("model", each.name), "combined into", Node("model", new))
    return made


def _combined(
    store: Store,
    base: ModelRecord,
    records: Sequence[ModelRecord],
    manifests: Sequence[Mapping[str, Any]],
    new: str,
    weights: list[float],
    how: str,
    rank: int | None,
    progress: Progress,
) -> ModelRecord:
    from luthier.models.attach import attach, load_base, quantization_of, save_trained
    from luthier.store.artifacts import put, staged

    progress("combine", 0, 3)
    quantization = quantization_of(manifests[0])
    model = load_base(store, base, dtype="fp32", device="cpu", quantization=quantization)
    for record in records:
        attach(model, record, record.name, store=store)
    held = [model.attached[record.name] for record in records]
    progress("combine", 1, 3)
    config = _add(model, held, weights, how, rank)
    if held[0].head is not None:
        model.module.head, model.labels = _mean_head([each.head for each in held], weights), held[0].labels
    said = {"names": [r.name for r in records], "weights": weights, "how": how, "rank": config.r}
    manifest = {
        "saves": "adapter",
        "prompt": _shared_prompt(manifests),
        "method": {"name": "lora", "config": said},
        "objective": manifests[0].get("objective"),
    }
    with staged(store) as folder:
        save_trained(model, folder, manifest)
        stored = put(store, folder)
        progress("combine", 2, 3)
    parameters = sum(p.numel() for key, p in held[0].peft_model.named_parameters() if f".{_NEW}." in key)
    made = _register_sum(store, base, records, new, stored, manifest, parameters)
    progress("combine", 3, 3)
    return made


_NEW = "combined"


def _add(model: LoadedModel, held: Sequence[Any], weights: list[float], how: str, rank: int | None) -> Any:
    """Put the combination into the PEFT model as its active adapter; returns its config."""
    peft = held[0].peft_model
    configs = [peft.peft_config[each.peft_name] for each in held]
    ranks = [max(config.r, *config.rank_pattern.values()) if config.rank_pattern else config.r for config in configs]
    smallest = min(min(layer.in_features, layer.out_features) for layer in peft.modules() if hasattr(layer, "lora_A"))
    if rank is not None and rank > smallest:
        raise InputError(f"rank must be at most {smallest}, the smallest side of an adapted layer; got {rank}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT on initialisations that are overwritten at once
        peft.base_model.add_weighted_adapter([each.peft_name for each in held], weights, _NEW, combination_type="cat")
    peft.set_adapter(_NEW)
    config = peft.peft_config[_NEW]
    # the factors hold the scales already: alpha = rank, and so plain scaling, whatever the adapters had
    if how == "svd":
        config.r = min(rank or max(ranks), smallest, config.r)
        for layer in peft.modules():
            if _NEW in getattr(layer, "lora_A", {}):
                _cut(layer.lora_A[_NEW], layer.lora_B[_NEW], config.r)
    config.use_rslora, config.lora_alpha = False, config.r
    model.selected = None
    return config


def _cut(a: Any, b: Any, rank: int) -> None:
    """Replace the factors of B A by those of its best approximation of ``rank``, without ever forming B A.

    With B = Q R and A^T = P S, the singular values of B A are those of the small R S^T, its directions Q U and P V.
    """
    import torch

    with torch.no_grad():
        (q, r), (p, s) = torch.linalg.qr(b.weight), torch.linalg.qr(a.weight.t())
        u, values, v = torch.linalg.svd(r @ s.t(), full_matrices=False)
        root = values[:rank].sqrt()
        a.weight = torch.nn.Parameter((root[:, None] * v[:rank]) @ p.t())
        b.weight = torch.nn.Parameter((q @ u[:, :rank]) * root)


def _mean_head(heads: Sequence[Any], weights: Sequence[float]) -> Any:
    """The heads' average by ``weights`` over their sum; by equal weights where these sum to 0."""
    import copy

    import torch

    made = copy.deepcopy(heads[0])
    means = _mean([dict(head.named_parameters()) for head in heads], weights)
    with torch.no_grad():
        for key, parameter in made.named_parameters():
            parameter.copy_(means[key])
    return made


def _mean(heads: Sequence[Mapping[str, Any]], weights: Sequence[float]) -> dict[str, Any]:
    import torch

    total = sum(weights)
    shares = [weight / total for weight in weights] if total else [1.0 / len(heads)] * len(heads)
    return {
        key: torch.stack([share * head[key].detach() for share, head in zip(shares, heads, strict=True)]).sum(0)
        for key in heads[0]
    }


def _file_dtype(store: Store, base: ModelRecord) -> str:
    """The dtype that most of a base's weights are stored in, fp32 where this machine cannot load it."""
    from luthier.models.weights import dtypes
    from luthier.store.artifacts import path_of

    sizes = dtypes(path_of(store, base.digest))
    found = _DTYPES.get(max(sizes, key=lambda kind: sizes[kind]), "fp32") if sizes else "fp32"
    return "fp32" if found == "fp16" else found
