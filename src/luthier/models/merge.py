"""Fold an adapter into the weights it adapts."""

from __future__ import annotations

from dataclasses import replace

from luthier.core.errors import UnsupportedError
from luthier.models.load import LoadedModel


def merge(model: LoadedModel) -> LoadedModel:
    """The same model as plain Hugging Face modules, the selected adapter added into the base weights.

    The sum is computed in fp32 and rounded once to the model's dtype. ``model`` is used up: its modules become the result's. A
    model without an adapter comes back as it is. Raises UnsupportedError when the adapter's method cannot be merged (soft prompts).
    """
    encoder = model.architecture == "encoder"
    inner = model.module.body if encoder else model.module
    if not hasattr(inner, "peft_config"):
        return model
    if inner.active_peft_config.is_prompt_learning:
        kind = inner.active_peft_config.peft_type
        raise UnsupportedError(f"{model.record.name}: an adapter of type {kind} cannot be merged into the weights")
    plain = inner.float().merge_and_unload(safe_merge=True).to(model.dtype).eval()
    if hasattr(plain, "peft_config"):
        del plain.peft_config
    if encoder:
        model.module.body = plain
    return replace(model, module=model.module if encoder else plain, attached={}, selected=None)
