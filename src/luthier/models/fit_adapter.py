"""Whether an adapter that others made goes on a stored base: what is refused, and why, before anything is written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import LuthierError, MismatchError, UnsupportedError
from luthier.core.model import ModelRecord
from luthier.models.adapterhub import PREFIX
from luthier.models.adapters import inner_of
from luthier.models.pull import TOKENIZERS

if TYPE_CHECKING:
    from luthier.models.load import LoadedModel
    from luthier.store.database import Store

_OWN_START = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Beginnings of LoRA that take something out of the base's weights: alone on the base as it was, such an adapter is wrong."""
_VOCABULARY = ("embed_tokens", "lm_head", "word_embeddings", "wte", "shared")
"""Layers with a row for each token."""
_SIZES = re.compile(
    r"size mismatch for (\S+?): .*?torch\.Size\(\[([\d, ]*)\]\).*?torch\.Size\(\[([\d, ]*)\]\)", re.DOTALL
)


def check_start(place: Path, config: Mapping[str, Any]) -> None:
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


def root_names(tensors: dict[str, Any], config: dict[str, Any], sketch: LoadedModel) -> dict[str, Any]:
    """Names as of the model that Luthier adapts: an encoder's body without the head class around it, a decoder with it."""
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


def check_whole(place: Path, config: Mapping[str, Any], tensors: Mapping[str, Any], sketch: LoadedModel) -> None:
    """Embeddings and heads that are in the file whole: of another vocabulary, or of a classifier that Luthier computes otherwise."""
    inner = inner_of(sketch)
    rows = int(inner.get_input_embeddings().weight.shape[0])
    wrapped = set(config.get("modules_to_save") or ()) | set(_names(config.get("target_modules")))
    for key, tensor in tensors.items():
        last = key.removesuffix(".weight").rpartition(".")[2]
        if last in _VOCABULARY and len(tensor) != rows:
            raise MismatchError(
                f"{place}: was made for a vocabulary of {len(tensor):,} tokens ({key}); {sketch.base.name} has {rows:,}",
                hint="put it on the model that it was made for: pull that one, then this with --base NAME",
            )
        if last in _VOCABULARY and last not in wrapped:
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
    if isinstance(targets, str):
        return [targets]
    return [each.rpartition(".")[2] for each in targets or ()]


def check_tokenizer(place: Path, sketch: LoadedModel) -> None:
    """Where the adapter's folder carries a tokenizer, its vocabulary and chat template must be the base's."""
    if place.is_file() or not any((place / each).is_file() for each in TOKENIZERS):
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


def check_fit(store: Store, folder: Path, sketch: LoadedModel, base: ModelRecord, place: Path) -> None:
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
