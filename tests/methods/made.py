"""Adapters in the store for methods that build on others."""

from __future__ import annotations

from typing import Any

import torch

from luthier.core.catalog import load
from luthier.core.errors import NotFoundError
from luthier.core.model import ModelRecord
from luthier.models.attach import save_trained
from luthier.models.load import load_model
from luthier.store.artifacts import put, staged
from luthier.store.database import Store
from luthier.store.models import find, register


def adapter(
    store: Store, base: ModelRecord, name: str, method: str = "pfeiffer_adapter", **options: Any
) -> ModelRecord:
    """A tuned model with random adapters that change what the base says; the one that is there under this name, if any."""
    try:
        return find(store, name)
    except NotFoundError:
        pass
    labels = ("yes", "no") if base.architecture == "encoder" else ()
    model = load_model(store, base, dtype="fp32", device="cpu", labels=labels)
    model.labels = labels
    model.module.requires_grad_(False)
    entry = load("methods", method)
    config = entry.configure(options)
    built = entry(model, config)
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    with torch.no_grad():
        for parameter in built.module.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    with staged(store) as folder:
        method_said = {"name": method, "config": config.model_dump()}
        save_trained(built, folder, {"saves": "adapter", "method": method_said})
        digest, size = put(store, folder)
    record = ModelRecord(
        name,
        "adapter",
        base.architecture,
        digest,
        size,
        base=base.name,
        meta={"method": method, "labels": list(labels)},
    )
    return register(store, record)
