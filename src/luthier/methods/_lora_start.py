"""How LoRA's A and B begin, where that is not random A and zero B.

PiSSA and OLoRA take the beginning out of the base weight, so that the model answers as before and A and B hold its main part. What is
saved must fit the untouched base: the beginning is remembered, and written as further ranks of opposite sign (Meng et al. 2024,
"PiSSA"): W0 + s B A = W + s (B A - B0 A0).
"""

from __future__ import annotations

from typing import Any

from luthier.models.adapters import remember_start


def begin(wrapped: Any, init: str) -> None:
    """Set A and B of every LoRA layer in ``wrapped`` to ``init`` (pissa, pissa_fast or olora) and take B A out of the base weights.

    A and B are rounded to the layer's dtype first, so what is taken out is exactly what they add. Nothing happens to layers that are only
    shapes (torch's ``meta`` device).
    """
    import torch
    from peft.tuners.lora.layer import LoraLayer

    (name,) = wrapped.active_adapters
    with torch.no_grad():
        for layer in wrapped.modules():
            if not isinstance(layer, LoraLayer) or layer.get_base_layer().weight.device.type == "meta":
                continue
            weight = layer.get_base_layer().weight
            before = weight.data
            if init == "olora":
                _olora(layer, name)
            else:
                layer.pissa_init(name, "pissa" if init == "pissa" else "pissa_niter_16")
            a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
            a.data, b.data = a.data.to(before.dtype).contiguous(), b.data.to(before.dtype).contiguous()
            taken = layer.scaling[name] * (b.data.float() @ a.data.float())
            if getattr(layer, "fan_in_fan_out", False):
                taken = taken.T
            weight.data = (before.float() - taken).to(before.dtype)
            remember_start(layer, name)


def _olora(layer: Any, name: str) -> None:
    """Q and R of the first r columns of W = Q R (Büyükakyüz 2024, "OLoRA")."""
    import torch

    weight = layer.get_base_layer().weight.data.float()
    q, r = torch.linalg.qr(weight.T if getattr(layer, "fan_in_fan_out", False) else weight)
    rank = layer.r[name]
    layer.lora_A[name].weight.data, layer.lora_B[name].weight.data = r[:rank], q[:, :rank]
