"""Training a new model from nothing: what a run needs to know beside its data, and whether the data is enough for the model.

Hoffmann et al. 2022 (Chinchilla, table A3): training compute is best spent on about 20 tokens a parameter. Muennighoff et al. 2023: text that is read up
to four times is nearly as good as new text. Kaplan et al. 2020 (equation D.1): the learning rate falls with the model's size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from luthier.core.catalog import Entry
from luthier.core.errors import UnsupportedError
from luthier.core.model import ModelRecord

CHINCHILLA = 20.0
"""Tokens a parameter that spend a compute budget best."""
_REPEATS = 4.0


@dataclass(frozen=True)
class Advice:
    """``tokens`` will be read in all, of which ``unique`` are different; a parameter is counted once however often it is used."""

    parameters: int
    without_embeddings: int
    tokens: int
    unique: int

    @property
    def per_parameter(self) -> float:
        """Tokens read for each parameter."""
        return self.tokens / max(1, self.parameters)

    @property
    def passes(self) -> float:
        """How often each token is read."""
        return self.tokens / max(1, self.unique)

    def text(self) -> str:
        """The same in plain words."""
        ratio, passes = self.per_parameter, self.passes
        read = (
            f"{_count(self.unique)} tokens {_times(passes)}"
            if passes > 0.95
            else f"{_count(self.tokens)} of the data's {_count(self.unique)} tokens"
        )
        found = (
            f"{_count(self.parameters)} parameters ({_count(self.without_embeddings)} without embeddings) read {read}: "
            f"{ratio:.2g} tokens a parameter; about {CHINCHILLA:.0f} spend the same compute best. "
        )
        if ratio < CHINCHILLA / 2:
            smaller = math.sqrt(self.parameters * self.tokens / CHINCHILLA)
            found += f"The model is large for so little text: read more, or spend the same compute on about {_count(smaller)} parameters."
        elif ratio > CHINCHILLA * 4:
            found += "The model is small for so much text: it still gets better, but a larger one would learn more of the same compute."
        else:
            found += "That is near the best."
        if passes > _REPEATS:
            found += f" Beyond {_REPEATS:.0f} passes, reading the same text again helps little."
        return found

    def as_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        return asdict(self) | {"tokens_per_parameter": round(self.per_parameter, 3), "text": self.text()}


def advice(base: ModelRecord, tokens: int, unique: int) -> Advice | None:
    """What to say of training ``base`` on so many tokens; None when it is no new model."""
    if not is_new(base):
        return None
    return Advice(int(base.meta["parameters"]), int(base.meta["without_embeddings"]), tokens, unique)


def is_new(record: ModelRecord) -> bool:
    """Whether a model has the random weights that it was made with."""
    return record.kind == "base" and bool(record.meta.get("random"))


def defaults(base: ModelRecord) -> Mapping[str, Any]:
    """Training settings that suit random weights: the learning rate by size, and weight decay and AdamW's second decay of Brown et al. 2020, appendix B.

    The latter measured too: after 98,000 tokens, a held-out perplexity of 618.0 instead of 631.5 with 0.999 (``benchmarks/pretrain.py``)."""
    if not is_new(base):
        return {}
    size = max(int(base.meta["without_embeddings"]), 10_000)
    rate = max(0.003239 - 0.0001395 * math.log(size), 1e-4)
    return {"learning_rate": float(f"{rate:.2g}"), "weight_decay": 0.1, "optimizer": {"name": "adamw", "beta2": 0.95}}


def require_whole(method: Entry, name: str) -> None:
    """Raise UnsupportedError when ``method`` would leave the random weights of the model ``name`` as they are."""
    if method.module.SAVES != "weights":
        raise UnsupportedError(
            f"{name} has random weights, and method {method.name} leaves most of them as they are",
            hint=f"train it first: method=full; then tune the result: model.base=NAME method={method.name}",
        )


def _count(number: float) -> str:
    for size, sign in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{sign}"
    return f"{number:.0f}"


def _times(passes: float) -> str:
    return "once" if abs(passes - 1) < 0.05 else f"{passes:.2g} times"
