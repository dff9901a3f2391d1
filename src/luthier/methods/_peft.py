"""Putting a PEFT adapter into a model: what the methods that PEFT has share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from luthier.core.errors import InputError, UnsupportedError
from luthier.methods._targets import ALL_LINEAR
from luthier.models.adapters import inner_of, quiet_peft
from luthier.models.load import LoadedModel

Chosen = Mapping[str, tuple[int, int]]
"""Full name -> (inputs, outputs) of the layers that a method goes into (``_targets.choose``)."""


def target_names(targets: Any, chosen: Chosen) -> list[str]:
    """What PEFT is told: last parts of names when every linear layer was asked for, full names otherwise."""
    if targets == ALL_LINEAR:
        return sorted({name.rsplit(".", 1)[-1] for name in chosen})
    return sorted(chosen)


def lora_alpha(alpha: float | None, rank: int, *, rslora: bool) -> float:
    """LoRA's alpha: as given, or 2 r, or 2 sqrt(r) with ``rslora``, which makes the factor 2 either way."""
    return alpha or 2.0 * float(rank**0.5 if rslora else rank)


def task_type(model: LoadedModel) -> str | None:
    """PEFT's word for what the wrapped model is."""
    return {"decoder": "CAUSAL_LM", "encoder-decoder": "SEQ_2_SEQ_LM"}.get(model.architecture)


def wrap(model: LoadedModel, settings: Any, *, method: str) -> LoadedModel:
    """``model`` with its decoder, or its encoder's body, inside the PEFT model that ``settings`` (a PeftConfig) describes.

    Trained are what PEFT adds and an encoder's head. Raises UnsupportedError for layers that this PEFT method cannot wrap.
    """
    from peft import get_peft_model

    inner = inner_of(model)
    try:
        with quiet_peft():
            # autocast_adapter_dtype: what is trained is in the model's dtype, its fp32 masters in the optimizer
            wrapped = get_peft_model(inner, settings, autocast_adapter_dtype=False)
    except (TypeError, ValueError) as error:
        text = str(error).split("\n")[0]
        raise UnsupportedError(
            f"method {method} cannot go into {model.base.name}: {text}",
            hint="choose other layers or options (luthier methods show), or a method that takes these: method=lora",
        ) from error
    _cast(wrapped, model)
    if model.architecture != "encoder":
        return replace(model, module=wrapped)
    model.module.body = wrapped
    if model.module.head is not None:
        model.module.head.requires_grad_(True)
    return model


def _cast(wrapped: Any, model: LoadedModel) -> None:
    """Give what is trained the model's dtype; some of PEFT's initialisations leave fp32."""
    for parameter in wrapped.parameters():
        if parameter.requires_grad and parameter.dtype != model.dtype and parameter.is_floating_point():
            parameter.data = parameter.data.to(model.dtype)


def check_rank(chosen: Chosen, rank: int, *, where: str = "method.rank") -> None:
    """Raise InputError when ``rank`` is above the smaller side of a chosen layer: what is above could not add anything."""
    name, shape = min(chosen.items(), key=lambda item: min(item[1]))
    if rank > min(shape):
        raise InputError(
            f"{where} must be at most {min(shape)}, the smaller side of {name} ({shape[0]} x {shape[1]}); got {rank}"
        )
