"""Luthier: adapt a foundation model in every way, prove which way is best, serve the winner, learn from what happens.

The verbs are loaded when they are first used, so that ``import luthier`` stays fast.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

__version__ = "0.1.0"

# On a CPU PyTorch keeps what oneDNN prepared for every shape of a product in bf16, in two caches of 1,024 entries and 0.3 MB each (measured, torch
# 2.13: in training, where every micro-batch has a length of its own, 17 MB a micro-batch). They are read when first used, so before torch.
for _cache in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
    os.environ.setdefault(_cache, "128")

_VERBS = {
    "pull": "luthier.models.pull",
    "load": "luthier.strategies._load",
    "load_many": "luthier.strategies._load",
    "generate_mixed": "luthier.engines._mixed",
    "read": "luthier.data.read",
    "inspect": "luthier.data.inspect",
    "split": "luthier.data.split",
    "answers": "luthier.data.answers",
    "mixture": "luthier.data.mixture",
    "rewards": "luthier.objectives._rewards",
    "tune": "luthier.training.tune",
    "pipeline": "luthier.training.pipeline",
    "scaling": "luthier.training.scaling",
    "export": "luthier.models.export",
    "new": "luthier.models.new",
    "shrink": "luthier.models.shrink",
    "evaluate": "luthier.evaluation.evaluate",
    "compare": "luthier.evaluation.compare",
    "tournament": "luthier.tournament.tournament",
    "continual": "luthier.tournament.continual",
    "promote": "luthier.tournament.promote",
    "serve": "luthier.gateway.serve",
    "running": "luthier.gateway.serve",
    "guard": "luthier.gateway.guard.check",
    "give_feedback": "luthier.gateway.api.feedback",
    "infer_feedback": "luthier.data.implicit",
    "drift": "luthier.evaluation.drift",
    "from_feedback": "luthier.data.feedback",
    "lineage": "luthier.store.lineage",
    "run_batch": "luthier.gateway.batch.offline",
    "create_key": "luthier.store.keys",
    "list_keys": "luthier.store.keys",
    "revoke_key": "luthier.store.keys",
    "rotate_key": "luthier.store.keys",
    "limit_key": "luthier.store.keys",
    "limit_tenant": "luthier.store.keys",
    "audit": "luthier.store.audit",
    "create_base": "luthier.knowledge.base",
    "open_base": "luthier.knowledge.base",
    "remove_base": "luthier.knowledge.base",
    "rebuild_base": "luthier.knowledge.base",
    "cut_base": "luthier.knowledge.cuts",
    "cut_file": "luthier.knowledge.cuts",
    "rag": "luthier.knowledge.rag",
    "open_rag": "luthier.knowledge.rag",
    "measure": "luthier.knowledge.measure",
    "sweep": "luthier.tournament.sweep",
    "ask": "luthier.apps.sql.ask",
}

_OPENERS = {"kb": "luthier.knowledge.rag", "db": "luthier.apps.sql.named"}
"""What opens names that begin with ``kb:`` or ``db:``. Wherever a model's name is asked for, such names are good, too."""


def opener(name: str) -> Any | None:
    """The function ``open_named`` of what lies above ``strategies`` in the layout and opens names such as this one; None for a model's own name.

    ``strategies._load``, which may not import it, asks here: the package knows all of its folders.
    """
    kind, colon, _ = name.partition(":")
    if not colon or kind not in _OPENERS:
        return None
    return importlib.import_module(_OPENERS[kind]).open_named


def __getattr__(name: str) -> Any:
    if name in _VERBS:
        return getattr(importlib.import_module(_VERBS[name]), name)
    raise AttributeError(f"module 'luthier' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*_VERBS, "__version__"])
