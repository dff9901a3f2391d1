"""A shallower copy of a stored model: some of its layers, everything else as it is. The usual beginning of a student in distillation.

Sanh et al. 2020 (DistilBERT, section 3) begin with every second layer of the teacher. The copy answers worse than its source until it is
trained: the layers that are left were not made to follow each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from luthier.core.errors import InputError, UnsupportedError
from luthier.core.model import ModelRecord
from luthier.core.run import Progress, no_progress

if TYPE_CHECKING:
    from luthier.store.database import Store

_BY_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers")
"""Settings of architectures that hold one value a layer."""


def shrink(
    name: str,
    new: str,
    layers: Sequence[int] | None = None,
    *,
    store: Store | None = None,
    progress: Progress = no_progress,
) -> ModelRecord:
    """Register ``new``, a base model with only ``layers`` (counted from 0, ascending) of ``name``; left out, every second one from the first.

    ``name`` is a base or a tuned model, whose adapter is merged first (its head, if it has one, stays behind). The files keep the dtype
    that they have. Raises InputError for layers that are not there, UnsupportedError for encoder-decoders (their stacks share what the first layer
    holds) and models whose layers are not a plain list, ConflictError when the name is taken.
    """
    from luthier.models.adapters import inner_of
    from luthier.models.combine import _file_dtype, _require_free, register_base
    from luthier.models.load import load_model
    from luthier.models.merge import merge
    from luthier.store.database import open_store
    from luthier.store.models import check_name, find

    store = store or open_store()
    check_name(new)
    record = find(store, name)
    _require_free(store, new)
    if record.architecture == "encoder-decoder":
        raise UnsupportedError(f"{name} is an encoder-decoder; layers are taken from encoders and decoders only")
    root = record
    while root.kind != "base" and root.base:
        root = find(store, root.base)
    progress("shrink", 0, 3)
    model = merge(load_model(store, record, dtype=_file_dtype(store, root), device="cpu"))
    inner = inner_of(model)
    kept = keep_layers(inner, layers)
    progress("shrink", 1, 3)
    said = ("template_digest", "context_length", "dtype", "model_type", "pooling")
    meta = {key: root.meta[key] for key in said if key in root.meta}
    meta |= {
        "parameters": sum(parameter.numel() for parameter in inner.parameters()),
        "source": f"layers:{name}",
        "layers": list(kept),
    }
    progress("shrink", 2, 3)
    made = register_base(store, model, record, new, "layers of", meta)
    progress("shrink", 3, 3)
    return made


def keep_layers(module: Any, layers: Sequence[int] | None = None) -> tuple[int, ...]:
    """Take all layers but ``layers`` out of a Hugging Face model, in place, its configuration too; returns the ones that are left."""
    from luthier.models.watch import blocks

    layered = blocks(module)
    config = module.config.get_text_config()
    count = int(config.num_hidden_layers)
    kept = tuple(range(0, count, 2) if layers is None else layers)
    if not kept or list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= count:
        raise InputError(
            f"layers must be different numbers of 0 to {count - 1}, ascending; got {', '.join(map(str, kept)) or 'none'}"
        )
    if len(kept) == count:
        raise InputError(f"layers must leave at least one of the {count} out; all are given")
    for place in sorted(set(range(count)) - set(kept), reverse=True):
        del layered[place]
    for name in _BY_LAYER:
        stated = getattr(config, name, None)
        if isinstance(stated, list | tuple) and len(stated) == count:
            setattr(config, name, [stated[place] for place in kept])
    config.num_hidden_layers = len(kept)
    return kept
