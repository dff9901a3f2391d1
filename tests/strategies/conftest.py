"""An engine that remembers what it was asked and can be told to fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from luthier.core.engine import ContinuationScore, Delta, Generation, Sampling, ScoreRequest
from luthier.core.message import Prompt
from luthier.core.run import Progress, no_progress
from luthier.engines.fake import Config, FakeEngine


class SpyEngine(FakeEngine):
    """``batches`` holds the prompts of each generate, ``samplings`` how they were sampled; ``refuse`` may return an error to raise."""

    def __init__(self, refuse: Callable[[Prompt, Sampling], Exception | None] | None = None, **config: Any) -> None:
        super().__init__("fake", Config(**config))
        self.refuse = refuse or (lambda prompt, sampling: None)
        self.batches: list[list[Prompt]] = []
        self.samplings: list[Sampling] = []
        self.scored: list[ScoreRequest] = []
        self.made: list[Generation] = []
        self.closed = 0

    @property
    def asked(self) -> list[Prompt]:
        return [prompt for batch in self.batches for prompt in batch]

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, progress: Progress = no_progress
    ) -> list[Generation]:
        self.batches.append(list(prompts))
        self.samplings.append(sampling)
        for prompt in prompts:
            error = self.refuse(prompt, sampling)
            if error is not None:
                raise error
        made = super().generate(prompts, sampling, progress)
        self.made += made
        return made

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Delta]:
        self.batches.append([prompt])
        self.samplings.append(sampling)
        return super().stream(prompt, sampling)

    def score(
        self, requests: Sequence[ScoreRequest], progress: Progress = no_progress
    ) -> list[tuple[ContinuationScore, ...]]:
        self.scored += requests
        return super().score(requests, progress)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def spy() -> Callable[..., SpyEngine]:
    """Makes a SpyEngine."""
    return SpyEngine
