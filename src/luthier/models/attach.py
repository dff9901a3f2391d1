"""What tuning leaves on disk, and putting it back on its base.

A trained folder holds ``luthier.json`` (the manifest) and, as ``saves`` in it says:

- ``adapter``: ``adapter_config.json`` and ``adapter_model.safetensors`` in PEFT's own layout, for the causal model of a decoder or
  the body of an encoder (``peft.PeftModel.from_pretrained`` reads them), and ``head.safetensors`` for an encoder with a head;
- ``delta``: ``changed.safetensors``, those of the base's own parameters that were trained (see ``models.delta``), and
  ``head.safetensors`` for an encoder;
- ``weights``: a whole model in Hugging Face layout with its tokenizer (and ``head.safetensors``);
- ``head``: ``head.safetensors`` alone.

A head that has no labels (a reward model's, on a decoder as well) is in ``head.safetensors`` too; the manifest's ``head`` says what its
outputs mean (``models.heads``).

An encoder that was tuned to predict words also has ``lm_head.safetensors`` (``models.masked_head``), which only that reads.

While training, adapters live in a ``peft.PeftModel``: it *is* ``LoadedModel.module`` for decoders and ``module.body`` for encoders.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import DataError, InputError, MismatchError, NotFoundError, StoreError, UnsupportedError
from luthier.core.model import ModelRecord
from luthier.data.render import mismatch
from luthier.models import delta
from luthier.models.adapters import drop_adapter, inner_of, load_adapter, peft_or_none, save_adapter, switch
from luthier.models.light import take
from luthier.models.load import Attached, LoadedModel, load_folder, load_model, quiet_transformers
from luthier.models.soft_prompt import virtual_tokens
from luthier.models.weights import AGAIN, read_tensors, write_tensors

if TYPE_CHECKING:
    from luthier.models.quantize import Quantization
    from luthier.store.database import Store

MANIFEST, HEAD = "luthier.json", "head.safetensors"
FORMAT = 1
SAVES = ("adapter", "weights", "head", "delta")
_TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "chat_template*",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
)


def save_trained(model: LoadedModel, folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Write a trained model into ``folder`` and return the full manifest.

    ``manifest`` needs ``saves`` (adapter, weights, head or delta) and may give ``prompt`` (PromptTemplate as dict), ``method`` and
    ``objective`` (each ``{"name", "config"}``) and ``run_id``; base, architecture, labels, dtype and template digest are taken
    from ``model``. Raises InputError when ``saves`` does not fit the model, StoreError when the disk refuses.
    """
    saves = manifest.get("saves")
    if saves not in SAVES:
        raise InputError(f"saves must be one of {', '.join(SAVES)}; got {saves!r}")
    from luthier.models.heads import describe

    head = model.head
    if saves == "head" and head is None:
        raise InputError(f"saves 'head' needs an encoder with labels, or a head; {model.record.name} has none")
    full = {
        "format": FORMAT,
        "base": {"name": model.base.name, "digest": model.base.digest},
        "architecture": model.architecture,
        "template_digest": model.template_digest,
        "labels": list(model.labels),
        "dtype": str(model.dtype).removeprefix("torch."),
        "prompt": None,
        "method": None,
        "objective": None,
        "run_id": None,
        **({"quantization": model.quantization.as_dict()} if model.quantization is not None else {}),
        **manifest,
        **({"head": describe(head)} if head is not None and not model.labels else {}),
    }
    if head is not None and model.architecture != "encoder":
        model.put_head(None)  # the files of the language model hold nothing else
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if saves == "adapter":
            save_adapter(_peft(model), folder, model.base.name)
        elif saves == "delta":
            delta.write_changes(inner_of(model), folder / delta.FILE)
        elif saves == "weights":
            _save_weights(model, folder)
        if head is not None:
            write_tensors(folder / HEAD, dict(head.state_dict()))
        if model.architecture == "encoder" and model.module.lm_head is not None:
            model.module.lm_head.save(folder)
        text = json.dumps(full, indent=2, ensure_ascii=False, sort_keys=True)
        (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise StoreError(f"cannot write the trained model to {folder}: {error}") from error
    finally:
        if model.architecture != "encoder":
            model.put_head(head)
    return full


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a trained folder. Raises DataError that names the file when it is missing, damaged or too new."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        number, saves, base = manifest["format"], manifest["saves"], manifest["base"]
        if saves not in SAVES or not isinstance(base["name"], str) or not isinstance(base["digest"], str):
            raise ValueError(f"saves {saves!r}, base {base!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a trained model's manifest: {error}", hint=AGAIN) from error
    if number != FORMAT:
        raise DataError(f"{path}: format must be {FORMAT}; got {number!r}", hint="Use the Luthier that wrote it.")
    return manifest  # type: ignore[no-any-return]


def load_trained(store: Store, record: ModelRecord, *, dtype: str = "auto", device: str = "auto") -> LoadedModel:
    """A model that tuning made, ready to answer: base + adapter, base with some tensors replaced, whole weights, or base + head.

    Raises NotFoundError when its base is not in the store, MismatchError when the base or the chat template is another than the
    one it was trained with, DataError for damaged files.
    """
    from luthier.store.artifacts import path_of
    from luthier.store.models import find

    folder = path_of(store, record.digest)
    manifest = read_manifest(folder)
    labels = tuple(manifest.get("labels") or ())
    if manifest["saves"] == "weights":
        try:
            base = find(store, manifest["base"]["name"])
        except NotFoundError:
            base = record  # whole weights answer without their base
        loaded = load_folder(folder, record, base, dtype=dtype, device=device, labels=labels)
        if loaded.architecture == "encoder" and labels:
            _read_head(folder, loaded.module.head)
        elif manifest.get("head"):
            loaded.put_head(_further_head(folder, loaded, manifest["head"]))
        loaded.labels = labels
        _check_template(record, manifest, loaded)
        return loaded
    loaded = load_base(
        store,
        find(store, record.base or manifest["base"]["name"]),
        dtype=dtype,
        device=device,
        quantization=quantization_of(manifest),
    )
    attach(loaded, record, record.name, folder=folder, store=store)
    select(loaded, record.name)
    loaded.record, loaded.folder, loaded.labels = record, folder, labels
    return loaded


def quantization_of(manifest: Mapping[str, Any]) -> Quantization | None:
    """How the base was held that a trained folder belongs on; None: in plain weights."""
    from luthier.models.quantize import Quantization

    return Quantization.from_dict(manifest.get("quantization"))


def load_base(
    store: Store,
    base: ModelRecord,
    *,
    dtype: str = "auto",
    device: str = "auto",
    quantization: Quantization | None = None,
) -> LoadedModel:
    """What an adapter is put on: a base model, or a tuned one merged into plain weights (tuning may start from tuning), in 4 bits where
    ``quantization`` says so."""
    if base.kind != "adapter":
        return load_model(store, base, dtype=dtype, device=device, quantization=quantization)
    from luthier.models.merge import merge

    loaded = merge(load_model(store, base, dtype=dtype, device=device))
    loaded.base = base
    if quantization is not None:
        from luthier.models.quantize import quantize

        quantize(inner_of(loaded), quantization)
        loaded.quantization = quantization
    return loaded


def attach(
    base: LoadedModel,
    record: ModelRecord,
    name: str,
    *,
    folder: Path | None = None,
    store: Store | None = None,
    light: bool = False,
) -> None:
    """Put a stored adapter (or delta, or head) beside the ones that ``base`` already carries; nothing is selected yet.

    ``folder`` holds its files (looked up in ``store`` when not given). ``light``: for answering only, without PEFT's modules where the
    adapter's kind allows (``models.light``). Raises MismatchError for another base or template,
    DataError for damaged files, UnsupportedError for whole weights, which cannot share a base.
    """
    if folder is None:
        from luthier.store.artifacts import path_of
        from luthier.store.database import open_store

        folder = path_of(store or open_store(), record.digest)
    manifest = read_manifest(folder)
    if manifest["saves"] == "weights":
        raise UnsupportedError(f"{record.name} is a whole model, not an adapter: it cannot share a base in memory")
    if manifest["base"]["digest"] != base.base.digest:
        raise MismatchError(
            f"{record.name} was trained on {manifest['base']['name']} with digest {manifest['base']['digest'][:12]}; "
            f"here is {base.base.name} with digest {base.base.digest[:12]}",
            hint="Pull the base that it was trained on, or tune again on this one: luthier tune RUN.yaml",
        )
    if (trained_on := quantization_of(manifest)) != base.quantization:
        raise MismatchError(
            f"{record.name} was trained on {trained_on or 'plain weights'}; here {base.base.name} is in "
            f"{base.quantization or 'plain weights'}",
            hint="Load it with load_model, which holds its base as it was in training.",
        )
    _check_template(record, manifest, base)
    held = Attached(record, labels=tuple(manifest.get("labels") or ()))
    if base.architecture == "encoder" and held.labels:
        from luthier.models.encoder import new_head

        held.head = _read_head(folder, new_head(base.module.width, len(held.labels))).to(base.device).eval()
    elif manifest.get("head"):
        held.head = _further_head(folder, base, manifest["head"])
    if light and manifest["saves"] == "adapter" and take(base, folder, name):
        base.attached[name] = replace(held, light=True)
        return
    selected = base.selected
    base.selected = ""  # loading moves PEFT's own selection
    _take_out(base)
    try:
        if manifest["saves"] == "adapter":
            held.peft_model, held.peft_name = load_adapter(base, folder, store)
        elif manifest["saves"] == "delta":
            held.changes = delta.read_changes(
                folder / delta.FILE, inner_of(base), device=base.device, dtype=base.dtype, base=base.base.name
            )
        base.attached[name] = held
    finally:
        select(base, selected)


def select(base: LoadedModel, name: str | None) -> None:
    """Answer as the attached adapter ``name`` from now on, or as the bare base (None), bit for bit."""
    if name == base.selected:
        return
    if name is not None and name not in base.attached:
        raise NotFoundError(f"adapter {name!r} is not attached; attached: {', '.join(base.attached) or 'none'}")
    held = base.attached[name] if name is not None else None
    _take_out(base)
    if base.light is not None:
        base.light.selected = name if held is not None and held.light else None
    if held is not None and held.changes is not None:
        held.changes.put_in()
    last = base.attached.get(base.selected or "")
    if base.selected == "" or any(each is not None and each.peft_name for each in (last, held)):
        switch(base, held.peft_model if held is not None else None, held.peft_name if held is not None else "")
    before, base.virtual_tokens = base.virtual_tokens, virtual_tokens(inner_of(base))
    base.context_length += before - base.virtual_tokens
    if base.architecture == "encoder":
        base.module.head = held.head if held is not None else None
        base.labels = held.labels if held is not None else ()
    else:
        base.decoder_head = held.head if held is not None else None
    base.selected = name


def detach(base: LoadedModel, name: str) -> None:
    """Forget an attached adapter and free its memory; the base answers alone when it was the selected one."""
    if name not in base.attached:
        return
    selected = base.selected if base.selected != name else None
    _take_out(base)
    held = base.attached.pop(name)
    if held.light:
        base.light.remove(name)
    if held.peft_name:
        drop_adapter(base, held.peft_model, held.peft_name)
    base.selected = ""  # PEFT's own selection has moved
    select(base, selected)


def _take_out(base: LoadedModel) -> None:
    """Give the base its own tensors back, whichever delta is in."""
    for held in base.attached.values():
        if held.changes is not None:
            held.changes.take_out()


def _check_template(record: ModelRecord, manifest: Mapping[str, Any], loaded: LoadedModel) -> None:
    trained = str(manifest.get("template_digest") or "")
    if trained:
        mismatch(trained, loaded.template_digest, what=repr(record.name))


def _peft(model: LoadedModel) -> Any:
    inner = peft_or_none(model)
    if inner is None:
        raise InputError(f"saves 'adapter' needs a PEFT adapter in {model.record.name}; it has none")
    return inner


def _save_weights(model: LoadedModel, folder: Path) -> None:
    whole = inner_of(model)
    with quiet_transformers():
        whole.save_pretrained(str(folder))
    for pattern in _TOKENIZER_FILES:
        for source in model.base_folder.glob(pattern):
            target = folder / source.relative_to(model.base_folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


def _further_head(folder: Path, model: LoadedModel, described: Mapping[str, Any]) -> Any:
    """The head of a model without labels, as its file and its manifest have it."""
    from luthier.models.heads import build_head

    tensors = read_tensors(folder / HEAD)
    weight = tensors.get("weight")
    width = inner_of(model).config.get_text_config().hidden_size
    if weight is None or weight.ndim != 2 or weight.shape[1] != width:
        shape = None if weight is None else tuple(weight.shape)
        raise MismatchError(
            f"{folder / HEAD}: a head of shape {shape} does not fit {model.base.name} of width {width}", hint=AGAIN
        )
    head = build_head(described, width, tensors)
    return head.requires_grad_(False).to(model.device).eval()


def _read_head(folder: Path, head: Any) -> Any:
    tensors = read_tensors(folder / HEAD)
    try:
        head.load_state_dict(tensors)
    except RuntimeError as error:
        raise MismatchError(f"{folder / HEAD}: does not fit the model's labels: {error}", hint=AGAIN) from error
    return head
