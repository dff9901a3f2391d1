"""An engine whose questions are put through a prompt template, with or without worked examples. Strategies build on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from luthier.core.digest import digest_json
from luthier.core.engine import ContinuationScore as Scored
from luthier.core.engine import Delta, Engine, EngineInfo, Generation, Sampling, ScoreRequest, Vectors
from luthier.core.errors import InputError, did_you_mean
from luthier.core.message import Prompt
from luthier.core.run import Progress, no_progress
from luthier.core.task import PromptTemplate


def read_prompt(prompt: Mapping[str, Any]) -> PromptTemplate:
    """The template in a strategy's config. Raises InputError for an unknown key, or an ``input`` without ``{input}``."""
    known = ("instruction", "input", "labels")
    for key in prompt:
        if key not in known:
            raise InputError(f"prompt: unknown key {key!r}. {did_you_mean(str(key), known)}")
    template = PromptTemplate.from_dict(dict(prompt))
    if "{input}" not in template.input:
        raise InputError(f"prompt.input must contain {{input}}, where the text goes; got {template.input!r}")
    return template


class Prompted:
    """``inner``, asked through ``template`` after ``shots`` (input, answer).

    Only a conversation that is one user turn is rewritten. A caller who sends a system turn or earlier turns has taken the prompt
    into their own hands, and raw text is not a conversation: both pass unchanged, so wrapping twice does no harm.
    """

    def __init__(self, inner: Engine, template: PromptTemplate, shots: Sequence[tuple[str, str]] = ()) -> None:
        self.inner = inner
        self.template = template
        self.shots = tuple(shots)
        digest = digest_json([template.as_dict(), self.shots]) if self.shots else template.digest
        self._info = inner.info.with_(prompt_digest=digest)

    @property
    def info(self) -> EngineInfo:
        """The inner engine's, with the digest of this prompt."""
        return self._info

    def rewrite(self, prompt: Prompt) -> Prompt:
        """What the inner engine is asked instead of ``prompt``."""
        if isinstance(prompt, str) or len(prompt) != 1 or prompt[0].role != "user":
            return prompt
        return self.template.messages(prompt[0].content, self.shots)

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, progress: Progress = no_progress
    ) -> list[Generation]:
        """One answer a prompt, in order."""
        return self.inner.generate([self.rewrite(p) for p in prompts], sampling, progress)

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Delta]:
        """The answer piece by piece."""
        return self.inner.stream(self.rewrite(prompt), sampling)

    def score(self, requests: Sequence[ScoreRequest], progress: Progress = no_progress) -> list[tuple[Scored, ...]]:
        """Log-likelihoods, one tuple a request, in order."""
        rewritten = [ScoreRequest(self.rewrite(r.prompt), r.continuations) for r in requests]
        return self.inner.score(rewritten, progress)

    def embed(self, texts: Sequence[str], progress: Progress = no_progress) -> Vectors:
        """Vectors of the bare texts: a prompt has no part in them."""
        return self.inner.embed(texts, progress)

    def close(self) -> None:
        """Close the inner engine."""
        self.inner.close()
