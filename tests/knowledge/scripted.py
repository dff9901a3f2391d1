"""An engine that answers what a function says."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from luthier.core.engine import ContinuationScore, Generation, Sampling, ScoreRequest
from luthier.core.message import Prompt, last_user_text
from luthier.core.run import Progress, no_progress
from luthier.engines.fake import Config, FakeEngine

Speak = Callable[[str], str]


class Scripted(FakeEngine):
    """``speak`` is given the last user turn. ``asked`` is what was asked, ``likelihood`` scores a continuation after a prompt."""

    def __init__(self, speak: Speak, likelihood: Callable[[str, str], float] | None = None) -> None:
        super().__init__("scripted", Config(context_length=100_000))
        self.speak, self.likelihood = speak, likelihood
        self.asked: list[str] = []

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, progress: Progress = no_progress
    ) -> list[Generation]:
        texts = [last_user_text(prompt) for prompt in prompts]
        self.asked += texts
        return [Generation(self.speak(text), (), (), "stop") for text in texts]

    def score(
        self, requests: Sequence[ScoreRequest], progress: Progress = no_progress
    ) -> list[tuple[ContinuationScore, ...]]:
        assert self.likelihood is not None
        return [
            tuple(ContinuationScore(self.likelihood(last_user_text(r.prompt), text), 3) for text in r.continuations)
            for r in requests
        ]
