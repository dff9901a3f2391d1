"""Freeze: only the last blocks, or parts of the model that are named, are trained; the rest stays as it is.

Lee et al. 2019, "What Would Elsa Do? Freezing Layers During Transformer Fine-Tuning", section 3: a quarter of the blocks, the last
ones, reaches nine tenths of the quality of training all; which is the default here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.errors import InputError, did_you_mean
from luthier.methods._parts import of_modules, stacks, train_only
from luthier.models.adapters import inner_of
from luthier.models.load import LoadedModel

PAPER = "Lee et al. 2019, What Would Elsa Do? Freezing Layers During Transformer Fine-Tuning, https://arxiv.org/abs/1911.03090"
FAMILY = "selective"
SAVES = "delta"
SERVING: Mapping[str, Mapping[str, str]] = {
    "decoder": {"torch": "swap", "llamacpp": "merge"},
    "encoder": {"torch": "swap", "llamacpp": "no"},
    "encoder-decoder": {"torch": "swap", "llamacpp": "no"},
}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "decoder": {"learning_rate": 1e-4, "weight_decay": 0.01},
    "encoder": {"learning_rate": 2e-4, "weight_decay": 0.01},
    "encoder-decoder": {"learning_rate": 1e-4, "weight_decay": 0.01},
}


class Config(EntryConfig):
    """``last`` blocks to train, counted from the output (left out: a quarter of them, rounded up; none with ``parts``); of an
    encoder-decoder so many in each of its two stacks.

    ``parts``: names (or ends of names) of modules or parameters to train, such as [embed_tokens, model.norm, mlp.down_proj.weight].
    Both may be given together.
    """

    last: int | None = Field(None, ge=0)
    parts: list[str] | None = None


def build(model: LoadedModel, config: Config) -> LoadedModel:
    """Let the chosen blocks and parts require a gradient.

    Raises InputError for more blocks than there are, for nothing to train, and for a part that matches nothing, with near names.
    """
    module = inner_of(model)
    chosen = dict(_last(module, config))
    for part in config.parts or ():
        chosen |= _named(module, part)
    if not chosen:
        raise InputError(
            "method freeze trains nothing with last=0 and no parts", hint="give method.last or method.parts"
        )
    return train_only(model, chosen)


def _last(module: Any, config: Config) -> dict[str, Any]:
    if config.last == 0 or (config.last is None and config.parts):
        return {}
    every = stacks(module)
    fewest = min(map(len, every))
    if config.last is not None and config.last > fewest:
        raise InputError(f"method.last must be at most {fewest}, the number of blocks; got {config.last}")
    return of_modules(module, [name for names in every for name in names[-(config.last or -(-len(names) // 4)) :]])


def _named(module: Any, part: str) -> dict[str, Any]:
    """The parameters of one part. A tied parameter is found under each of its names."""
    modules = [name for name, _ in module.named_modules() if name == part or name.endswith(f".{part}")]
    if part and modules:
        return of_modules(module, modules)
    every = dict(module.named_parameters(remove_duplicate=False))
    found = {name: p for name, p in every.items() if name == part or name.endswith(f".{part}")}
    if not part or not found:
        known = {name.rsplit(".", 1)[-1] for name, _ in module.named_modules() if name}
        known = {name for name in known if not name.isdigit()}
        raise InputError(
            f"method.parts must be names (or ends of names) of modules or parameters; got {part!r}, which matches none. "
            f"{did_you_mean(part.rsplit('.', 1)[-1], known)}"
        )
    return found
