"""A tiny decoder whose greedy choices are clear, its adapters, and the engines over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model

from luthier.core.engine import Engine, Sampling
from luthier.core.message import Message, user
from luthier.core.model import ModelRecord
from luthier.engines._open import open_engine
from luthier.models.attach import save_trained
from luthier.models.load import load_model
from luthier.store.artifacts import put, staged
from luthier.store.database import open_store
from luthier.store.models import register

QUESTIONS = [
    user("The parcel has not arrived."),
    user("refund the violin, 2 days"),
    (
        Message("system", "Be brief."),
        Message("user", "My lesson?"),
        Message("assistant", "Yes."),
        Message("user", "我的"),
    ),
    "The courier",
]
EXACT = {"type": "F32", "cache_type": "f32", "context_length": 512, "parallel": 2, "threads": 1}
GREEDY = Sampling(max_new_tokens=16)


def decoder(tokenizer: Path, folder: Path, family: str = "Llama", **changes: Any) -> Path:
    """A tiny decoder whose greedy choices are clear (large random weights) and mostly readable (other tokens are unlikely)."""
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "vocab_size": 384,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.4,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    config = getattr(transformers, f"{family}Config")(**{**options, **changes})
    module = getattr(transformers, f"{family}ForCausalLM")(config)
    with torch.no_grad():
        for key, parameter in module.named_parameters():
            if key.endswith(".bias"):
                parameter.copy_(torch.randn_like(parameter) * 0.2)
        module.get_output_embeddings().weight[unreadable(tokenizer)] *= 0.05
    module.save_pretrained(str(folder))
    transformers.AutoTokenizer.from_pretrained(str(tokenizer)).save_pretrained(str(folder))
    return folder


def unreadable(folder: Path) -> list[int]:
    """Ids of special tokens and of tokens that are not whole ASCII characters, but for a few parts of Chinese ones."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    texts = [tokenizer.decode([i]) for i in range(len(tokenizer))]
    special = set(tokenizer.all_special_ids)
    return [i for i, t in enumerate(texts) if i in special or not (t.isascii() and t.isprintable())]


def adapt(base: str, name: str, seed: int, saves: str = "adapter", **options: Any) -> ModelRecord:
    """A random adapter (or changed weights) of ``base`` in the store."""
    store = open_store()
    model = load_model(store, base, dtype="fp32")
    torch.manual_seed(seed)
    if saves == "adapter":
        settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "k_proj", "down_proj"], **options}
        config = LoraConfig(**settings, init_lora_weights=False)
        model.module = get_peft_model(model.module, config, autocast_adapter_dtype=False)
        with torch.no_grad():
            for key, parameter in model.module.named_parameters():
                if "lora_" in key:
                    parameter.mul_(3.0)
    else:
        with torch.no_grad():
            for parameter in model.module.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
    with staged(store) as folder:
        manifest = save_trained(model, folder, {"saves": saves, "method": {"name": "lora", "config": {}}})
        digest, size = put(store, folder)
    meta = {"template_digest": manifest["template_digest"]}
    return register(store, ModelRecord(name, "adapter", "decoder", digest, size, base=base, meta=meta))


def both(opened: list[Engine], name: str, **options: Any) -> tuple[Engine, Engine]:
    """(llama.cpp in full precision, torch in full precision)."""
    store = open_store()
    pair = (
        open_engine(store, name, "llamacpp", EXACT | options),
        open_engine(store, name, "torch", {"dtype": "fp32", "device": "cpu"}),
    )
    opened.extend(pair)
    return pair
