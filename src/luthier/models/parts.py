"""Adapters that other adapters are built on: a fusion of several, a task's adapter on a language's.

The file of what is built on them holds only what was trained; its PEFT configuration lists the ``parts`` by the digest of their files,
and they are put in when it is loaded. The store refuses to remove a part that something is built on.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import (
    ConflictError,
    DataError,
    InputError,
    MismatchError,
    NotFoundError,
    StoreError,
    UnsupportedError,
)
from luthier.core.model import ModelRecord

if TYPE_CHECKING:
    from luthier.models.load import LoadedModel
    from luthier.store.database import Store

COPIED = ("size", "activation", "norm", "scale", "learn_scale")
"""What a part's configuration says of how it computes."""
PLACED = ("target_modules", "placement", "sources", "places", "invertible", "embeddings", "inverse")
"""What it says of where it is; ``places`` are the layers that its file has tensors for."""
STACKABLE = ("ADAPTER_STACK", "BOTTLENECK")
"""PEFT types of what an adapter can be trained on."""
_INSIDE, _PREFIX = ".bottleneck_adapters.", "base_model.model."


def find_parts(
    store: Store, base: ModelRecord, names: Sequence[str], kinds: Collection[str], *, where: str
) -> list[dict[str, Any]]:
    """What ``parts`` says of the tuned models ``names``: their ``name`` and ``digest``, ``COPIED`` and ``PLACED``.

    ``kinds`` are PEFT types. Raises InputError for one name twice, NotFoundError with near names, MismatchError for an adapter of another
    base, UnsupportedError for what cannot be a part; ``where`` names the option.
    """
    if len(set(names)) < len(names):
        raise InputError(f"{where} must name each adapter once; got {', '.join(names)}")
    return [_part(store, base, name, kinds, where) for name in names]


def _part(store: Store, base: ModelRecord, name: str, kinds: Collection[str], where: str) -> dict[str, Any]:
    from luthier.models.adapters import read_config
    from luthier.models.attach import read_manifest
    from luthier.models.inspect_adapter import tuned_record
    from luthier.store.artifacts import path_of

    record = tuned_record(store, name)
    folder = path_of(store, record.digest)
    manifest = read_manifest(folder)
    method = (manifest.get("method") or {}).get("name") or manifest["saves"]
    if manifest["saves"] != "adapter" or (config := read_config(folder)).peft_type not in kinds:
        raise UnsupportedError(f"{where} must name {_named(kinds)}; {name} was made by {method}")
    if manifest["base"]["digest"] != base.digest:
        raise MismatchError(
            f"{where}: {name} was trained on {manifest['base']['name']} with digest {manifest['base']['digest'][:12]}; "
            f"this is {base.name} with digest {base.digest[:12]}",
            hint=f"train one on this base, or choose that one: model.base={manifest['base']['name']}",
        )
    if getattr(config, "norms", None):
        raise UnsupportedError(
            f"{where}: {name} trained the norms of its base too, which several adapters cannot share",
            hint="train it with method.train_norms=false, or by pfeiffer_adapter",
        )
    if getattr(config, "hypercomplex", 0) or getattr(config, "parts", None):
        what = "is built on another adapter itself" if config.parts else "has hypercomplex layers (compacter)"
        raise UnsupportedError(f"{where} must name {_named(kinds)}; {name} {what}")
    found = {key: getattr(config, key) for key in (*COPIED, *PLACED) if hasattr(config, key)}
    return {"name": name, "digest": record.digest, **found, "places": places_of(folder)}


def places_of(folder: Path) -> list[str]:
    """The layers that the bottlenecks of an adapter's file belong to."""
    from luthier.models.adapters import ADAPTER
    from luthier.models.weights import check_file

    keys = [key.partition(_INSIDE)[0] for key in check_file(folder / ADAPTER) if _INSIDE in key]
    return sorted({key.removeprefix(_PREFIX) for key in keys})


def _named(kinds: Collection[str]) -> str:
    said = {
        "BOTTLENECK": "pfeiffer_adapter, adapter or parallel_adapter",
        "ADAPTER_STACK": "language_adapter",
    }
    return "models tuned by " + " or ".join(said[kind] for kind in kinds)


def placed(parts: Sequence[Mapping[str, Any]], *, where: str) -> dict[str, Any]:
    """Where all ``parts`` are. Raises MismatchError when they are not in the same places."""
    for other in parts[1:]:
        require_same_places(other, parts[0], where=where)
    return {key: parts[0][key] for key in ("target_modules", "placement", "sources")}


def require_same_places(part: Mapping[str, Any], other: Mapping[str, Any], *, where: str) -> None:
    """Raise MismatchError unless both are in the same layers, in the same way."""
    for key in ("placement", "places"):
        if part[key] != other[key]:
            ours, theirs = _difference(part[key], other[key])
            raise MismatchError(
                f"{where}: {part['name']} is not in the same places as {other['name']}: {key} {ours} against {theirs}",
                hint="train them by one method, with the same blocks",
            )


def _difference(one: Any, other: Any) -> tuple[str, str]:
    """Both; of lists their lengths, and the first entry that only one of them has."""
    if isinstance(one, str):
        return one, other
    only = sorted(set(one) ^ set(other))[0]
    return f"({len(one)} layers)", f"({len(other)}, of which first {only} differs)"


def plain(parts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """``parts`` as a PEFT configuration keeps them: without places, which are its own."""
    return [{key: value for key, value in part.items() if key not in PLACED} for part in parts]


def all_targets(named: Collection[str], ends: Mapping[str, Any]) -> list[str]:
    """What PEFT is told to wrap: the bottlenecks' layers, and those of an invertible adapter."""
    return sorted({*named, *(str(ends[key]) for key in ("embeddings", "inverse") if ends.get(key))})


def of(config: Any) -> list[dict[str, Any]]:
    """The parts that a PEFT configuration lists, none for most."""
    return list(getattr(config, "parts", None) or ())


def fill(base: LoadedModel, model: Any, name: str, store: Store | None = None) -> None:
    """Read the parts of PEFT's adapter ``name`` from the store and put their tensors in.

    Raises NotFoundError for a part that is not in the store, MismatchError when it does not fit, DataError for damaged files.
    """
    from luthier.models.adapters import ADAPTER
    from luthier.models.weights import read_tensors
    from luthier.store.artifacts import path_of
    from luthier.store.database import open_store

    config = model.peft_config[name]
    places = _frozen(model, name) if of(config) else {}
    for number, part in enumerate(of(config)):
        try:
            folder = path_of(store or open_store(), part["digest"])
        except (NotFoundError, StoreError, DataError) as error:
            raise NotFoundError(
                f"the adapter is built on {part['name']} (digest {part['digest'][:12]}), which is not in the store: {error}",
                hint=f"restore {part['name']} from a copy; the same training gives the same digest again",
            ) from error
        tensors = read_tensors(folder / ADAPTER)
        for prefix, frozen in places[number]:
            for key, buffer in list(frozen.named_buffers()):
                own, _, last = key.rpartition(".")
                found = tensors.pop(f"{prefix}.{key}", None)
                if found is None or found.shape != buffer.shape:
                    shape = "nothing" if found is None else tuple(found.shape)
                    raise MismatchError(
                        f"{folder / ADAPTER}: {prefix}.{key} must have shape {tuple(buffer.shape)}; got {shape}"
                    )
                setattr(frozen.get_submodule(own), last, found.to(device=base.device, dtype=base.dtype))
            frozen.filled = True
        if tensors:
            raise MismatchError(f"{folder / ADAPTER}: {part['name']} is also in places where this adapter is not")


def _frozen(model: Any, name: str) -> dict[int, list[tuple[str, Any]]]:
    """Number of a part -> (the key that its tensors begin with, the frozen network), for each place."""
    from luthier.models.tuners._composed import frozen_parts
    from luthier.models.tuners.adapter_stack import InvertibleLayer
    from luthier.models.tuners.bottleneck import BottleneckLayer

    found: dict[int, list[tuple[str, Any]]] = {number: [] for number, _ in enumerate(of(model.peft_config[name]))}
    for key, layer in model.named_modules():
        if isinstance(layer, BottleneckLayer) and name in layer.bottleneck_adapters:
            for number, frozen in frozen_parts(layer.bottleneck_adapters[name]):
                found[number].append((f"{key}.bottleneck_adapters", frozen))
        elif isinstance(layer, InvertibleLayer) and name in layer.bottleneck_couplings:
            found[0].append((f"{key}.bottleneck_couplings", layer.bottleneck_couplings[name]))
    return found


def swap(store: Store, name: str, on: str, new: str) -> ModelRecord:
    """Register ``new``: what the tuned model ``name`` learned on top of an adapter, on the adapter ``on`` instead.

    This is how a task gets to a language that it was not trained in (MAD-X: Pfeiffer et al. 2020, section 2.2.2). Raises
    UnsupportedError when nothing is below ``name``, MismatchError when ``on`` is elsewhere or of another base, ConflictError when
    the name is taken.
    """
    from luthier.models.attach import MANIFEST, read_manifest
    from luthier.models.inspect_adapter import tuned_record
    from luthier.store.artifacts import path_of, put, staged
    from luthier.store.lineage import Node, record_edge
    from luthier.store.models import check_name, find, list_models, register

    check_name(new)
    if new in {each.name for each in list_models(store)}:
        raise ConflictError(f"the name {new!r} is taken by another model", hint="choose another name: --as NAME")
    record = tuned_record(store, name)
    folder = path_of(store, record.digest)
    manifest = read_manifest(folder)
    described = (
        json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        if manifest["saves"] == "adapter"
        else {}
    )
    if described.get("peft_type") != "ADAPTER_STACK" or not described["parts"]:
        raise UnsupportedError(
            f"{name} was not trained on top of another adapter",
            hint="train it so: method=pfeiffer_adapter method.on=NAME",
        )
    base = find(store, record.base or manifest["base"]["name"])
    part = find_parts(store, base, [on], STACKABLE, where="the adapter below")[0]
    here = {"name": name, "placement": described["placement"], "places": places_of(folder)}
    require_same_places(part, here, where="the adapter below")
    ends = {"invertible": 0.0, "embeddings": "", "inverse": ""}
    named = set(described["target_modules"]) - {described["embeddings"], described["inverse"]}
    ends |= {key: part[key] for key in ends if key in part}
    described |= {"parts": plain([part]), "target_modules": all_targets(named, ends), **ends}
    method = manifest.get("method") or {"name": record.meta.get("method", ""), "config": {}}
    manifest["method"] = {**method, "config": {**method["config"], "on": on}}
    with staged(store) as place:
        for source in folder.iterdir():
            if not source.name.startswith("."):
                shutil.copyfile(source, place / source.name)
        for file, content in (("adapter_config.json", described), (MANIFEST, manifest)):
            text = json.dumps(content, indent=2, ensure_ascii=False, sort_keys=True)
            (place / file).write_text(text + "\n", encoding="utf-8")
        digest, size = put(store, place)
    meta = {
        **record.meta,
        "parts": [{"name": part["name"], "digest": part["digest"]}],
        "swapped": {"from": name, "on": on},
    }
    made = register(store, replace(record, name=new, digest=digest, size_bytes=size, meta=meta, created_at=""))
    record_edge(store, Node("model", name), "learned", Node("model", new))
    record_edge(store, Node("model", on), "built on", Node("model", new))
    return made
