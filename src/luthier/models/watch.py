"""What the layers of a model make on the way, seen while it runs: the embeddings, every layer's output, the attention scores.

The scores are those before mask and softmax, which no attention kernel gives away: they are computed beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from luthier.core.errors import UnsupportedError
from luthier.models.attention import attend

NAME = "luthier_watched"

_told: ContextVar[list[Tensor] | None] = ContextVar("told", default=None)


@dataclass
class Seen:
    """Of one forward: ``hidden`` (rows, length, width), the embeddings first, then every layer's; ``scores`` (rows, heads, length,
    length) of every layer."""

    hidden: list[Tensor] = field(default_factory=list)
    scores: list[Tensor] = field(default_factory=list)


def blocks(module: Any) -> Any:
    """The list of a Hugging Face model's layers, adapters in them or not. Raises UnsupportedError where it has no single one."""
    count = int(module.config.get_text_config().num_hidden_layers)
    lists = {name: each for name, each in module.named_modules() if isinstance(each, torch.nn.ModuleList)}
    outer = [each for name, each in lists.items() if not any(name.startswith(f"{other}.") for other in lists)]
    found = [each for each in outer if len(each) == count]
    if len(found) != 1:
        raise UnsupportedError(f"{type(module).__name__} does not keep its {count} layers in one list of their own")
    return found[0]


def watch_scores(module: Any) -> None:
    """Let ``watch`` see the attention scores of ``module`` from now on. Raises UnsupportedError for architectures with an attention of their own."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if not getattr(module, "_supports_attention_backend", False):
        raise UnsupportedError(
            f"{type(module).__name__} has an attention of its own, whose scores cannot be seen",
            hint="objective.attention=0",
        )
    ALL_ATTENTION_FUNCTIONS.register(NAME, _attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    module.set_attn_implementation(NAME)


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    told = _told.get()
    if told is not None:
        keys = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        told.append(query @ keys.transpose(2, 3) * scale)
    return attend(module, query, key, value, attention_mask, scaling, dropout, **kwargs)


@contextmanager
def watch(module: Any) -> Iterator[Seen]:
    """While the block runs, what one forward of ``module`` makes; scores only after ``watch_scores``."""
    seen = Seen()

    def entered(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.hidden.append(args[0] if args else kwargs["hidden_states"])

    def left(_: Any, __: Any, out: Any) -> None:
        seen.hidden.append(out[0] if isinstance(out, tuple) else out)

    layers = blocks(module)
    hooks = [layers[0].register_forward_pre_hook(entered, with_kwargs=True)]
    hooks += [layer.register_forward_hook(left) for layer in layers]
    token = _told.set(seen.scores)
    try:
        yield seen
    finally:
        _told.reset(token)
        for hook in hooks:
            hook.remove()
