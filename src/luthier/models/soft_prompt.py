"""Soft prompts: virtual tokens, with keys and values of their own, that stand before every prompt.

In a causal model each of them is a beginning whose keys and values are known before the first real token: a prefix (Li and Liang 2021) is
keys and values, and those of trained embeddings (Lester et al. 2021; Liu et al. 2021) depend on nothing but themselves, so that they
are computed once, in a batch of one, and serve all rows. Real tokens follow at the positions after them. The parameters and their
files are PEFT's; the numbers are those of its ``PeftModelForCausalLM``, which computes the virtual tokens again in every row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

if TYPE_CHECKING:
    from luthier.models.prefix import KeysValues

EMBEDDINGS = frozenset({"PROMPT_TUNING", "P_TUNING"})
"""PEFT's types whose virtual tokens are embeddings: they go through the model."""
KINDS = EMBEDDINGS | {"PREFIX_TUNING"}
"""PEFT's types that are served here."""

_computed: WeakKeyDictionary[Any, tuple[Any, KeysValues]] = WeakKeyDictionary()


def task_of(architecture: str) -> str:
    """PEFT's word for what a soft prompt is put around: it decides where PEFT's own forward puts it."""
    return {"decoder": "CAUSAL_LM", "encoder": "FEATURE_EXTRACTION", "encoder-decoder": "SEQ_2_SEQ_LM"}[architecture]


def set_sizes(config: Any, module: Any) -> None:
    """Tell a PEFT config the sizes of ``module``, which are not called the same in every architecture's configuration."""
    from peft.utils.other import _prepare_prompt_learning_config

    own = module.config.get_text_config()
    config.num_layers, config.token_dim = own.num_hidden_layers, own.hidden_size
    config.num_attention_heads = own.num_attention_heads
    _prepare_prompt_learning_config(config, module.config)  # those of keys and values, where they are fewer


def is_soft(model: Any) -> bool:
    """Whether ``model`` is a PeftModel whose adapters are soft prompts: nothing in its base model is changed."""
    return bool(getattr(model, "_is_prompt_learning", False))


def virtual_tokens(module: Any) -> int:
    """How many virtual tokens stand before every row of what ``module`` reads; 0 without a soft prompt."""
    if not is_soft(module) or module._adapters_disabled:
        return 0
    return int(module.active_peft_config.num_virtual_tokens)


def keys_values(module: Any) -> KeysValues:
    """Keys and values of a decoder's soft prompt, one pair a layer, each (1, kv_heads, virtual tokens, size); [] without one.

    With gradients when they are enabled. Those of a loaded adapter are kept: its parameters stay what they are.
    """
    if not virtual_tokens(module):
        return []
    if torch.is_grad_enabled() or not module.active_peft_config.inference_mode:
        return _compute(module)
    encoder = module.prompt_encoder[module.active_adapter]
    weight = encoder.embedding.weight
    state = (weight._version, weight.data_ptr(), weight.dtype)
    if _computed.get(encoder, (None, []))[0] != state:
        _computed[encoder] = (state, _compute(module))
    return _computed[encoder][1]


def new_cache(module: Any, rows: int) -> Any:
    """A transformers cache that begins with the soft prompt in each of ``rows`` rows; empty without one."""
    from transformers import DynamicCache

    if not virtual_tokens(module):
        return DynamicCache()
    return put_into(DynamicCache(config=module.base_model.config.get_text_config()), keys_values(module), rows)


def source(module: Any, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the encoder of an encoder-decoder is given for ``ids`` and ``mask`` (rows, length): the soft prompt's embeddings come first."""
    tokens = virtual_tokens(module)
    if not tokens:
        return {"input_ids": ids, "attention_mask": mask}
    words = module.get_input_embeddings()(ids)
    prompt = module.get_prompt(1).to(words.dtype).expand(len(ids), -1, -1)
    return {"inputs_embeds": torch.cat([prompt, words], dim=1), "attention_mask": seen(mask, tokens)}


def seen(mask: torch.Tensor, tokens: int) -> torch.Tensor:
    """A mask (rows, length) with ``tokens`` ones before it."""
    return torch.nn.functional.pad(mask, (tokens, 0), value=1) if tokens else mask


def put_into(cache: Any, values: KeysValues, rows: int) -> Any:
    """``cache``, now with ``values`` of one row as what it holds next of each of ``rows`` rows."""
    for number, pair in enumerate(values):
        keys, values_of = (each.expand(rows, -1, -1, -1) for each in pair)
        cache.update(keys, values_of, number)
    return cache


def widened(mask: torch.Tensor | None, tokens: int) -> torch.Tensor | None:
    """An additive mask (rows, 1, queries, keys) with ``tokens`` visible keys before the others."""
    if mask is None or not tokens:
        return mask
    return torch.cat([mask.new_zeros(*mask.shape[:-1], tokens), mask], dim=-1)


def _compute(module: Any) -> KeysValues:
    from transformers import DynamicCache

    if module.active_peft_config.peft_type not in EMBEDDINGS:
        return [(layer.keys, layer.values) for layer in module.get_prompt(1).layers]
    base = module.base_model
    cache = DynamicCache(config=base.config.get_text_config())
    base.get_decoder()(
        inputs_embeds=module.get_prompt(1).to(base.dtype),
        position_ids=torch.arange(virtual_tokens(module), device=base.device)[None],
        past_key_values=cache,
        use_cache=True,
    )
    return [(layer.keys, layer.values) for layer in cache.layers]
