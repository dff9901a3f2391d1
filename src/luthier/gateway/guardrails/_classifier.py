"""Asking a classifier about texts of any length: in windows, the strongest of which counts; the same text is asked about once."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from threading import Lock

from luthier.core.engine import GENERATE, SCORE, Engine, Sampling, ScoreRequest, require
from luthier.core.errors import InputError
from luthier.core.message import user
from luthier.gateway.guardrails._contract import Models

WINDOW = 1_500
OVERLAP = 200
MOST_WINDOWS = 96
REMEMBERED = 2_048


@dataclass
class Classifier:
    """An engine that answers with one of its labels. Safe to use from several threads."""

    engine: Engine
    labels: tuple[str, ...]
    _known: OrderedDict[bytes, tuple[dict[str, float], ...]] = field(default_factory=OrderedDict, repr=False)
    _lock: Lock = field(default_factory=Lock, repr=False)

    def probabilities(self, text: str) -> tuple[dict[str, float], ...]:
        """The probability of each label, window by window."""
        key = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        with self._lock:
            known = self._known.get(key)
            if known is not None:
                self._known.move_to_end(key)
                return known
        made = tuple(self._asked(windows(text)))
        with self._lock:
            self._known[key] = made
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return made

    def strongest(self, text: str, counted: Mapping[str, float]) -> tuple[str, float, float]:
        """(label, its probability, how far it is over its threshold) of the window in which a counted label is most over its own."""
        best = ("", 0.0, -math.inf)
        for window in self.probabilities(text) if text.strip() else ():
            for label, least in counted.items():
                score = window.get(label, 0.0)
                if score - least > best[2]:
                    best = (label, score, score - least)
        return best

    def together(self, text: str, counted: Sequence[str]) -> float:
        """The probability that the text has one of these labels: the strongest window's."""
        found = self.probabilities(text) if text.strip() else ()
        return max((sum(window.get(label, 0.0) for label in counted) for window in found), default=0.0)

    def _asked(self, texts: Sequence[str]) -> list[dict[str, float]]:
        if SCORE in self.engine.info.capabilities:
            asked = self.engine.score([ScoreRequest(user(text), self.labels) for text in texts])
            return [_softmax(dict(zip(self.labels, (each.logprob for each in row), strict=True))) for row in asked]
        answers = self.engine.generate([user(text) for text in texts], Sampling(max_new_tokens=16))
        named = {label.casefold(): label for label in self.labels}
        return [{named.get(answer.text.strip().casefold(), ""): 1.0} for answer in answers]


def open_classifier(models: Models, name: str, counted: Sequence[str], *, option: str = "labels") -> Classifier:
    """The classifier of this name, whose labels must hold those that are counted.

    A model that does not say its labels (a remote one) is asked for one of the counted. Raises InputError for a model that has others, or
    that cannot answer.
    """
    engine = models.engine(name)
    labels = engine.info.labels
    if not labels:
        require(engine, GENERATE)
        if engine.info.answers or not counted:
            raise InputError(
                f"classifier: {name} does not answer with labels", hint="luthier tune RUN.yaml with texts and labels"
            )
        return Classifier(engine, tuple(counted))
    missing = [label for label in counted if label not in labels]
    if missing:
        raise InputError(f"{option}: {name} has no label {missing[0]!r}; it has: {', '.join(labels)}")
    return Classifier(engine, labels)


def windows(text: str) -> list[str]:
    """Parts of ``WINDOW`` characters that overlap; of a text that has too many, those of its beginning and its end."""
    if len(text) <= WINDOW:
        return [text]
    parts = [text[at : at + WINDOW] for at in range(0, len(text) - OVERLAP, WINDOW - OVERLAP)]
    half = MOST_WINDOWS // 2
    return parts if len(parts) <= MOST_WINDOWS else parts[:half] + parts[-half:]


def _softmax(logprobs: dict[str, float]) -> dict[str, float]:
    top = max(logprobs.values())
    weights = {label: math.exp(value - top) for label, value in logprobs.items()}
    total = sum(weights.values())
    return {label: weight / total for label, weight in weights.items()}
