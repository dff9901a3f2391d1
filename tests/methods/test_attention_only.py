"""Attention only: the four projections of every block, on each architecture."""

from __future__ import annotations

import pytest
import torch
from tests.methods.tiny import ATTENTION, HEAD, KINDS, weights

from luthier.core.errors import InputError
from luthier.methods.attention_only import Config, build
from luthier.models.load import load_model
from luthier.store.database import open_store

COUNTS = {kind: weights(ATTENTION[kind]) + HEAD[kind] for kind in KINDS}
COUNTS["gpt2"] += sum(o for _, o in ATTENTION["gpt2"])  # biases
COUNTS["bert"] += sum(o for _, o in ATTENTION["bert"])


def trained(name: str, **options: object) -> set[str]:
    model = load_model(open_store(), name, dtype="fp32", device="cpu", labels=("a", "b"))
    model = build(model, Config(**options))  # type: ignore[arg-type]
    inner = model.module if model.architecture == "decoder" else model.module.body
    return {name for name, p in inner.named_parameters() if p.requires_grad}


def test_the_projections_of_three_architectures(tiny_decoder: str, tiny_gpt2: str, tiny_encoder: str) -> None:
    llama = {f"model.layers.{i}.self_attn.{part}_proj.weight" for i in range(2) for part in "qkvo"}
    assert trained(tiny_decoder) == llama
    gpt2 = [f"transformer.h.{i}.attn.{part}" for i in range(2) for part in ("c_attn", "c_proj")]
    assert trained(tiny_gpt2) == {f"{name}.{part}" for name in gpt2 for part in ("weight", "bias")}
    bert = [f"encoder.layer.{i}.attention.self.{part}" for i in range(2) for part in ("query", "key", "value")]
    bert += [f"encoder.layer.{i}.attention.output.dense" for i in range(2)]
    assert trained(tiny_encoder) == {f"{name}.{part}" for name in bert for part in ("weight", "bias")}
    assert trained(tiny_decoder, projections=["q_proj", "layers.1.self_attn.v_proj"]) == {
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.1.self_attn.q_proj.weight",
        "model.layers.1.self_attn.v_proj.weight",
    }


def test_about_a_third_of_a_transformers_block() -> None:
    """The paper: with a feed-forward of four times the width, attention holds 4 d^2 of a block's 12 d^2 weights."""
    from transformers import BertConfig, BertModel

    from luthier.methods._parts import attention_projections, of_modules

    with torch.device("meta"):
        module = BertModel(BertConfig(), add_pooling_layer=False)
    found = sum(p.numel() for p in of_modules(module, attention_projections(module)).values())
    assert found == 12 * 4 * (768 * 768 + 768)
    assert found / sum(p.numel() for p in module.encoder.parameters()) == pytest.approx(1 / 3, abs=2e-3)


def test_a_projection_that_is_not_attentions(tiny_decoder: str) -> None:
    with pytest.raises(InputError, match=r"method\.projections must be.*got 'up_proj', which matches none"):
        trained(tiny_decoder, projections=["q_proj", "up_proj"])
