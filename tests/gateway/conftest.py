"""Servers with fake engines on free ports, asked through the official openai client."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from openai import OpenAI

from luthier.core.engine import (
    EMBED,
    GENERATE,
    STREAM,
    Delta,
    Engine,
    EngineInfo,
    Generation,
    Sampling,
    ScoreRequest,
    Vectors,
    require,
)
from luthier.core.engine import ContinuationScore as Scored
from luthier.core.message import Prompt
from luthier.core.run import Progress, no_progress
from luthier.engines._target import EngineTarget
from luthier.engines.fake import Config
from luthier.engines.fake import open as open_fake
from luthier.gateway.serve import running
from luthier.store.database import Store, open_store

LABELS = ("billing", "refund", "delivery")


@dataclass
class Scripted:
    """An engine that says ``pieces``. ``before`` is called before each piece with its number and may wait or raise."""

    pieces: Sequence[str] = ("one", " two", " three")
    before: Callable[[int], object] = lambda number: None
    name: str = "scripted"
    capabilities: frozenset[str] = frozenset({GENERATE, STREAM})
    parameters: Sequence[str] = ("top_k", "repetition_penalty")
    asked: list[tuple[Prompt, Sampling]] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    given: int = 0
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def info(self) -> EngineInfo:
        return EngineInfo(
            model=self.name,
            engine="scripted",
            capabilities=self.capabilities,
            model_digest="m" * 64,
            base_digest="b" * 64,
            template_digest="t" * 64,
            context_length=512,
            parameters=frozenset(self.parameters),
        )

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, progress: Progress = no_progress
    ) -> list[Generation]:
        self.batches.append(len(prompts))
        for prompt in prompts:
            self.asked.append((prompt, sampling))
            self.before(0)
        return [self._generation() for _ in prompts]

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Delta]:
        self.asked.append((prompt, sampling))
        try:
            for number, piece in enumerate(self.pieces):
                self.before(number)
                self.given += 1
                yield Delta(piece)
            self.before(len(self.pieces))
            yield Delta("", self._generation())
        finally:
            self.ended.set()

    def score(self, requests: Sequence[ScoreRequest], progress: Progress = no_progress) -> list[tuple[Scored, ...]]:
        require(self, "score")
        return []

    def embed(self, texts: Sequence[str], progress: Progress = no_progress) -> Vectors:
        require(self, EMBED)
        raise AssertionError

    def close(self) -> None:
        self.ended.set()

    def _generation(self) -> Generation:
        count = len(self.pieces)
        return Generation(
            "".join(self.pieces), tuple(range(count)), (1, 2), "stop", prompt_tokens=2, completion_tokens=count,
            latency_s=0.5, first_token_s=0.2,
        )  # fmt: skip


@dataclass(frozen=True)
class Server:
    """A running server: its base URL, its store, and an official client that does not retry."""

    base_url: str
    store: Store

    @property
    def root(self) -> str:
        """The URL without ``/v1``."""
        return self.base_url.removesuffix("/v1")

    def client(self, **options: object) -> OpenAI:
        return OpenAI(**{"base_url": self.base_url, "api_key": "unused", "max_retries": 0, "timeout": 30.0, **options})


def fake(name: str, **options: object) -> Engine:
    """A fake engine under ``name``."""
    return open_fake(EngineTarget(name), Config(**options))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """``fake`` (free text) and ``desk`` (three labels), shared by tests that leave nothing behind that others would see."""
    store = open_store(tmp_path_factory.mktemp("gateway"))
    engines = {"fake": fake("fake"), "desk": fake("desk", labels=LABELS)}
    with running(engines, store=store, price=["desk=2,4"]) as base_url:
        yield Server(base_url, store)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start servers of the test's own; they end with it."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def started(models: object, **settings: object) -> Server:
            store = settings.setdefault("store", open_store(tmp_path / "gateway-home"))
            return Server(stack.enter_context(running(models, **settings)), store)

        yield started


@pytest.fixture
def make_fake() -> Callable[..., Engine]:
    """``make_fake(name, **config)``: a fake engine."""
    return fake


@pytest.fixture
def scripted() -> type[Scripted]:
    """The class of engines that say what the test tells them to."""
    return Scripted
