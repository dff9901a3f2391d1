"""Tiny GGUF files for tests, written with the gguf package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

CHATML = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' }}{% endfor %}"


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's row order: the two halves of each head interleaved (stated here by index, not by reshaping)."""
    size = weight.shape[0] // heads
    order = [h * size + (i % 2) * (size // 2) + i // 2 for h in range(heads) for i in range(size)]
    return weight[order]


def write_model(
    path: Path,
    module: Any,
    tokenizer: Any,
    *,
    arch: str = "llama",
    pre: str = "smollm",
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    more: Mapping[str, int] | None = None,
    drop: tuple[str, ...] = (),
    add: tuple[str, ...] = (),
) -> Path:
    """Write a transformers model of the Llama family as GGUF, tokenizer included."""
    config = module.config
    writer = gguf.GGUFWriter(str(path), arch)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_string("general.license", "apache-2.0")
    for key, value in (more or {}).items():
        writer.add_uint32(key, value)
    write_vocabulary(writer, tokenizer, pre)
    names = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    parts = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for name, tensor in module.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        new = names.get(name)
        if new is None:
            _, _, block, rest = name.split(".", 3)
            stem, last = rest.rsplit(".", 1)
            new = f"blk.{block}.{parts[stem]}.{last}"
        if new in drop:
            continue
        values = tensor.float().numpy()
        if arch == "llama" and "q_proj" in name:
            values = permuted(values, config.num_attention_heads)
        if arch == "llama" and "k_proj" in name:
            values = permuted(values, config.num_key_value_heads)
        if values.ndim > 1 and kind != gguf.GGMLQuantizationType.F32:
            values = gguf.quants.quantize(values, kind)
            writer.add_tensor(new, values, raw_dtype=kind)
        else:
            writer.add_tensor(new, values)
    for name in add:
        writer.add_tensor(name, np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_vocabulary(writer: gguf.GGUFWriter, tokenizer: Any, pre: str) -> None:
    """The tokenizer of a PreTrainedTokenizerFast, as GGUF metadata."""
    import json

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    special = {each["content"] for each in state["added_tokens"]}
    tokens = sorted(state["model"]["vocab"], key=state["model"]["vocab"].get)
    merges = [m if isinstance(m, str) else " ".join(m) for m in state["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if t in special else 1 for t in tokens])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokens.index("<|im_start|>"))
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_pad_token_id(tokens.index("<|endoftext|>"))
    writer.add_unk_token_id(tokens.index("<|endoftext|>"))
    writer.add_chat_template(CHATML)
