"""A stored adapter as a folder in the layout of PEFT or of AdapterHub, for programs that read those."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import ConflictError, InputError, UnsupportedError
from luthier.core.model import ModelRecord
from luthier.models import parts
from luthier.models.adapters import ADAPTER, ADAPTER_CONFIG, read_config
from luthier.models.read_json import read_json

if TYPE_CHECKING:
    from luthier.store.database import Store

FORMATS = ("peft", "adapterhub")


def export_adapter(store: Store, name: str, format: str, out: str | Path) -> Path:  # noqa: A002
    """Write the adapter ``name`` into the new or empty folder ``out`` and return it.

    peft: ``adapter_config.json`` and ``adapter_model.safetensors`` as they are stored, ``base_model_name_or_path`` naming the base's source.
    adapterhub: see ``models.adapterhub``. An encoder's head goes along as ``head.safetensors`` with its labels in the file's metadata.
    Raises UnsupportedError for what is no adapter of that layout, ConflictError when ``out`` holds something, StoreError when the disk refuses.
    """
    from luthier.models.attach import HEAD, read_manifest
    from luthier.models.inspect_adapter import tuned_record
    from luthier.store.artifacts import path_of
    from luthier.store.home import disk_errors

    if format not in FORMATS:
        raise InputError(f"format must be gguf, {' or '.join(FORMATS)}; got {format!r}")
    record = tuned_record(store, name)
    folder = path_of(store, record.digest)
    manifest = read_manifest(folder)
    if manifest["saves"] != "adapter":
        kept = {"delta": "the changed tensors of its base", "weights": "a whole model", "head": "a head alone"}
        raise UnsupportedError(
            f"{name} was made by {record.meta.get('method') or manifest['saves']} and is {kept[manifest['saves']]}, not an adapter",
            hint=f"make a model of it that any program reads: luthier adapters merge {name}",
        )
    if below := parts.of(read_config(folder)):
        raise UnsupportedError(
            f"{name} is built on {', '.join(part['name'] for part in below)}, and its file holds only what was trained on top",
            hint="it answers where the store has those: luthier serve " + name,
        )
    target = Path(out).expanduser()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConflictError(f"out must be a new or an empty folder; {target} is not", hint="choose another folder")

    def fill(aside: Path) -> None:
        if format == "adapterhub":
            from luthier.models.adapterhub import write_adapterhub

            write_adapterhub(folder, aside, name, _sketch(store, record))
        else:
            _write_peft(store, record, folder, aside)
        if manifest.get("labels") and (folder / HEAD).exists():
            _write_head(folder / HEAD, aside / HEAD, list(manifest["labels"]))

    with disk_errors(target, record.size_bytes):
        _whole(target, fill)
    return target


def _whole(target: Path, fill: Callable[[Path], None]) -> None:
    """Fill a folder that takes its name only when everything is in it."""
    import tempfile

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as held:
        aside = Path(held) / "folder"
        aside.mkdir()
        fill(aside)
        if target.exists():
            target.rmdir()
        aside.replace(target)


def _write_peft(store: Store, record: ModelRecord, folder: Path, target: Path) -> None:
    config = read_json(folder / ADAPTER_CONFIG) | _origin(store, record)
    (target / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    shutil.copyfile(folder / ADAPTER, target / ADAPTER)


def _origin(store: Store, record: ModelRecord) -> dict[str, Any]:
    """What PEFT is told of the base: the hub's name of one that came from there, else the name here."""
    from luthier.core.errors import NotFoundError
    from luthier.store.models import find

    try:
        base = find(store, record.base or "")
    except NotFoundError:
        return {}
    source = str(base.meta.get("source", ""))
    if not source.startswith("hf:"):
        return {"base_model_name_or_path": base.name}
    repository, _, revision = source.removeprefix("hf:").partition("@")
    return {"base_model_name_or_path": repository, "revision": revision or None}


def _sketch(store: Store, record: ModelRecord) -> Any:
    from luthier.models.shapes import load_shapes
    from luthier.store.models import find

    return load_shapes(store, find(store, record.base or ""))


def _write_head(source: Path, target: Path, labels: list[str]) -> None:
    from safetensors.torch import save_file

    from luthier.models.weights import read_tensors

    save_file(
        read_tensors(source), str(target), metadata={"format": "pt", "labels": json.dumps(labels, ensure_ascii=False)}
    )
