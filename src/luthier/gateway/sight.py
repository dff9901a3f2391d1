"""What the gates of ``data from-feedback`` compare with: evaluated texts, trusted labels, an embedder, the rules of the guardrails."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from luthier.core.engine import EMBED, require
from luthier.core.errors import InputError
from luthier.data.gates import Sight
from luthier.data.poisoning import Embed
from luthier.data.read import read
from luthier.evaluation.held_out import evaluated_texts, held_out_texts
from luthier.gateway.guardrails._attack_rules import evidence, rules
from luthier.gateway.guardrails._attack_text import readings
from luthier.store.database import Store
from luthier.strategies._load import load

SURE = 0.8
"""How sure the rules must be that a text is an attack: surer than a guardrail, which only looks at one request."""


def sight_of(
    store: Store,
    *,
    held_out: Sequence[str | Path] = (),
    trusted: str | Path | None = None,
    embedder: str | None = None,
) -> Sight:
    """What can be compared with: the inputs of all recorded evaluations and of ``held_out`` files, the labels of the file ``trusted``, the
    likeness by the model ``embedder``, and the rules against injections.

    Raises InputError for a ``trusted`` file without labels and an embedder that cannot embed, and what reading and loading raise.
    """
    named = {str(path): held_out_texts(path) for path in held_out}
    labelled = read(trusted, skip_bad=True) if trusted is not None else None
    if labelled is not None and labelled.kind != "labelled":
        raise InputError(f"trusted must be a file of texts with labels; {trusted} is of kind {labelled.kind}")
    return Sight(
        held_out=evaluated_texts(store) | named,
        trusted=[(each.text, str(each.target)) for each in labelled.examples] if labelled is not None else (),
        embed=_embed(store, embedder) if embedder is not None else None,
        suspicious=suspicious,
    )


def suspicious(text: str) -> str:
    """Why a text looks like an injection, by the guardrails' rules; "" for one that does not."""
    if not text.strip():
        return ""
    score, names = evidence(readings(text), rules("injection", "indirect"))
    return f"it reads like an injection ({', '.join(names)})" if score >= SURE else ""


def _embed(store: Store, name: str) -> Embed:
    engine = load(name, store=store)
    require(engine, EMBED)
    return lambda texts: engine.embed(list(texts))
