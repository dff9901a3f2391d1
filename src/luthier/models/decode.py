"""The parts of a causal language model that scoring and generation call one by one: hidden states, then only the logits needed."""

from __future__ import annotations

from typing import Any

import torch

from luthier.models.soft_prompt import new_cache, virtual_tokens, widened


def causal_model(module: Any) -> Any:
    """The Hugging Face causal model inside ``module``, without the PEFT model around it (its adapter layers stay active)."""
    return module.get_base_model() if hasattr(module, "get_base_model") else module


def hidden_states(
    module: Any,
    input_ids: torch.Tensor,
    *,
    position_ids: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    cache: Any = None,
) -> torch.Tensor:
    """Last hidden states (batch, length, width).

    ``mask`` is additive, (batch, 1, length, cached + length), or None for plain causal attention (right padding needs no more).
    ``cache`` is a transformers Cache that is read and extended. A soft prompt stands before every row: ``position_ids`` and ``mask``
    are those of the real tokens, while a ``cache`` that is given begins with it (``soft_prompt.new_cache``).
    """
    decoder = causal_model(module).get_decoder()
    if virtual := virtual_tokens(module):
        cache = new_cache(module, len(input_ids)) if cache is None else cache
        position_ids = None if position_ids is None else position_ids + virtual
        mask = widened(mask, virtual)
    out = decoder(
        input_ids=input_ids,
        attention_mask=mask,
        position_ids=position_ids,
        past_key_values=cache,
        use_cache=cache is not None,
    )
    return out.last_hidden_state  # type: ignore[no-any-return]


def logits(module: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Logits (..., vocabulary) for hidden states (..., width), with the scaling or soft cap that some architectures state."""
    model = causal_model(module)
    out = model.get_output_embeddings()(hidden)
    config = model.config.get_text_config()
    if (bias := getattr(model, "final_logits_bias", None)) is not None:  # BART
        out = out + bias[0]
    if (scale := getattr(config, "logits_scaling", None)) is not None:  # Granite
        out = out / scale
    if (scale := getattr(config, "logit_scale", None)) is not None:  # Cohere
        out = out * scale
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:  # Gemma
        out = torch.tanh(out / cap) * cap
    return out  # type: ignore[no-any-return]


def plain_head(module: Any) -> torch.nn.Linear | None:
    """The layer whose output the logits are, to the letter; None where ``logits`` does something besides."""
    model = causal_model(module)
    head, config = model.get_output_embeddings(), model.config.get_text_config()
    after = ("logits_scaling", "logit_scale", "final_logit_softcapping")
    adjusted = getattr(model, "final_logits_bias", None) is not None or any(
        getattr(config, name, None) is not None for name in after
    )
    return head if type(head) is torch.nn.Linear and not adjusted else None


def cache_layers(module: Any) -> int:
    """Layers that a key-value cache of ``module`` has: the base's, and those of a network beside it (``tuners.ladder_side``)."""
    base: int = causal_model(module).config.get_text_config().num_hidden_layers
    further = getattr(getattr(module, "base_model", None), "cache_layers", None)
    return base + (further() if further is not None else 0)


def attends_fully(module: Any) -> bool:
    """Whether every layer attends to its whole past: then one 4-D mask serves all layers and a cache can be shared."""
    config = causal_model(module).config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return all(kind == "full_attention" for kind in kinds)
    return getattr(config, "sliding_window", None) is None and getattr(config, "attention_chunk_size", None) is None
