"""A model without its weights: every module and parameter with its shape, on torch's ``meta`` device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from luthier.core.errors import UnsupportedError
from luthier.core.model import ModelRecord
from luthier.models.load import (
    AUTO_CLASSES,
    LoadedModel,
    load_renderer,
    load_tokenizer,
    quiet_transformers,
    read_context_length,
)

if TYPE_CHECKING:
    from luthier.store.database import Store


def load_shapes(store: Store, record: ModelRecord, labels: Sequence[str] = ()) -> LoadedModel:
    """The stored model ``record`` as a sketch that methods can be built into and parameters counted in, but that computes nothing.

    A tuned model is sketched as what tuning may start from: its base, merged. Raises UnsupportedError for exports and endpoints,
    DataError for damaged files.
    """
    import transformers

    from luthier.models.encoder import read_pooling
    from luthier.store.artifacts import path_of
    from luthier.store.models import find

    if record.kind not in ("base", "adapter"):
        raise UnsupportedError(
            f"{record.name} is an {record.kind}; methods change base models and what tuning made of them",
            hint="luthier models shows what each name is",
        )
    holder = record
    while holder.kind != "base" and holder.base:
        holder = find(store, holder.base)
    folder = path_of(store, holder.digest)
    config = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    tokenizer = load_tokenizer(folder)
    sketch = sketch_of(
        record, config, labels=labels, pooling=read_pooling(folder) if holder.architecture == "encoder" else "mean"
    )
    return replace(
        sketch,
        tokenizer=tokenizer,
        renderer=load_renderer(folder, tokenizer) if record.architecture != "encoder" else None,
        context_length=read_context_length(holder.architecture, folder, config, tokenizer),
        folder=folder,
        base_folder=folder,
        store=store,
    )


def sketch_of(
    record: ModelRecord, config: Any, *, labels: Sequence[str] = (), pooling: Literal["mean", "cls"] = "mean"
) -> LoadedModel:
    """The same of a model that is not in any store: a transformers ``config`` says its shapes. It has no tokenizer."""
    import torch
    import transformers

    from luthier.models.encoder import EncoderClassifier

    encoder, meta = record.architecture == "encoder", torch.device("meta")
    with quiet_transformers(), meta:
        module = getattr(transformers, AUTO_CLASSES[record.architecture]).from_config(config)
        if encoder:
            module.pooler = None
            module = EncoderClassifier(module, len(labels), pooling=pooling)
    return LoadedModel(
        record=record,
        base=record,
        module=module.eval().requires_grad_(False),
        tokenizer=None,
        renderer=None,
        device=meta,
        dtype=next(module.parameters()).dtype,
        architecture=record.architecture,
        labels=tuple(labels) if encoder else (),
    )


def parameter_counts(model: LoadedModel) -> tuple[int, int]:
    """(trained, all); parameters that modules share count once."""
    from luthier.models.quantize import unseen

    counts = [(p.numel(), p.requires_grad) for p in model.module.parameters()]
    return sum(n for n, trained in counts if trained), sum(n for n, _ in counts) + unseen(model.module)
