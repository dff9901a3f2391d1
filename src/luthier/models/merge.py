"""Fold an adapter into the weights it adapts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from luthier.core.errors import UnsupportedError
from luthier.core.model import ModelRecord
from luthier.models.adapters import unwrapped
from luthier.models.load import LoadedModel


def merge(model: LoadedModel) -> LoadedModel:
    """The same model as plain Hugging Face modules, the selected adapter added into the base weights.

    The sum is computed in fp32 and rounded once to the model's dtype; of a base in 4 bits, with its dequantized weights. A delta's tensors replace the base's, as they are. ``model`` is
    used up: its modules become the result's. A model without an adapter comes back as it is. Raises UnsupportedError when the
    adapter's method cannot be merged (soft prompts).
    """
    inner = model.module.body if model.architecture == "encoder" else model.module
    held = model.attached.get(model.selected) if model.selected else None
    replaced = held is not None and held.changes is not None
    if held is not None and held.light:
        for _, parameter, tensor in list(model.light.merged(model.selected)):
            parameter.data = tensor
        replaced = True
    if model.light is not None:
        model.light.let_go()
    if not hasattr(inner, "peft_config"):
        return replace(model, attached={}, selected=None, light=None) if replaced else model
    if replaced:  # the adapters beside it are not part of the answer
        return _plain(model, unwrapped(inner))
    if inner.active_peft_config.is_prompt_learning:
        raise UnsupportedError(
            f"{model.record.name} is a soft prompt: it adds virtual tokens and changes no weight, so there is nothing to merge",
            hint="it can be served where it is swapped in: engine torch",
        )
    if model.quantization is not None:
        from luthier.models.quantize import dequantize

        dequantize(inner)
    buffers = {name.removeprefix("base_model.model."): b.dtype for name, b in inner.named_buffers()}
    try:
        merged = inner.float().merge_and_unload(safe_merge=True)
    except (NotImplementedError, ValueError) as error:
        kind = str(getattr(inner.active_peft_config.peft_type, "value", inner.active_peft_config.peft_type))
        raise UnsupportedError(
            f"{model.record.name}: an adapter of type {kind} cannot be merged into the weights: {error}",
            hint="it can be served where it is swapped in: engine torch",
        ) from error
    if model.quantization is not None:
        from luthier.models.quantize import restore_transposed

        restore_transposed(merged)
    return replace(_plain(model, _rounded(merged, model.dtype, buffers).eval()), quantization=None)


def _rounded(module: Any, dtype: Any, buffers: Mapping[str, Any]) -> Any:
    """Parameters in ``dtype``, buffers in the dtypes that they had: the frequencies of rotary positions stay in fp32."""
    for parameter in module.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    for name, buffer in module.named_buffers():
        if name in buffers:
            buffer.data = buffer.data.to(buffers[name])
    return module


def require_mergeable(record: ModelRecord) -> None:
    """Raise UnsupportedError, before any weight is read, for a tuned model whose method has no merged weights (as its SERVING says)."""
    from luthier.core import catalog

    method = str(record.meta.get("method") or "")
    if record.kind != "adapter" or method not in catalog.names("methods"):
        return
    serving = catalog.load("methods", method).module.SERVING.get("decoder") or {}
    if serving.get("llamacpp") == "no":
        raise UnsupportedError(
            f"{record.name} was made by {method}, whose result stands beside the weights: it cannot be folded into them, and so not be "
            "served by llama.cpp",
            hint=f"serve it where it is swapped in: luthier serve {record.name} --engine torch",
        )


def _plain(model: LoadedModel, module: Any) -> LoadedModel:
    """``model`` with ``module`` as its only weights."""
    if hasattr(module, "peft_config"):
        del module.peft_config
    if model.architecture == "encoder":
        model.module.body = module
        module = model.module
    return replace(model, module=module, attached={}, selected=None, light=None)
