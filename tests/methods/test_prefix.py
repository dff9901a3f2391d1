"""Prefix tuning: the paper's equations, its size, and beginnings that are words."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.methods.tiny import HEAD, KV, LAYERS, D

from luthier.core.errors import InputError, UnsupportedError
from luthier.methods.prefix import Config, build, trained_parameters
from luthier.models.attach import save_trained
from luthier.models.decode import hidden_states
from luthier.models.encoder import EncoderClassifier
from luthier.models.load import LoadedModel, load_model
from luthier.models.weights import read_tensors
from luthier.store.database import open_store

WIDTHS = {"llama": KV, "gpt2": D, "bert": D}
KEPT = {kind: 10 * 2 * LAYERS * kv + HEAD[kind] for kind, kv in WIDTHS.items()}
COUNTS = {
    kind: 10 * kv + (kv * 512 + 512) + (512 * 2 * LAYERS * kv + 2 * LAYERS * kv) + HEAD[kind]
    for kind, kv in WIDTHS.items()
}


@pytest.fixture
def model(tiny_decoder: str) -> LoadedModel:
    return load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu")


def test_attention_reads_the_prefix_first(model: LoadedModel) -> None:
    """Attention of the first layer with keys [P_k; K] and values [P_v; V], real tokens at the positions after the prefix."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    built = build(model, Config(tokens=3, mlp=False)).module
    base, ids = built.base_model.model, torch.tensor([[5, 9, 30, 7, 8]])
    layer = base.layers[0]
    seen = {}
    layer.self_attn.register_forward_hook(
        lambda m, args, kwargs, out: seen.update(out=out[0], **kwargs), with_kwargs=True
    )
    hidden_states(built, ids)
    x = layer.input_layernorm(base.embed_tokens(ids))
    q, k, v = (
        proj(x).view(1, 5, -1, 8).transpose(1, 2)
        for proj in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)
    )
    cos, sin = base.rotary_emb(x, torch.arange(3, 8)[None])
    q, k = apply_rotary_pos_emb(q, k, cos, sin)
    own = built.prompt_encoder["default"].embedding.weight.view(3, 2 * LAYERS, 2, 8)
    k = torch.cat([own[:, 0].transpose(0, 1)[None], k], dim=2).repeat_interleave(2, dim=1)
    v = torch.cat([own[:, 1].transpose(0, 1)[None], v], dim=2).repeat_interleave(2, dim=1)
    scores = (q @ k.transpose(2, 3)) / 8**0.5
    scores = scores.masked_fill(torch.ones(5, 8).triu(4).bool(), float("-inf"))
    mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(1, 5, D)
    torch.testing.assert_close(seen["out"], layer.self_attn.o_proj(mixed), rtol=1e-5, atol=1e-6)


def test_an_mlp_makes_the_prefix_and_only_its_output_is_kept(model: LoadedModel, tmp_path: Path) -> None:
    """Section 4.3: P = MLP(P'), here with tanh between its two layers."""
    built = build(model, Config(tokens=3, hidden=6))
    encoder = built.module.prompt_encoder["default"]
    first, _, second = encoder.transform
    expected = (encoder.embedding.weight @ first.weight.T + first.bias).tanh() @ second.weight.T + second.bias
    save_trained(built, tmp_path, {"saves": "adapter"})
    held = read_tensors(tmp_path / "adapter_model.safetensors")
    assert held.keys() == {"prompt_embeddings"}
    assert held["prompt_embeddings"].shape == (3, 2 * LAYERS * KV)
    torch.testing.assert_close(held["prompt_embeddings"], expected.detach())


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (Config(tokens=7, mlp=False), 7 * 2 * LAYERS * KV),
        (Config(tokens=7, hidden=12), 7 * KV + KV * 12 + 12 + 12 * 2 * LAYERS * KV + 2 * LAYERS * KV),
    ],
    ids=["keys and values", "mlp"],
)
def test_sizes(model: LoadedModel, config: Config, expected: int) -> None:
    assert trained_parameters(model.module, config) == expected
    built = build(model, config).module
    assert sum(p.numel() for p in built.parameters() if p.requires_grad) == expected


@pytest.mark.parametrize("base", ["tiny_decoder", "tiny_gpt2"])
def test_a_prefix_that_begins_as_text_answers_as_if_the_text_stood_there(
    base: str, request: pytest.FixtureRequest
) -> None:
    name = request.getfixturevalue(base)
    model = load_model(open_store(), name, dtype="fp32", device="cpu")
    before = model.tokenizer("Is it a refund?")["input_ids"]
    ids = [5, 9, 30, 7]
    with torch.no_grad():
        expected = hidden_states(model.module, torch.tensor([before + ids]))[:, len(before) :]
    built = build(model, Config(tokens=len(before), mlp=False, init="text", text="Is it a refund?"))
    with torch.no_grad():
        torch.testing.assert_close(hidden_states(built.module, torch.tensor([ids])), expected, rtol=1e-5, atol=1e-5)


def test_keys_and_values_of_words_in_an_encoder(tiny_encoder: str) -> None:
    """They are those of the text read alone, at the first positions."""
    model = load_model(open_store(), tiny_encoder, dtype="fp32", device="cpu")
    ids = model.tokenizer("the code never comes", add_special_tokens=False)["input_ids"]
    layer = model.module.body.encoder.layer[0].attention.self
    x = model.module.body.embeddings(torch.tensor([ids]))
    built = build(model, Config(tokens=len(ids), mlp=False, init="text", text="the code never comes"))
    own = built.module.body.prompt_encoder["default"].embedding.weight.view(len(ids), 2 * LAYERS, D)
    torch.testing.assert_close(own[:, 0], layer.key(x)[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(own[:, 1], layer.value(x)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"init": "vocabulary"}, "init vocabulary sets the keys and values themselves, which needs mlp: false"),
        ({"mlp": False, "hidden": 3}, "hidden is the width of the MLP; got mlp: false"),
        ({"mlp": False, "init": "text"}, "init text needs text"),
    ],
)
def test_options_that_would_do_nothing_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Config(**options)  # type: ignore[arg-type]


def test_too_many_tokens(model: LoadedModel) -> None:
    with pytest.raises(InputError, match=r"method\.tokens must leave room in the context of 512 tokens"):
        build(model, Config(tokens=600))


def test_an_encoder_that_takes_no_keys_and_values_is_refused(tiny_encoder: str) -> None:
    from transformers import DistilBertConfig, DistilBertModel

    model = load_model(open_store(), tiny_encoder, dtype="fp32", device="cpu")
    model.module = EncoderClassifier(
        DistilBertModel(DistilBertConfig(vocab_size=300, dim=32, hidden_dim=64, n_layers=2, n_heads=4)).eval(), 2
    )
    with pytest.raises(
        UnsupportedError, match=r"method prefix cannot go into tiny-encoder \(DistilBertModel\)"
    ) as error:
        build(model, Config())
    assert "method=prompt" in (error.value.hint or "")
