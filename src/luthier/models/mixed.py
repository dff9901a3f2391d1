"""Rows of one batch with adapters of their own: which of them one forward can take, and what they share of their prompts.

Light adapters (``models.light``) of any ranks and the bare base go together, and so do the adapters of one PEFT model whose layers read
``models.rows`` (``per_row``). Everything else is answered adapter by adapter: tensors of the base that are replaced, soft prompts, and
PEFT's other kinds, whose layers know one adapter at a time.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import torch

from luthier.core.errors import NotFoundError
from luthier.models import rows
from luthier.models.attach import select
from luthier.models.decode import cache_layers, causal_model
from luthier.models.load import Attached, LoadedModel
from luthier.models.prefix import SHARE_AT_LEAST, KeysValues, PrefixMemory, common_prefix, compute

Names = Sequence[str | None]


def groups(base: LoadedModel, names: Names) -> list[list[int]]:
    """The places of ``names`` (attached adapters, None for the bare base) that one forward can take together, in order of the first."""
    found: dict[Any, list[int]] = {}
    for place, name in enumerate(names):
        found.setdefault(group_of(base, name), []).append(place)
    return list(found.values())


def group_of(base: LoadedModel, name: str | None) -> Hashable:
    """Equal for adapters that one forward can take together."""
    held = _held(base, name)
    if held is None or held.light:
        return "light"
    if getattr(getattr(held.peft_model, "base_model", None), "per_row", False):
        return id(held.peft_model)
    return ("alone", name)


def prepare(base: LoadedModel, names: Names) -> None:
    """Make ``base`` ready for rows that ``names`` answer, all of one group; ``rows.answering`` then says which row is whose."""
    select(base, next((name for name in names if name is not None and base.attached[name].peft_name), None))


def row_names(base: LoadedModel, names: Names) -> tuple[str | None, ...]:
    """What attached adapters are called in ``models.rows``."""
    return tuple(
        name if held is None or held.light else held.peft_name
        for name, held in ((name, _held(base, name)) for name in names)
    )


def _held(base: LoadedModel, name: str | None) -> Attached | None:
    if name is not None and name not in base.attached:
        raise NotFoundError(f"adapter {name!r} is not attached; attached: {', '.join(base.attached) or 'none'}")
    return base.attached[name] if name is not None else None


def shared_tokens(module: Any, prompts: Sequence[Sequence[int]], names: Names, own: Names) -> int:
    """How many first tokens the rows of each adapter have in common, the same number for all: these are read once an adapter.

    0 when it is not worth a forward: too few, or no adapter has more than one row; and where networks beside the base (``own`` are the
    rows' names in ``models.rows``) have keys and values of their own, whose layers depend on what else is in the batch.
    """
    of: dict[str | None, list[Sequence[int]]] = {}
    for prompt, name in zip(prompts, names, strict=True):
        of.setdefault(name, []).append(prompt)
    most = min(common_prefix(alike) for alike in of.values())
    if len(of) == len(prompts) or most < SHARE_AT_LEAST:
        return 0
    with rows.answering(own):
        further = cache_layers(module) != causal_model(module).config.get_text_config().num_hidden_layers
    return 0 if further else most


@torch.inference_mode()
def beginning(
    module: Any, ids: Sequence[int], device: torch.device, memory: PrefixMemory, owner: str | None, own: str | None
) -> KeysValues:
    """Keys and values of ``ids`` as the adapter ``owner`` has them (``own`` is its name in ``models.rows``): remembered, or computed."""
    values = memory.exactly(owner, ids)
    if values is None:
        with rows.answering((own,)):
            values = compute(module, ids, device)
        memory.put(owner, ids, values)
    return values


def stacked(
    prefixes: Mapping[str | None, KeysValues], names: Names, length: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Layer by layer the first ``length`` keys and values of each row's own beginning, (rows, heads, length, size)."""
    own = [prefixes[name] for name in names]
    for layer in zip(*own, strict=True):
        yield torch.cat([keys[:, :, :length] for keys, _ in layer]), torch.cat([v[:, :, :length] for _, v in layer])
