"""AdapterFusion: attention that chooses, for each token and layer, among the outputs of adapters trained on other tasks.

Pfeiffer et al. 2021, "AdapterFusion: Non-Destructive Task Composition for Transfer Learning", section 3.2: query from what the adapters
read, keys and values from each adapter's output; base and adapters stay as they are, so nothing that they learned is lost. The value
matrix starts at the identity, so the untrained fusion is about the mean of its adapters (not the base). The authors' penalty on how
far V goes from the identity is left out, and the default learning rate is above their 5e-5, with which a thousand examples do not get
far. An encoder's fusion trains a head of its own. The adapters must be in the store wherever the fusion is loaded: its own file holds
the fusion alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.model import ModelRecord
from luthier.methods._peft import task_type, wrap
from luthier.models import parts, tuners
from luthier.models.adapters import peft_or_none
from luthier.models.load import LoadedModel, store_of

if TYPE_CHECKING:
    from luthier.store.database import Store

PAPER = "Pfeiffer et al. 2021, AdapterFusion: Non-Destructive Task Composition for Transfer Learning, https://arxiv.org/abs/2005.00247"
FAMILY = "additive"
SAVES = "adapter"
SERVING: Mapping[str, Mapping[str, str]] = {
    "decoder": {"torch": "swap", "llamacpp": "no"},
    "encoder": {"torch": "swap", "llamacpp": "no"},
    "encoder-decoder": {"torch": "swap", "llamacpp": "no"},
}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "decoder": {"learning_rate": 3e-4},
    "encoder": {"learning_rate": 3e-4},
    "encoder-decoder": {"learning_rate": 3e-4},
}


class Config(EntryConfig):
    """``adapters``: names of tuned models on the same base, made by pfeiffer_adapter, parallel_adapter or adapter (without its norms)."""

    adapters: list[str] = Field(min_length=2)


def needs(store: Store, base: ModelRecord, config: Config) -> list[dict[str, Any]]:
    """The adapters, looked up and checked: same base, same places. Raises NotFoundError, MismatchError, UnsupportedError."""
    found = parts.find_parts(store, base, config.adapters, ["BOTTLENECK"], where="method.adapters")
    parts.placed(found, where="method.adapters")
    return found


def build(model: LoadedModel, config: Config) -> LoadedModel:
    """Put the adapters and a fusion of them in. Raises as ``needs`` does."""
    store = store_of(model)
    found = needs(store, model.base, config)
    settings = tuners.tuner("adapter_fusion").CONFIG(
        **parts.placed(found, where="method.adapters"), parts=parts.plain(found), task_type=task_type(model)
    )
    built = wrap(model, settings, method="adapter_fusion")
    inner = peft_or_none(built)
    parts.fill(built, inner, inner.active_adapter, store)
    return built
