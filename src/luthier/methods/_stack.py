"""Adapters on top of an adapter that stays as it is, and language adapters, which have a part at the embeddings too (MAD-X)."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from luthier.core.model import ModelRecord
from luthier.methods import _bottleneck
from luthier.methods._peft import task_type, wrap
from luthier.models import parts, tuners
from luthier.models.adapters import inner_of, peft_or_none
from luthier.models.load import LoadedModel, store_of
from luthier.models.tuners._stacks import stacks

if TYPE_CHECKING:
    from luthier.store.database import Store


def below(store: Store, base: ModelRecord, on: str) -> dict[str, Any]:
    """The tuned model ``on``, checked. Raises NotFoundError, MismatchError for another base, UnsupportedError for another kind."""
    return parts.find_parts(store, base, [on], parts.STACKABLE, where="method.on")[0]


def insert(model: LoadedModel, method: str, *, on: str | None, targets: Collection[str], **options: Any) -> LoadedModel:
    """Put adapters after ``targets``, above those of ``on`` if it is given. Raises MismatchError when these are elsewhere."""
    if on is None:
        return _bottleneck.insert(model, method, targets, **options)
    store = store_of(model)
    part = below(store, model.base, on)
    here = {"name": "the new adapter", "placement": options["placement"], "places": sorted(targets)}
    parts.require_same_places(part, here, where="method.on")
    ends: dict[str, Any] = {key: part[key] for key in ("invertible", "embeddings", "inverse") if key in part}
    named = {*targets, *options.get("sources", {}).values()}
    settings = tuners.tuner("adapter_stack").CONFIG(
        target_modules=parts.all_targets(named, ends),
        parts=parts.plain([part]),
        task_type=task_type(model),
        **ends,
        **options,
    )
    built = wrap(model, settings, method=method)
    inner = peft_or_none(built)
    parts.fill(built, inner, inner.active_adapter, store)
    return built


def insert_language(
    model: LoadedModel, method: str, *, targets: Collection[str], invertible: float, **options: Any
) -> LoadedModel:
    """Put adapters after ``targets`` and an invertible one at the embeddings; ``invertible``: its reduction, 0 for none."""
    ends: dict[str, Any] = {"invertible": invertible}
    if invertible:
        ends |= embedding_ends(inner_of(model))
    named = {*targets, *options.get("sources", {}).values()}
    settings = tuners.tuner("adapter_stack").CONFIG(
        target_modules=parts.all_targets(named, ends), task_type=task_type(model), **ends, **options
    )
    return wrap(model, settings, method=method)


def embedding_ends(module: Any) -> dict[str, str]:
    """``embeddings``: what makes the first block's input out of token ids; ``inverse``: the norm before a head that is the same matrix.

    Of an encoder that is all of its embeddings, positions and norm included; of a decoder those of the tokens.
    """
    words = module.get_input_embeddings()
    name = next(key for key, each in module.named_modules() if each is words)
    parent = name.rpartition(".")[0]
    if parent and type(module.get_submodule(parent)).__name__.endswith("Embeddings"):
        return {"embeddings": parent, "inverse": ""}
    head = module.get_output_embeddings()
    tied = head is not None and head.weight is words.weight
    norm = stacks(module)[-1].norm
    return {"embeddings": name, "inverse": (norm or "") if tied else ""}
