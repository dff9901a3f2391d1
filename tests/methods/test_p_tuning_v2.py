"""P-tuning v2: prefix tuning of an encoder without reparametrisation, with a head."""

from __future__ import annotations

import pytest
import torch
from tests.methods.tiny import HEAD, LAYERS, D

from luthier.methods.p_tuning_v2 import Config, build, trained_parameters
from luthier.models.load import LoadedModel, load_model
from luthier.store.database import open_store

COUNTS = {"bert": 20 * 2 * LAYERS * D + HEAD["bert"]}
LABELS = ("billing", "delivery")


@pytest.fixture
def model(tiny_encoder: str) -> LoadedModel:
    return load_model(open_store(), tiny_encoder, dtype="fp32", device="cpu", labels=LABELS)


def test_the_head_is_trained_with_prompts_in_every_layer(model: LoadedModel) -> None:
    model.module.requires_grad_(False)
    formula = trained_parameters(model.module.body, Config(tokens=6))
    built = build(model, Config(tokens=6))
    trained = {name: p for name, p in built.module.named_parameters() if p.requires_grad}
    assert set(trained) == {"head.weight", "head.bias", "body.prompt_encoder.default.embedding.weight"}
    assert formula == 6 * 2 * LAYERS * D == trained["body.prompt_encoder.default.embedding.weight"].numel()
    ids, mask = torch.tensor([[2, 9, 30, 3], [2, 8, 3, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    built.module(ids, mask)[:, 0].sum().backward()
    own = trained["body.prompt_encoder.default.embedding.weight"].grad
    assert own is not None
    assert own.view(6, 2 * LAYERS, D).abs().sum((0, 2)).min() > 0  # keys and values of each layer


def test_beginnings(model: LoadedModel) -> None:
    torch.manual_seed(1)
    words = build(model, Config(tokens=6, init="vocabulary")).module.body.prompt_encoder["default"].embedding.weight
    x = words.detach().view(6, 2 * LAYERS, D)
    assert torch.isfinite(x).all()
    assert len(x.unique(dim=0)) > 3
    with pytest.raises(ValueError, match="init text needs text"):
        Config(init="text")
