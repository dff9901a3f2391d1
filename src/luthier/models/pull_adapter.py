"""Adapters that others made: a folder in PEFT's or AdapterHub's layout, or a LoRA file of llama.cpp, becomes a tuned model in the store.

What is stored is always PEFT's layout with the manifest beside it. Before anything is written the adapter is put into its base's shapes on
torch's ``meta`` device, so one of another base or of another vocabulary is refused without reading a weight of the base.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import DataError, InputError, LuthierError, MismatchError, UnsupportedError
from luthier.core.model import ModelRecord
from luthier.core.run import Progress, no_progress
from luthier.models.adapters import ADAPTER, ADAPTER_CONFIG
from luthier.models.attach import HEAD, MANIFEST
from luthier.models.fit_adapter import check_fit, check_start, check_tokenizer, check_whole, root_names
from luthier.models.read_json import read_json
from luthier.models.weights import check_file, entries, missing_weights, read_tensors, write_tensors

if TYPE_CHECKING:
    from luthier.models.load import LoadedModel
    from luthier.store.database import Store

_SAFE = "have it saved as safetensors: save_pretrained(..., safe_serialization=True)"


def take_adapter(
    store: Store,
    place: Path,
    name: str,
    base: str | None,
    source: Mapping[str, Any],
    *,
    replace: bool = False,
    progress: Progress = no_progress,
) -> ModelRecord:
    """Register the adapter at ``place`` as the tuned model ``name`` of the stored model ``base`` (left out: the one that it names itself).

    ``source`` is kept in the record's ``meta``. Raises InputError when no base is known, DataError for damaged files, MismatchError for
    an adapter that does not fit the base's shapes or was made for another vocabulary or chat template, UnsupportedError for pickled
    weights and for what is no adapter beside the base's own weights.
    """
    from luthier.models.shapes import load_shapes
    from luthier.store.artifacts import discard_unused, put, staged
    from luthier.store.models import register

    on = _base(store, place, base)
    progress(f"check {name}", 0, 2)
    sketch = load_shapes(store, on)
    with staged(store) as folder:
        labels = _normalise(place, folder, sketch, store, on)
        check_tokenizer(place, sketch)
        check_fit(store, folder, sketch, on, place)
        config = read_json(folder / ADAPTER_CONFIG)
        method = method_of(config)
        _write_manifest(folder, sketch, on, method, labels)
        progress(f"check {name}", 1, 2)
        serving = _serving(folder, sketch, method)
        count = sum(size for _, size in entries(folder / ADAPTER).values())
        digest, size = put(store, folder)
    meta = {
        **source,
        "method": method,
        "saves": "adapter",
        "serving": serving,
        "prompt": None,
        "labels": list(labels),
        "template_digest": sketch.template_digest,
        "trainable_parameters": count,
    }
    record = ModelRecord(name, "adapter", on.architecture, digest, size, licence=on.licence, base=on.name, meta=meta)
    try:
        made = register(store, record, replace=replace)
    except LuthierError:
        discard_unused(store, digest)
        raise
    progress(f"check {name}", 2, 2)
    return made


def method_of(config: Mapping[str, Any]) -> str:
    """The method whose result a PEFT configuration describes; ``peft`` for those that have no name of their own here."""
    from luthier.core import catalog

    kind = str(config.get("peft_type"))
    if kind == "LORA":
        whole = {"embed_tokens", "wte", "shared", "word_embeddings"} & set(config.get("modules_to_save") or ())
        return "dora" if config.get("use_dora") else "lora_and_embeddings" if whole else "lora"
    if kind == "BOTTLENECK":
        placed = {"sequential": "adapter", "parallel": "parallel_adapter"}.get(
            str(config.get("placement")), "pfeiffer_adapter"
        )
        return "compacter" if config.get("hypercomplex") else placed
    name = {"PROMPT_TUNING": "prompt", "PREFIX_TUNING": "prefix"}.get(kind, kind.lower())
    return name if name in catalog.names("methods") else "peft"


def _base(store: Store, place: Path, given: str | None) -> ModelRecord:
    """The stored model that the adapter goes on: the one that was named, else the only one that its configuration can mean."""
    from luthier.store.models import find, list_models

    if given is not None:
        return find(store, given)
    said = ""
    if place.is_dir():
        config = read_json(place / ADAPTER_CONFIG)
        said = str(config.get("base_model_name_or_path") or config.get("model_name") or "")
    wanted = {said, f"hf:{said}"}
    known = [r for r in list_models(store) if r.kind in ("base", "adapter")]
    found = [
        r for r in known if said and (r.name in wanted or str(r.meta.get("source", "")).partition("@")[0] in wanted)
    ]
    if len(found) == 1:
        return found[0]
    told = f"it says that it was made for {said!r}, which is not here" if said else "it does not say which"
    here = ", ".join(r.name for r in known if r.kind == "base") or "none yet"
    raise InputError(
        f"{place.name} is an adapter and needs the model that it goes on; {told}",
        hint=f"pull again with --base NAME. Models here: {here}",
    )


def _normalise(place: Path, folder: Path, sketch: LoadedModel, store: Store, base: ModelRecord) -> tuple[str, ...]:
    """Write PEFT's two files (and an encoder's head) into ``folder``; returns the head's labels."""
    if place.is_file():
        from luthier.models.gguf_lora import read_lora

        _require_decoder(place, base)
        config, tensors = read_lora(place, _config_of(sketch))
        _write(folder, config, tensors, sketch)
        return ()
    config = read_json(place / ADAPTER_CONFIG)
    if "peft_type" not in config:
        from luthier.models.adapterhub import read_adapterhub

        config, tensors = read_adapterhub(place, sketch)
        _write(folder, config, tensors, sketch)
        return ()
    path = place / ADAPTER
    if not path.is_file():
        raise UnsupportedError(missing_weights(place, ADAPTER), hint=_SAFE)
    check_file(path)
    check_start(place, config)
    tensors = root_names(read_tensors(path), config, sketch)
    check_whole(place, config, tensors, sketch)
    _write(folder, config, tensors, sketch)
    return _take_head(place, folder, sketch)


def _write(folder: Path, config: Mapping[str, Any], tensors: dict[str, Any], sketch: LoadedModel) -> None:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    from luthier.models import soft_prompt, tuners

    tuners.register()
    known = {str(getattr(key, "value", key)): kind for key, kind in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    kind = str(config.get("peft_type"))
    if kind not in known:
        raise UnsupportedError(
            f"{ADAPTER_CONFIG}: peft_type {kind!r} is not known to this PEFT, which has {', '.join(sorted(known))}"
        )
    task: str | None = {"decoder": "CAUSAL_LM", "encoder-decoder": "SEQ_2_SEQ_LM"}.get(sketch.architecture)
    if kind in soft_prompt.KINDS:
        task = soft_prompt.task_of(sketch.architecture)
    told = {**config, "task_type": task, "base_model_name_or_path": sketch.base.name, "inference_mode": True}
    told.pop("auto_mapping", None)
    (folder / ADAPTER_CONFIG).write_text(json.dumps(told, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    write_tensors(folder / ADAPTER, tensors)


def _take_head(place: Path, folder: Path, sketch: LoadedModel) -> tuple[str, ...]:
    """The head of an encoder that Luthier exported; its labels are in the file."""
    path = place / HEAD
    if sketch.architecture != "encoder" or not path.is_file():
        return ()
    told = check_file(path).get("__metadata__") or {}
    try:
        labels = tuple(str(each) for each in json.loads(told["labels"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: does not say which labels its rows are for") from error
    tensors = read_tensors(path)
    width = int(sketch.module.width)
    if any(tuple(t.shape) not in {(len(labels), width), (len(labels),)} for t in tensors.values()):
        shapes = ", ".join(f"{key} {tuple(t.shape)}" for key, t in tensors.items())
        raise MismatchError(f"{path}: must be {len(labels)} labels x {width}; got {shapes}")
    shutil.copyfile(path, folder / HEAD)
    return labels


def _serving(folder: Path, sketch: LoadedModel, method: str) -> dict[str, str]:
    """Engine -> swap, merge or no: what the method says, and what the files allow."""
    from luthier.core import catalog
    from luthier.models.gguf import refuse_beyond_lora

    found = dict(catalog.load("methods", method).module.SERVING.get(sketch.architecture) or {"torch": "swap"})
    if found.get("llamacpp") == "swap":
        try:
            refuse_beyond_lora(folder)
        except UnsupportedError:
            found["llamacpp"] = "merge"
    return found


def _write_manifest(folder: Path, sketch: LoadedModel, base: ModelRecord, method: str, labels: tuple[str, ...]) -> None:
    from luthier.models.attach import FORMAT

    manifest = {
        "format": FORMAT,
        "saves": "adapter",
        "base": {"name": base.name, "digest": base.digest},
        "architecture": base.architecture,
        "template_digest": sketch.template_digest,
        "labels": list(labels),
        "dtype": str(sketch.dtype).removeprefix("torch."),
        "prompt": None,
        "method": {"name": method, "config": {}},
        "objective": None,
        "run_id": None,
    }
    (folder / MANIFEST).write_text(
        json.dumps(manifest, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8"
    )


def _require_decoder(place: Path, base: ModelRecord) -> None:
    if base.architecture != "decoder":
        raise MismatchError(f"{place}: a GGUF adapter goes on a decoder; {base.name} is an {base.architecture}")


def _config_of(sketch: LoadedModel) -> Mapping[str, Any]:
    config: dict[str, Any] = sketch.module.config.to_dict()
    if not config.get("architectures"):
        config["architectures"] = [type(sketch.module).__name__]
    return config
