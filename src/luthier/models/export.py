"""Export: a stored decoder as a GGUF file, for llama.cpp and what is built on it.

A base or a fully tuned model becomes one file with everything in it. A LoRA adapter becomes a small file that llama.cpp puts on the
base's GGUF while it runs; any other adapter, or one with ``merge``, is folded into the weights first.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import InputError, NotFoundError, UnsupportedError
from luthier.core.model import ModelRecord
from luthier.core.run import Progress, no_progress

if TYPE_CHECKING:
    from luthier.store.database import Store

MODEL_FILE, LORA_FILE = "model.gguf", "adapter.gguf"
_KEPT = ("template_digest", "prompt", "labels", "method", "objective", "context_length", "parameters")


def export(
    name: str,
    *,
    type: str = "F16",  # noqa: A002
    merge: bool | None = None,
    as_name: str | None = None,
    out: str | Path | None = None,
    store: Store | None = None,
    progress: Progress = no_progress,
) -> ModelRecord:
    """Write ``name`` as GGUF, register the file as a model of kind ``export`` and return its record.

    ``type`` is F32, F16, BF16, Q8_0, Q4_0 or Q4_1 (a LoRA file is always F32). ``merge``: True folds an adapter into the weights, False
    insists on a LoRA file, None takes the LoRA file where one is possible. ``as_name`` names the export (``NAME-f16`` or
    ``NAME-lora-gguf`` when left out); ``out`` also writes a copy to that file or folder. The same export again is found, not made.

    Raises NotFoundError, UnsupportedError for what GGUF cannot hold, InputError for an unknown type, StoreError when the disk refuses.
    """
    from luthier.models.gguf import TYPES
    from luthier.models.merge import require_mergeable
    from luthier.store.database import open_store
    from luthier.store.models import find

    if type not in TYPES:
        raise InputError(f"type must be one of {', '.join(TYPES)}; got {type!r}")
    store = store or open_store()
    record = find(store, name)
    as_lora = _as_lora(store, record, merge)
    if not as_lora:
        require_mergeable(record)
    quantization = "F32" if as_lora else type
    made = find_export(store, record, quantization, as_lora=as_lora)
    if made is None or (as_name and made.name != as_name):
        made = _make(store, record, quantization, as_lora=as_lora, as_name=as_name, progress=progress)
    if out is not None:
        _copy(gguf_file(store, made), Path(out).expanduser(), f"{made.name}.gguf")
    return made


def find_export(store: Store, record: ModelRecord, quantization: str, *, as_lora: bool) -> ModelRecord | None:
    """The export of exactly these weights in this form, when there is one whose file is whole."""
    from luthier.core.errors import StoreError
    from luthier.store.artifacts import path_of
    from luthier.store.models import list_models

    wanted = ("lora" if as_lora else "model", quantization, record.name, record.digest)
    for made in list_models(store, "export"):
        if tuple(made.meta.get(key) for key in ("holds", "quantization", "target", "target_digest")) == wanted:
            try:
                path_of(store, made.digest)
            except StoreError:
                continue
            return made
    return None


def gguf_file(store: Store, record: ModelRecord) -> Path:
    """The file of an export. Raises StoreError when it is damaged."""
    from luthier.store.artifacts import path_of

    return path_of(store, record.digest) / (LORA_FILE if record.meta.get("holds") == "lora" else MODEL_FILE)


def fits_lora(store: Store, record: ModelRecord) -> bool:
    """Whether an adapter can be a LoRA file that llama.cpp puts on the base while it runs."""
    from luthier.models.gguf import refuse_beyond_lora
    from luthier.store.artifacts import path_of

    try:
        refuse_beyond_lora(path_of(store, record.digest))
    except UnsupportedError:
        return False
    return True


def _as_lora(store: Store, record: ModelRecord, merge: bool | None) -> bool:
    """Whether to write a LoRA file. Raises for records that have no GGUF form."""
    from luthier.models.attach import read_manifest
    from luthier.models.gguf import refuse_beyond_lora
    from luthier.store.artifacts import path_of
    from luthier.store.models import find

    if record.architecture != "decoder":
        raise UnsupportedError(
            f"GGUF export is for decoders; {record.name} is an {record.architecture}",
            hint="engine torch serves it as it is: luthier serve " + record.name,
        )
    if record.kind not in ("base", "adapter"):
        hint = f"luthier export {record.meta['target']}" if record.meta.get("target") else None
        raise UnsupportedError(f"{record.name} is an {record.kind}; export takes bases and adapters", hint=hint)
    saves = read_manifest(path_of(store, record.digest))["saves"] if record.kind == "adapter" else "weights"
    if saves == "weights":
        if merge is False:
            raise UnsupportedError(f"{record.name} is a whole model: it has no LoRA file")
        return False
    if merge:
        return False
    base = find(store, record.base or "")
    if merge is False:
        refuse_beyond_lora(path_of(store, record.digest))
    stacked = not (path_of(store, base.digest) / "config.json").is_file()  # an adapter on an adapter
    return not stacked and fits_lora(store, record)


def _make(
    store: Store, record: ModelRecord, quantization: str, *, as_lora: bool, as_name: str | None, progress: Progress
) -> ModelRecord:
    from luthier.store.artifacts import put, staged
    from luthier.store.lineage import Node, record_edge
    from luthier.store.models import check_name, register

    default = f"{record.name}-lora-gguf" if as_lora else f"{record.name}-{quantization.lower()}"
    name = check_name(as_name or default)
    with staged(store) as folder:
        if as_lora:
            context = _write_lora(store, record, folder / LORA_FILE)
        else:
            context = _write_model(store, record, folder / MODEL_FILE, quantization, progress)
        digest, size = put(store, folder)
    meta: dict[str, Any] = {key: record.meta[key] for key in _KEPT if key in record.meta}
    meta |= context | {"format": "gguf", "holds": "lora" if as_lora else "model", "quantization": quantization}
    made = register(
        store,
        ModelRecord(
            name=name,
            kind="export",
            architecture="decoder",
            digest=digest,
            size_bytes=size,
            licence=record.licence,
            base=record.base or record.name,
            meta=meta | {"target": record.name, "target_digest": record.digest},
        ),
        replace=_is_ours(store, name, record.name),
    )
    record_edge(store, Node("model", record.name), "exported as", Node("model", made.name))
    return made


def _is_ours(store: Store, name: str, target: str) -> bool:
    """Whether ``name`` is an earlier export of the same model, which a new one may replace."""
    from luthier.store.models import find

    try:
        known = find(store, name)
    except NotFoundError:
        return False
    return known.kind == "export" and known.meta.get("target") == target


def _write_model(
    store: Store, record: ModelRecord, path: Path, quantization: str, progress: Progress
) -> dict[str, Any]:
    from luthier.models.gguf import export_base
    from luthier.models.load import load_model
    from luthier.models.merge import merge

    loaded = merge(load_model(store, record, dtype="fp32", device="cpu"))
    export_base(loaded, path, quantization, progress=progress)
    return {"template_digest": loaded.template_digest, "context_length": loaded.context_length}


def _write_lora(store: Store, record: ModelRecord, path: Path) -> dict[str, Any]:
    from luthier.models.attach import read_manifest
    from luthier.models.gguf import export_lora
    from luthier.store.artifacts import path_of
    from luthier.store.models import find

    folder = path_of(store, record.digest)
    base = find(store, record.base or read_manifest(folder)["base"]["name"])
    export_lora(folder, path_of(store, base.digest), path, name=record.name)
    return {"template_digest": read_manifest(folder).get("template_digest", ""), "base_digest": base.digest}


def _copy(source: Path, target: Path, name: str) -> None:
    """Write a copy that appears whole or not at all."""
    from luthier.store.home import disk_errors

    if target.is_dir():
        target = target / name
    aside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with disk_errors(target, source.stat().st_size):
            shutil.copyfile(source, aside)
            aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)
