"""Adapters that other adapters are built on: a fusion of several, a task's adapter on a language's.

The file of what is built on them holds only what was trained; its PEFT configuration lists the ``parts`` by the digest of their files,
and they are put in when it is loaded. The store refuses to remove a part that something is built on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from luthier.core.errors import DataError, InputError, MismatchError, NotFoundError, StoreError, UnsupportedError
from luthier.core.model import ModelRecord

if TYPE_CHECKING:
    from luthier.models.load import LoadedModel
    from luthier.store.database import Store

COPIED = ("size", "activation", "norm", "scale", "learn_scale", "invertible")
"""What a part's configuration says of how it computes."""
PLACED = ("target_modules", "placement", "sources")
"""What it says of where it is."""


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
    return {"name": name, "digest": record.digest, **found}


def _named(kinds: Collection[str]) -> str:
    said = {
        "BOTTLENECK": "pfeiffer_adapter, adapter or parallel_adapter",
        "ADAPTER_STACK": "language_adapter",
    }
    return "models tuned by " + " or ".join(said[kind] for kind in kinds)


def placed(parts: Sequence[Mapping[str, Any]], *, where: str) -> dict[str, Any]:
    """Where all ``parts`` are. Raises MismatchError when they are not in the same places."""
    first, *others = parts
    for other in others:
        for key in PLACED:
            one, two = (sorted(each[key]) if key == "target_modules" else each[key] for each in (first, other))
            if one != two:
                raise MismatchError(
                    f"{where} must name adapters in the same places; {key} of {first['name']} is {_short(one)}, of "
                    f"{other['name']} {_short(two)}",
                    hint="train them by one method, with the same blocks",
                )
    return {key: first[key] for key in PLACED}


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def plain(parts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """``parts`` as a PEFT configuration keeps them: without places, which are its own."""
    return [{key: value for key, value in part.items() if key not in PLACED} for part in parts]


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

    places = _frozen(model, name)
    for number, part in enumerate(of(model.peft_config[name])):
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
        if tensors:
            raise MismatchError(f"{folder / ADAPTER}: {part['name']} is also in places where this adapter is not")


def _frozen(model: Any, name: str) -> dict[int, list[tuple[str, Any]]]:
    """Number of a part -> (the key that its tensors begin with, the frozen network), for each place."""
    from luthier.models.tuners._composed import frozen_parts
    from luthier.models.tuners.bottleneck import BottleneckLayer

    found: dict[int, list[tuple[str, Any]]] = {number: [] for number, _ in enumerate(of(model.peft_config[name]))}
    for key, layer in model.named_modules():
        if isinstance(layer, BottleneckLayer) and name in layer.bottleneck_adapters:
            for number, frozen in frozen_parts(layer.bottleneck_adapters[name]):
                found[number].append((f"{key}.bottleneck_adapters", frozen))
    return found
