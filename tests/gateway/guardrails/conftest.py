"""Models that guardrails ask, as far as a test needs them: what they say follows from the words of the text."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest

from luthier.core.engine import (
    EMBED,
    GENERATE,
    SCORE,
    ContinuationScore,
    Delta,
    Engine,
    EngineInfo,
    Generation,
    Sampling,
    ScoreRequest,
    Vectors,
)
from luthier.core.errors import NotFoundError
from luthier.core.message import Prompt, last_user_text
from luthier.gateway.access.caller import Caller
from luthier.gateway.exchange import Exchange
from luthier.gateway.guard.layer import open_guard
from luthier.gateway.guard.rules import Rule
from luthier.gateway.guard.run import Guard
from luthier.gateway.guardrails._contract import Context
from luthier.store.database import open_store

NAMES = re.compile(r"Ada Byron|Grace|张伟")


@dataclass
class Reader:
    """``labels`` make it a classifier that says ``bad`` of texts with the word; ``tags`` a tagger of names; else it embeds words."""

    name: str
    labels: tuple[str, ...] = ()
    answers: str = ""
    calls: int = 0

    @property
    def info(self) -> EngineInfo:
        can = {GENERATE, SCORE} if self.labels else {GENERATE} if self.answers else {EMBED}
        return EngineInfo(self.name, "reader", frozenset(can), labels=self.labels, answers=self.answers)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, progress: object = None) -> list[Generation]:
        self.calls += 1
        out = []
        for prompt in prompts:
            text = last_user_text(prompt)
            found = [{"type": "PERSON", "start": m.start(), "end": m.end(), "text": m[0]} for m in NAMES.finditer(text)]
            out.append(Generation(json.dumps(found), (), (), "stop"))
        return out

    def score(self, requests: Sequence[ScoreRequest], progress: object = None) -> list[tuple[ContinuationScore, ...]]:
        self.calls += 1
        out = []
        for request in requests:
            bad = 0.95 if "awful" in last_user_text(request.prompt) else 0.02
            share = {"bad": bad}
            rest = (1 - bad) / (len(self.labels) - 1)
            out.append(tuple(ContinuationScore(math.log(share.get(label, rest)), 1) for label in request.continuations))
        return out

    def embed(self, texts: Sequence[str], progress: object = None) -> Vectors:
        self.calls += 1
        out = np.zeros((len(texts), 64), np.float32)
        for row, text in enumerate(texts):
            for word in re.findall(r"\w+", text.lower()) or ["?"]:
                out[row, crc32(word.encode()) % 64] += 1
        return out / np.linalg.norm(out, axis=1, keepdims=True)

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Delta]:
        raise AssertionError

    def close(self) -> None:
        self.calls = -1


READERS: dict[str, Engine] = {
    "judge": Reader("judge", labels=("bad", "good", "unknown")),
    "tagger": Reader("tagger", answers="tags"),
    "embedder": Reader("embedder"),
}


@dataclass
class Models:
    """The readers by their names."""

    def engine(self, name: str) -> Engine:
        if name not in READERS:
            raise NotFoundError(f"no model is called {name!r}")
        return READERS[name]


@pytest.fixture
def models() -> Models:
    """What entries are prepared with."""
    return Models()


@pytest.fixture
def make_guard(tmp_path: Path) -> Iterator[Callable[..., Guard]]:
    """``make_guard({"name": ..., ...}, ...)``: a guard of these rules, closed with the test."""
    made: list[Guard] = []
    store = open_store(tmp_path / "guard-home")

    def make(*rules: dict[str, object]) -> Guard:
        made.append(open_guard([Rule.model_validate(rule) for rule in rules], READERS, store))
        return made[-1]

    yield make
    for guard in made:
        guard.close()


@pytest.fixture
def make_exchange() -> Callable[..., Exchange]:
    """An exchange of a caller who may do everything."""

    def make(model: str = "m", tenant: str = "local", **options: object) -> Exchange:
        return Exchange("chat", model, Caller(tenant=tenant), **options)  # type: ignore[arg-type]

    return make


@pytest.fixture
def look() -> Callable[..., list[str]]:
    """``look(name, text, config, **context)``: the kinds that an entry finds in a text."""
    from luthier.core import catalog

    def found(name: str, text: str, options: dict[str, object] | None = None, **context: object) -> list[str]:
        entry = catalog.load("guardrails", name)
        config = entry.configure(options or {})
        prepare = entry.optional("prepare")
        state = prepare(config, Models()) if prepare is not None else None
        return [
            finding.kind
            for finding in entry(text, config, Context(**{"direction": "input", "state": state, **context}))
        ]

    return found
