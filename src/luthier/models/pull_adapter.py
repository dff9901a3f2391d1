"""Adapters that others made: a folder in PEFT's or AdapterHub's layout, or a LoRA file of llama.cpp, becomes a tuned model in the store.

What is stored is always PEFT's layout with the manifest beside it. Before anything is written the adapter is put into its base's shapes on
torch's ``meta`` device, so one of another base or of another vocabulary is refused without reading a weight of the base.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import DataError, InputError, LuthierError, MismatchError, UnsupportedError
from luthier.core.model import ModelRecord
from luthier.core.run import Progress, no_progress
from luthier.models.adapters import ADAPTER, ADAPTER_CONFIG
from luthier.models.attach import HEAD, MANIFEST
from luthier.models.weights import check_file, read_tensors, write_tensors

if TYPE_CHECKING:
    from luthier.models.load import LoadedModel
    from luthier.store.database import Store

PREFIX = "base_model.model."
"""What PEFT writes before every name."""

_TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json")
_OWN_START = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Beginnings of LoRA that take something out of the base's weights: alone on the base as it was, such an adapter is wrong."""
_SIZES = re.compile(
    r"size mismatch for (\S+?): .*?torch\.Size\(\[([\d, ]*)\]\).*?torch\.Size\(\[([\d, ]*)\]\)", re.DOTALL
)


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
        _check_tokenizer(place, sketch)
        _check_fit(store, folder, sketch, on, place)
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        method = method_of(config)
        _write_manifest(folder, sketch, on, method, labels)
        progress(f"check {name}", 1, 2)
        serving = _serving(folder, sketch, method)
        count = sum(prod(e["shape"]) for key, e in check_file(folder / ADAPTER).items() if key != "__metadata__")
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
        config = _read_json(place / ADAPTER_CONFIG)
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
    config = _read_json(place / ADAPTER_CONFIG)
    if "peft_type" not in config:
        from luthier.models.adapterhub import read_adapterhub

        config, tensors = read_adapterhub(place, sketch)
        _write(folder, config, tensors, sketch)
        return ()
    path = place / ADAPTER
    if not path.is_file():
        raise UnsupportedError(_no_weights(place, ADAPTER), hint=_SAFE)
    check_file(path)
    _check_start(place, config)
    tensors = _root_names(read_tensors(path), config, sketch)
    _check_whole(place, config, tensors, sketch)
    _write(folder, config, tensors, sketch)
    return _take_head(place, folder, sketch)


_SAFE = "have it saved as safetensors: save_pretrained(..., safe_serialization=True)"


def _no_weights(place: Path, wanted: str) -> str:
    pickled = [path.name for path in (*place.glob("*.bin"), *place.glob("*.pt"))]
    why = f"; {pickled[0]} is pickled and never loaded: it can run code" if pickled else ""
    return f"{place}: {wanted} is missing{why}"


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


def _check_start(place: Path, config: Mapping[str, Any]) -> None:
    """Refuse what changes the base's own weights: trained biases, and a LoRA whose beginning did and which was not converted when it was saved."""
    if str(config.get("bias") or "none") not in ("none", "False"):
        raise UnsupportedError(
            f"{place}: was trained with bias={config['bias']!r}: its biases would stay in the base when another adapter answers",
            hint="merge it into the base with PEFT (merge_and_unload) and pull that as a model of its own",
        )
    start = str(config.get("init_lora_weights", "")).lower()
    if start.startswith(_OWN_START):
        raise UnsupportedError(
            f"{place}: began with init_lora_weights={config['init_lora_weights']!r}, which took a part out of the base's own weights; "
            "on the base as it is, the adapter would answer wrongly",
            hint="have it converted when it is saved: save_pretrained(..., path_initial_model_for_weight_conversion=...)",
        )


def _root_names(tensors: dict[str, Any], config: dict[str, Any], sketch: LoadedModel) -> dict[str, Any]:
    """Names as of the model that Luthier adapts: an encoder's body without the head class around it, a decoder with it."""
    from luthier.models.adapters import inner_of

    inner = inner_of(sketch)
    around = f"{getattr(inner, 'base_model_prefix', '')}."
    if around == ".":
        return tensors
    has = any(key.startswith(PREFIX + around) for key in tensors)
    targets = config.get("target_modules")
    named = targets if isinstance(targets, list) else []
    if sketch.architecture == "encoder" and has:
        config["target_modules"] = [each.removeprefix(around) for each in named] if named else targets
        return {PREFIX + k.removeprefix(PREFIX).removeprefix(around): tensor for k, tensor in tensors.items()}
    if sketch.architecture == "decoder" and not has and any(key.startswith(PREFIX) for key in tensors):
        first = next(key for key in tensors if key.startswith(PREFIX)).removeprefix(PREFIX).split(".")[0]
        if hasattr(getattr(inner, around[:-1], None), first):
            config["target_modules"] = [around + each if "." in each else each for each in named] if named else targets
            return {PREFIX + around + k.removeprefix(PREFIX): tensor for k, tensor in tensors.items()}
    return tensors


def _check_whole(place: Path, config: Mapping[str, Any], tensors: Mapping[str, Any], sketch: LoadedModel) -> None:
    """Embeddings and heads that are in the file whole: of another vocabulary, or of a classifier that Luthier computes otherwise."""
    from luthier.models.adapters import inner_of

    inner = inner_of(sketch)
    rows = int(inner.get_input_embeddings().weight.shape[0])
    for key, tensor in tensors.items():
        last = key.removesuffix(".weight").rpartition(".")[2]
        if last in ("embed_tokens", "lm_head", "word_embeddings", "wte", "shared") and len(tensor) != rows:
            raise MismatchError(
                f"{place}: was made for a vocabulary of {len(tensor):,} tokens ({key}); {sketch.base.name} has {rows:,}",
                hint="put it on the model that it was made for: pull that one, then this with --base NAME",
            )
        wrapped = set(config.get("modules_to_save") or ()) | set(_names(config.get("target_modules")))
        if last in ("embed_tokens", "lm_head", "word_embeddings", "wte", "shared") and last not in wrapped:
            raise UnsupportedError(
                f"{place}: holds the base's own {last} beside the adapter, which would change the base for every other adapter",
                hint="have it saved with save_embedding_layers=False, or trained with modules_to_save",
            )
        if key.startswith((PREFIX + "classifier.", PREFIX + "score.")):
            raise UnsupportedError(
                f"{place}: holds a classification head ({key.removeprefix(PREFIX)}) of transformers' own kind, which Luthier does not compute",
                hint="train a head on your labels instead: luthier tune RUN.yaml method=lora",
            )


def _names(targets: Any) -> list[str]:
    return (
        []
        if targets is None
        else [targets]
        if isinstance(targets, str)
        else [each.rpartition(".")[2] for each in targets]
    )


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


def _check_tokenizer(place: Path, sketch: LoadedModel) -> None:
    """Where the adapter's folder carries a tokenizer, its vocabulary and chat template must be the base's."""
    if place.is_file() or not any((place / each).is_file() for each in _TOKENIZER):
        return
    from luthier.models.load import load_tokenizer

    theirs = load_tokenizer(place)
    mine, other = sketch.tokenizer.get_vocab(), theirs.get_vocab()
    if mine != other:
        more = sorted(set(other) - set(mine))
        moved = next((token for token in other if token in mine and mine[token] != other[token]), None)
        what = f"it adds {more[0]!r}" if more else f"{moved!r} is another number" if moved else "it lacks tokens"
        raise MismatchError(
            f"{place}: was made for another vocabulary than {sketch.base.name}: {len(other):,} and {len(mine):,} tokens; {what}",
            hint="put it on the model that it was made for: pull that one, then this with --base NAME",
        )
    template = getattr(theirs, "chat_template", None)
    if template and sketch.architecture == "decoder" and template != sketch.tokenizer.chat_template:
        raise MismatchError(
            f"{place}: was made with another chat template than that of {sketch.base.name}: it would be asked otherwise than it was taught",
            hint="put it on the model that it was made for: pull that one, then this with --base NAME",
        )


def _check_fit(store: Store, folder: Path, sketch: LoadedModel, base: ModelRecord, place: Path) -> None:
    """Put the adapter into the shapes of its base; when it does not go in, say why and what it fits."""
    why = _why_not(folder, sketch)
    if why:
        fitting = _fitting(store, folder, base)
        hint = (
            f"it fits {', '.join(fitting)}: --base {fitting[0]}"
            if fitting
            else "no model here has its shapes; pull the one that it was made for"
        )
        raise MismatchError(f"{place}: does not fit {base.name}: {why}", hint=hint)


def _fitting(store: Store, folder: Path, but: ModelRecord) -> list[str]:
    from luthier.models.shapes import load_shapes
    from luthier.store.models import list_models

    found = []
    for record in list_models(store, "base"):
        if record.name != but.name:
            try:
                fits = not _why_not(folder, load_shapes(store, record))
            except LuthierError:  # a damaged model is none that it fits
                continue
            if fits:
                found.append(record.name)
    return found


def _why_not(folder: Path, sketch: LoadedModel) -> str:
    """Why PEFT cannot put the adapter in ``folder`` into a model on the meta device, in one sentence; "" when it can."""
    from luthier.models.adapters import load_adapter

    try:
        load_adapter(sketch, folder)
    except MismatchError as error:
        return _in_words(str(error.__cause__ or error))
    return ""


def _in_words(text: str) -> str:
    sizes = _SIZES.search(text)
    if sizes:
        name = sizes[1].removeprefix(PREFIX)
        mine, theirs = (" x ".join(sizes[n].split(", ")) for n in (2, 3))
        return f"{name} is {mine} in the file and {theirs} there"
    missing = re.search(r"Target modules? (.+?) not found", text)
    if missing:
        names = sorted(re.findall(r"[\w.]+", missing[1]))
        return f"it has no layers called {', '.join(names)}"
    first = re.search(r"first at '(.+?)'", text)
    return f"it has no place for {first[1].removeprefix(PREFIX)}" if first else text.split("\n", maxsplit=1)[0]


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


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected a JSON object; got {type(value).__name__}")
    return value
