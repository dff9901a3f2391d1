"""BitFit: all bias terms and nothing else, as the paper's equations list them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.methods.tiny import HEAD, biases
from transformers import AutoTokenizer, BartConfig, BartForConditionalGeneration

from luthier.core.errors import InputError, UnsupportedError
from luthier.methods.bitfit import Config, build
from luthier.models.load import load_model
from luthier.models.pull import pull
from luthier.store.database import open_store

COUNTS = {kind: biases(kind) + HEAD[kind] for kind in ("gpt2", "bert")}
CANNOT = {"llama": "has none", "t5": "has none"}


def trained(name: str, config: Config) -> dict[str, int]:
    model = build(load_model(open_store(), name, dtype="fp32", device="cpu", labels=("a", "b")), config)
    inner = model.module if model.architecture == "decoder" else model.module.body
    return {name: p.numel() for name, p in inner.named_parameters() if p.requires_grad}


def test_every_bias_of_a_bert(tiny_encoder: str) -> None:
    """Section 3: b_q, b_k, b_v of each head, b_m1, b_m2, b_m3 of the dense layers, b_LN1, b_LN2; and the embeddings' norm."""
    block = {
        "attention.self.query": 32,
        "attention.self.key": 32,
        "attention.self.value": 32,
        "attention.output.dense": 32,
        "attention.output.LayerNorm": 32,
        "intermediate.dense": 64,
        "output.dense": 32,
        "output.LayerNorm": 32,
    }
    expected = {f"encoder.layer.{i}.{name}.bias": size for i in range(2) for name, size in block.items()}
    assert trained(tiny_encoder, Config()) == expected | {"embeddings.LayerNorm.bias": 32}


def test_the_two_biases_of_the_smaller_variant(tiny_encoder: str) -> None:
    found = trained(tiny_encoder, Config(biases=["query", "intermediate.dense"]))
    assert found == {
        f"encoder.layer.{i}.{name}.bias": size
        for i in range(2)
        for name, size in (("attention.self.query", 32), ("intermediate.dense", 64))
    }


def test_published_share_of_bert_base() -> None:
    """The paper's table 1 gives 0.08% of BERT-large's parameters, section 3 says 0.09% for BERT-base (counted on shapes)."""
    import torch
    from transformers import BertConfig, BertModel

    sizes = {
        "base": (BertConfig(), 0.0009),
        "large": (
            BertConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16),
            0.0008,
        ),
    }
    for config, share in sizes.values():
        with torch.device("meta"):
            module = BertModel(config, add_pooling_layer=False)
        biases = sum(p.numel() for name, p in module.named_parameters() if name.endswith("bias"))
        d, f, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
        assert biases == d + layers * (4 * d + f + d + 2 * d)
        assert round(biases / sum(p.numel() for p in module.parameters()), 4) == share


def test_a_llama_has_no_biases(tiny_decoder: str) -> None:
    with pytest.raises(UnsupportedError, match=r"tiny-decoder \(LlamaForCausalLM\) has none\n.*method=layer_norm"):
        trained(tiny_decoder, Config())


def test_a_name_without_a_bias(tiny_encoder: str) -> None:
    with pytest.raises(
        InputError, match=r"method\.biases must be.*got 'qurey', which matches none\. Did you mean 'query'"
    ):
        trained(tiny_encoder, Config(biases=["qurey"]))
    with pytest.raises(InputError, match="got an empty list"):
        trained(tiny_encoder, Config(biases=[]))


def test_the_biases_of_an_encoder_decoder(home: Path, tiny_t5_path: Path, tmp_path: Path) -> None:
    """A T5 has none; a BART has them in every layer."""
    config = BartConfig(
        vocab_size=384,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        max_position_embeddings=64,
    )
    BartForConditionalGeneration(config).save_pretrained(str(tmp_path / "bart"))
    AutoTokenizer.from_pretrained(str(tiny_t5_path)).save_pretrained(str(tmp_path / "bart"))
    name = pull(f"file:{tmp_path / 'bart'}", alias="bart").name
    model = build(load_model(open_store(), name, dtype="fp32", device="cpu"), Config())
    trained = {name: p for name, p in model.module.named_parameters() if p.requires_grad}
    assert all(name.endswith(".bias") for name in trained)
    forward, norms = 64 + 32, 1 + 2 + 1 + 3  # after the embeddings of each stack, and in each block
    assert sum(p.numel() for p in trained.values()) == (4 + 8) * 32 + 2 * forward + norms * 32
