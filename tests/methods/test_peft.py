"""The pass-through: every method of PEFT that it lets in works, every other is refused with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from tests.methods.tiny import each_linear

from luthier.core.catalog import load
from luthier.core.errors import InputError, UnsupportedError
from luthier.core.model import ModelRecord
from luthier.methods.peft import REFUSED, Config, _types, build
from luthier.models.attach import attach, save_trained, select
from luthier.models.load import load_model
from luthier.store.database import open_store

OPTIONS: dict[str, Any] = {"type": "HRA", "options": {"r": 4}}
COUNTS = each_linear(lambda i, o: 4 * i)  # four reflections of the inputs
CANNOT = {"gpt2": "Conv1D"}  # PEFT has no layer of this kind for them

IDS = torch.tensor([[5, 9, 30, 7]])
LOW_RANK = ("GRALORA", "HIRA", "LILY", "MISS", "PEANUT", "PSOFT", "SHIRA")
SMALL: dict[str, dict[str, Any]] = {
    **{key: {"r": 4} for key in LOW_RANK},
    "C3A": {"block_size": 16},
    "FOURIERFT": {"n_frequency": 20},
    "OFT": {"oft_block_size": 8, "r": 0},
    "ROAD": {"group_size": 8},
    "VBLORA": {"num_vectors": 16, "vector_length": 8, "topk": 2},
    "WAVEFT": {"n_frequency": 20},
    "IA3": {"feedforward_modules": []},
}


@pytest.mark.parametrize("kind", sorted(_types()))
def test_every_method_that_is_let_in(kind: str, tiny_decoder: str, tmp_path: Path) -> None:
    model = load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu")
    before = {n: p.detach().clone() for n, p in model.module.named_parameters()}
    model.module.requires_grad_(False)
    torch.manual_seed(0)
    model = build(model, Config(type=kind, options=SMALL.get(kind, {})))
    trained = [p for p in model.module.parameters() if p.requires_grad]
    assert 0 < sum(p.numel() for p in trained) < sum(p.numel() for p in before.values())
    model.module.eval()(IDS).logits.square().mean().backward()
    assert all(p.grad is not None for p in trained)
    for parameter in trained:
        parameter.data += 0.05 * torch.randn_like(parameter)
    expected = model.module(IDS).logits.detach()
    save_trained(model, tmp_path, {"saves": "adapter"})
    base = load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu")
    bare = base.module(IDS).logits
    for name in ("a", "b"):
        attach(base, ModelRecord(name, "adapter", "decoder", ""), name, folder=tmp_path)
    select(base, "a")
    torch.testing.assert_close(base.module(IDS).logits, expected, rtol=1e-4, atol=1e-5)
    select(base, None)
    torch.testing.assert_close(base.module(IDS).logits, bare, rtol=0, atol=0)


def test_every_other_type_of_peft_has_a_reason() -> None:
    known = {str(getattr(key, "value", key)) for key in PEFT_TYPE_TO_CONFIG_MAPPING}
    assert known == set(REFUSED) | set(_types())
    for name in REFUSED:
        with pytest.raises(InputError, match=f"type {name} is not possible here: "):
            load("methods", "peft").configure({"type": name})


def test_what_is_wrong_is_said_before_a_model_is_loaded() -> None:
    configure = load("methods", "peft").configure
    with pytest.raises(InputError, match="type is required"):
        configure({})
    with pytest.raises(InputError, match=r"must be one of PEFT's methods; got 'FOURIRFT'\. Did you mean 'FOURIERFT'"):
        configure({"type": "FOURIRFT"})
    with pytest.raises(InputError, match="must be written FOURIERFT"):
        configure({"type": "fourierft"})
    with pytest.raises(
        InputError, match=r"options of FOURIERFT: unknown key 'n_frequncy'\. Did you mean 'n_frequency'"
    ):
        configure({"type": "FOURIERFT", "options": {"n_frequncy": 8}})
    with pytest.raises(InputError, match="options of FOURIERFT: unknown key 'target_modules'"):
        configure({"type": "FOURIERFT", "options": {"target_modules": ["q_proj"]}})
    with pytest.raises(InputError, match=r"options\.bias must be none; got 'all'\. Method bitfit trains biases"):
        configure({"type": "HRA", "options": {"bias": "all"}})


def test_what_peft_refuses_is_said_in_its_words(tiny_decoder: str, tiny_gpt2: str) -> None:
    model = load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu")
    with pytest.raises(InputError, match=r"method\.targets .* got 'q_porj', which matches none"):
        build(model, Config(type="HRA", targets=["q_porj"]))
    with pytest.raises(UnsupportedError, match=r"method peft, type ROAD, cannot go into tiny-decoder: .*group_size"):
        build(model, Config(type="ROAD"))
    model = load_model(open_store(), tiny_gpt2, dtype="fp32", device="cpu")
    with pytest.raises(UnsupportedError, match=r"type HRA, cannot go into tiny-gpt2: .*Conv1D"):
        build(model, Config(type="HRA"))


def test_layer_norms_are_found(tiny_decoder: str, tiny_encoder: str) -> None:
    for name, expected in ((tiny_decoder, 5 * 32), (tiny_encoder, 5 * 2 * 32)):
        model = load_model(open_store(), name, dtype="fp32", device="cpu")
        model.module.requires_grad_(False)
        built = build(model, Config(type="LN_TUNING"))
        assert sum(p.numel() for p in built.module.parameters() if p.requires_grad) == expected
    model = load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu")
    with pytest.raises(UnsupportedError, match=r"must name norms .*'input_layernorn'.*Did you mean 'input_layernorm'"):
        build(model, Config(type="LN_TUNING", targets=["input_layernorn"]))
