"""Models as the store knows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

ModelKind = Literal["base", "adapter", "export", "endpoint"]
Architecture = Literal["decoder", "encoder", "encoder-decoder"]


@dataclass(frozen=True)
class ModelRecord:
    """A named model.

    base: weights that were pulled. adapter: what tuning produced (also full fine-tuning: ``meta["method"]`` says which).
    export: another file format of a base or adapter (GGUF). endpoint: a promoted winner, a name that points at ``target``
    with its strategy in ``meta["strategy"]``.

    ``base`` is the base model's name; ``digest`` the artifact's sha256 (the weights live in ``artifacts/<digest>/``); ``licence``
    an SPDX name or ``unknown``; ``size_bytes`` on disk. ``meta`` may hold: ``template_digest``, ``prompt`` (PromptTemplate as
    dict), ``labels``, ``method``, ``objective``, ``format``, ``quantization``, ``target``, ``strategy``, ``trainable_parameters``,
    ``context_length``, ``source``.
    """

    name: str
    kind: ModelKind
    architecture: Architecture
    digest: str
    size_bytes: int = 0
    licence: str = "unknown"
    base: str | None = None
    run_id: str | None = None
    created_at: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
