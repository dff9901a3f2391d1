"""Activation checkpointing: the backward pass computes each block again instead of remembering what happened inside it.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost": only the inputs of the blocks are kept, for about a third more computation.
transformers has this too, but drops the key-value cache of a block that is checkpointed; here shared beginnings (``models.packed``) and soft
prompts stand in such caches, and without them the numbers would be others. So a block is given, when it runs again, a cache as it was
when it ran first. Random numbers (dropout) are drawn again as they were: losses and gradients are those of training without.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import Context, copy_context
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from luthier.core.errors import UnsupportedError


def blocks(module: nn.Module) -> list[nn.Module]:
    """The transformer blocks of ``module``, none inside another; empty when it has none."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    found: list[tuple[str, nn.Module]] = []
    for name, each in module.named_modules():
        if isinstance(each, GradientCheckpointingLayer) and not any(name.startswith(f"{n}.") for n, _ in found):
            found.append((name, each))
    return [each for _, each in found]


@contextmanager
def checkpointed(module: nn.Module) -> Iterator[int]:
    """While entered, the blocks of ``module`` are computed again in the backward pass; gives how many there are.

    Raises UnsupportedError for a model without blocks that are known as such.
    """
    found = blocks(module)
    if not found:
        raise UnsupportedError(
            f"{type(module).__name__} has no transformer blocks whose activations could be computed again",
            hint="leave it out: train.checkpointing=off",
        )
    for block in found:
        block.forward = _again(block, block.forward)
    try:
        yield len(found)
    finally:
        for block in found:
            block.__dict__.pop("forward")


def _again(block: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        given: dict[int | str, Any] = dict(enumerate(args)) | kwargs
        place = _place_of_cache(given)
        around: list[Context] = []  # of the second run: tuners are told of a forward's rows and masks around it

        def within(*inputs: Any, **named: Any) -> Any:
            if around:
                return around[0].run(forward, *inputs, **named)
            around.append(copy_context())
            return forward(*inputs, **named)

        if place is None:
            return checkpoint(within, *args, use_reentrant=False, **kwargs)
        caches = [given.pop(place)]  # emptied at once: what the cache holds after this block need not be remembered
        before = _Before(caches[0], block)
        rest = [value for key, value in given.items() if isinstance(key, int)]
        others = {key: value for key, value in given.items() if isinstance(key, str)}

        def inside(*inputs: Any, **named: Any) -> Any:
            cache = caches.pop() if caches else before.cache()
            if isinstance(place, str):
                return within(*inputs, **named, **{place: cache})
            return within(*inputs[:place], cache, *inputs[place:], **named)

        return checkpoint(inside, *rest, use_reentrant=False, **others)

    return run


def _place_of_cache(given: dict[int | str, Any]) -> int | str | None:
    """The argument that is a key-value cache, by number or name."""
    from transformers.cache_utils import Cache

    return next((place for place, value in given.items() if isinstance(value, Cache)), None)


class _Before:
    """A cache as it was before ``block`` ran: only the layers that the block reads and extends."""

    def __init__(self, cache: Any, block: nn.Module) -> None:
        modules: Iterable[Any] = block.modules()
        numbers = {int(each.layer_idx) for each in modules if getattr(each, "layer_idx", None) is not None}
        self._both = [getattr(cache, name, None) for name in ("self_attention_cache", "cross_attention_cache")]
        if self._both[0] is not None:
            self._shell, self._parts = copy.copy(cache), [_Layers(each, numbers) for each in self._both]
            self._updated = dict(cache.is_updated)
            self._shell.self_attention_cache = self._shell.cross_attention_cache = None
        else:
            self._shell, self._parts = None, [_Layers(cache, numbers)]
        self._both = []

    def cache(self) -> Any:
        """One that the block may extend."""
        found = [part.cache() for part in self._parts]
        if self._shell is None:
            return found[0]
        whole = copy.copy(self._shell)
        whole.self_attention_cache, whole.cross_attention_cache = found
        whole.is_updated = dict(self._updated)
        return whole


class _Layers:
    """Some layers of a plain cache as they are now; the tensors are shared, updates put others in their place."""

    def __init__(self, cache: Any, numbers: set[int]) -> None:
        self._shell = copy.copy(cache)
        self._shell.layers = []
        self._kept = {n: copy.copy(cache.layers[n]) for n in numbers if n < len(cache.layers)}
        self._kind = cache.layer_class_to_replicate
        self._count = max(numbers, default=-1) + 1

    def cache(self) -> Any:
        """A cache with these layers at their places, and empty ones elsewhere."""
        from transformers.cache_utils import DynamicLayer

        found = copy.copy(self._shell)
        empty = self._kind or DynamicLayer
        found.layers = [copy.copy(self._kept[n]) if n in self._kept else empty() for n in range(self._count)]
        return found
