"""The sub-layers of blocks, found in architectures that name and order their layers differently."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import nn

from luthier.core.errors import UnsupportedError
from luthier.methods._parts import Sublayer, sublayers

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 50,
    "pad_token_id": 0,
    "eos_token_id": 2,
}
STACKS = {  # a BART names its sizes otherwise
    "d_model": 32,
    "vocab_size": 50,
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 64),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
}
LLAMAS = ("self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj", "post_attention_layernorm", True)
BERTS = ("attention.output.dense", "intermediate.dense", "output.dense", "output.LayerNorm", False)
CASES: dict[str, tuple[str, dict[str, Any], tuple[str, str, str, str | None, bool]]] = {
    "LlamaForCausalLM": ("model.layers.1.", {}, LLAMAS),
    "Qwen3ForCausalLM": ("model.layers.1.", {"head_dim": 8}, LLAMAS),  # norms inside attention
    "Phi3ForCausalLM": (
        "model.layers.1.",
        {},
        ("self_attn.o_proj", "mlp.gate_up_proj", *LLAMAS[2:]),
    ),  # o_proj is first
    "OPTForCausalLM": (
        "model.decoder.layers.1.",
        {"ffn_dim": 64, "word_embed_proj_dim": 32},
        ("self_attn.out_proj", "fc1", "fc2", "final_layer_norm", True),
    ),
    "BertModel": ("encoder.layer.1.", {}, BERTS),
    "RobertaModel": ("encoder.layer.1.", {}, BERTS),
    "DistilBertModel": (
        "transformer.layer.1.",
        {"dim": 32, "n_heads": 4, "hidden_dim": 64, "n_layers": 2},
        ("attention.out_lin", "ffn.lin1", "ffn.lin2", "output_layer_norm", False),
    ),
    "Gemma2ForCausalLM": ("model.layers.1.", {"head_dim": 8}, (*LLAMAS[:3], None, True)),  # four norms a block
    "Olmo2ForCausalLM": ("model.layers.1.", {}, (*LLAMAS[:3], None, True)),  # normalises what sub-layers return
    "PhiForCausalLM": ("model.layers.1.", {}, ("self_attn.dense", "mlp.fc1", "mlp.fc2", None, True)),  # one for both
    "GPTNeoXForCausalLM": (  # attention and feed-forward side by side
        "gpt_neox.layers.1.",
        {},
        ("attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h", None, True),
    ),
}


def empty(model: str, sizes: dict[str, Any]) -> nn.Module:
    kind = getattr(transformers, model)
    with torch.device("meta"):
        return kind(kind.config_class(**sizes))


@pytest.mark.parametrize("model", CASES)
def test_attention_and_feed_forward_of_a_block(model: str) -> None:
    prefix, own, (output, first, second, norm, norm_first) = CASES[model]
    found = sublayers(empty(model, {**SIZES, **own} if model != "DistilBertModel" else own))
    assert [(part.kind, part.block) for part in found] == [
        (kind, block) for block in (0, 1) for kind in ("attention", "feed_forward")
    ]
    assert found[2].output == prefix + output
    assert found[3] == Sublayer(
        "feed_forward", prefix + first, prefix + second, norm and prefix + norm, norm_first, block=1
    )


def test_both_stacks_and_cross_attention() -> None:
    found = sublayers(empty("BartModel", STACKS))
    assert [(part.kind, part.output) for part in found if part.block == 1] == [
        ("attention", "encoder.layers.1.self_attn.out_proj"),
        ("feed_forward", "encoder.layers.1.fc2"),
        ("attention", "decoder.layers.1.self_attn.out_proj"),
        ("cross_attention", "decoder.layers.1.encoder_attn.out_proj"),
        ("feed_forward", "decoder.layers.1.fc2"),
    ]
    assert not any(part.norm_first for part in found if part.kind == "feed_forward")


def test_models_without_such_blocks_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="MambaForCausalLM has no blocks of attention"):
        sublayers(empty("MambaForCausalLM", {k: SIZES[k] for k in ("hidden_size", "num_hidden_layers", "vocab_size")}))


def test_a_feed_forward_of_experts_is_refused() -> None:
    model = empty("LlamaForCausalLM", SIZES)
    for block in model.model.layers:
        block.mlp = nn.ModuleList([type(block.mlp)(model.config) for _ in range(3)])
    with pytest.raises(UnsupportedError, match="have 3 feed-forwards each: a mixture of experts") as error:
        sublayers(model)
    assert "method=lora" in (error.value.hint or "")
    fused = sublayers(empty("MixtralForCausalLM", SIZES))  # experts that are no linear layers at all
    assert {part.kind for part in fused} == {"attention"}
