"""(IA)3 against the paper's equations, and where it goes in each architecture."""

from __future__ import annotations

import pytest
import torch
from tests.methods.tiny import HEAD, KV, LAYERS, D, F

from luthier.core.errors import InputError, UnsupportedError
from luthier.methods.ia3 import Config, build, chosen_layers, trained_parameters
from luthier.models.load import LoadedModel, load_model
from luthier.store.database import open_store

COUNTS = {
    "llama": LAYERS * (2 * KV + F),
    "gpt2": LAYERS * (3 * D + F),  # query, key and value are one layer
    "bert": LAYERS * (2 * D + F) + HEAD["bert"],
    "t5": LAYERS * (2 * D + F) + LAYERS * (2 * 2 * D + F),
}


@pytest.fixture
def model(tiny_decoder: str) -> LoadedModel:
    return load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu")


def test_keys_values_and_the_inner_activation_are_rescaled(model: LoadedModel) -> None:
    block = build(model, Config()).module.base_model.model.model.layers[0]
    x, inner = torch.randn(5, 32), torch.randn(5, 64)
    for layer, given in ((block.self_attn.k_proj, x), (block.self_attn.v_proj, x), (block.mlp.down_proj, inner)):
        vector = layer.ia3_l["default"]
        assert torch.all(vector == 1)
        with torch.no_grad():
            vector.normal_()
        w, scale = layer.base_layer.weight, vector.flatten()
        expected = (given * scale) @ w.T if layer.is_feedforward else (given @ w.T) * scale
        torch.testing.assert_close(layer(given), expected, rtol=1e-4, atol=1e-5)
    assert block.mlp.down_proj.is_feedforward and not block.self_attn.k_proj.is_feedforward


def test_where_it_goes(model: LoadedModel, tiny_encoder: str, tiny_gpt2: str) -> None:
    def last(module: object) -> tuple[set[str], set[str]]:
        outputs, inputs = chosen_layers(module, Config())
        return {n.split(".", 3)[-1] for n in outputs}, {n.split(".", 3)[-1] for n in inputs}

    assert last(model.module) == ({"self_attn.k_proj", "self_attn.v_proj"}, {"mlp.down_proj"})
    encoder = load_model(open_store(), tiny_encoder, dtype="fp32", device="cpu").module.body
    assert last(encoder) == ({"attention.self.key", "attention.self.value"}, {"output.dense"})
    gpt2 = load_model(open_store(), tiny_gpt2, dtype="fp32", device="cpu").module
    assert last(gpt2) == ({"attn.c_attn"}, {"mlp.c_proj"})
    assert trained_parameters(gpt2, Config()) == 2 * (3 * 32 + 64)


def test_layers_by_name(model: LoadedModel) -> None:
    config = Config(outputs=["q_proj"], inputs=["o_proj"])
    built = build(model, config).module
    found = {n.split(".ia3_l")[0].rsplit(".", 1)[-1] for n, p in built.named_parameters() if p.requires_grad}
    assert found == {"q_proj", "o_proj"}


def test_bounds(model: LoadedModel) -> None:
    with pytest.raises(InputError, match=r"method\.outputs .* got 'q_porj', which matches none"):
        build(model, Config(outputs=["q_porj"]))
    model.module.config.hidden_size = 31
    with pytest.raises(UnsupportedError, match=r"no layer for the feed-forward's second layer.*\n.*method\.inputs"):
        build(model, Config())


def test_in_an_encoder_decoder_it_goes_where_the_paper_puts_it(tiny_t5: str) -> None:
    """Liu et al. 2022, section 3.3, on T0: keys and values of self- and cross-attention, and the inner activation; as PEFT has it for T5."""
    from peft.utils.constants import (
        TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING as FEEDFORWARD,
    )
    from peft.utils.constants import (
        TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as TARGETS,
    )

    outputs, inputs = chosen_layers(load_model(open_store(), tiny_t5, dtype="fp32", device="cpu").module, Config())
    assert {name.rsplit(".", 1)[-1] for name in {**outputs, **inputs}} == set(TARGETS["t5"])
    assert {name.rsplit(".", 1)[-1] for name in inputs} == set(FEEDFORWARD["t5"])
    assert sum("EncDecAttention" in name for name in outputs) == 2 * LAYERS
    assert (len(outputs), len(inputs)) == (2 * 3 * LAYERS, 2 * LAYERS)
