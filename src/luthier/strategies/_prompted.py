"""An engine whose questions are put through a prompt template, with or without worked examples. Strategies build on it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from luthier.core.digest import digest_json
from luthier.core.engine import ContinuationScore as Scored
from luthier.core.engine import (
    Delta,
    Engine,
    EngineInfo,
    Generation,
    Sampling,
    ScoreRequest,
    Vectors,
    answer_whole,
    check_health,
)
from luthier.core.errors import InputError
from luthier.core.message import Conversation, Message, Prompt
from luthier.core.run import Progress, no_progress
from luthier.core.task import PromptTemplate
from luthier.data.prompts import load_prompt, resolve_prompt

if TYPE_CHECKING:
    from luthier.store.database import Store

Shots = tuple[tuple[str, str], ...]
"""Worked examples: (input, answer) pairs."""


def read_prompt(prompt: Mapping[str, Any], template: str = "", store: Store | None = None) -> PromptTemplate:
    """The prompt in a strategy's config: its own instruction and input, or those of a catalogue ``template`` with the prompt's labels.

    Raises InputError for an unknown key or an ``input`` without ``{input}``, NotFoundError for an unknown template.
    """
    if not template:
        return resolve_prompt(prompt, store)
    if prompt.get("template") not in (None, template):
        raise InputError(f"template is {template!r}, and prompt.template {prompt['template']!r}; give one of them")
    values = {str(key): str(value) for key, value in dict(prompt.get("values") or {}).items()}
    return load_prompt(template, store).template_for(tuple(prompt.get("labels") or ()), **values)


def settled(prompt: Mapping[str, Any], template: str = "", store: Store | None = None) -> dict[str, Any]:
    """``read_prompt`` as plain values that need no catalogue any more, and say where they came from."""
    return plain(read_prompt(prompt, template, store))


def plain(prompt: PromptTemplate) -> dict[str, Any]:
    """``prompt`` as JSON gives it back, so that a config equals its stored self."""
    return {**prompt.as_dict(), "labels": list(prompt.labels)}


def is_question(prompt: Prompt) -> bool:
    """Whether ``prompt`` is one user turn, which a strategy may rewrite.

    A caller who sends a system turn or earlier turns has taken the prompt into their own hands, and raw text is not a conversation.
    """
    return not isinstance(prompt, str) and len(prompt) == 1 and prompt[0].role == "user"


class Prompted:
    """``inner``, asked through ``template`` after ``shots`` (input, answer).

    Only a conversation that is one user turn is rewritten, everything else passes unchanged, so wrapping twice does no harm.
    """

    def __init__(self, inner: Engine, template: PromptTemplate, shots: Sequence[tuple[str, str]] = ()) -> None:
        self.inner = inner
        self.template = template
        self.shots = tuple(shots)
        asked = {"instruction": template.instruction, "input": template.input, "labels": template.labels}
        digest = digest_json([asked, self.shots]) if self.shots else template.digest
        self._info = inner.info.with_(prompt_digest=digest)

    @property
    def info(self) -> EngineInfo:
        """The inner engine's, with the digest of this prompt."""
        return self._info

    def shots_for(self, texts: Sequence[str]) -> Sequence[Sequence[tuple[str, str]]]:
        """The examples that precede each text."""
        return [self.shots] * len(texts)

    def rewrite(self, prompt: Prompt) -> Prompt:
        """What the inner engine is asked instead of ``prompt``."""
        return self.rewrite_all([prompt])[0]

    def rewrite_all(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """``rewrite`` of each."""
        turns = [prompt[0] for prompt in prompts if not isinstance(prompt, str) and is_question(prompt)]
        texts = [turn.content for turn in turns]
        shown = zip(turns, self.shots_for(texts) if texts else (), strict=True)
        return [self._asked(*next(shown)) if is_question(prompt) else prompt for prompt in prompts]

    def _asked(self, turn: Message, shots: Sequence[tuple[str, str]]) -> Conversation:
        *before, last = self.template.messages(turn.content, shots)
        start = max(last.content.rfind(turn.content), 0)
        images = tuple(replace(image, at=start + image.at) for image in turn.images)
        return (*before, replace(last, images=images) if images else last)

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, progress: Progress = no_progress
    ) -> list[Generation]:
        """One answer a prompt, in order."""
        return self.inner.generate(self.rewrite_all(prompts), sampling, progress)

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Delta]:
        """The answer piece by piece."""
        return self.inner.stream(self.rewrite(prompt), sampling)

    def answer(self, prompt: Prompt, sampling: Sampling, stopped: threading.Event) -> Generation | None:
        """One whole answer; None when ``stopped`` was set before it was done."""
        return answer_whole(self.inner, self.rewrite(prompt), sampling, stopped)

    def healthy(self, timeout_s: float) -> None:
        """Raises EngineError when the inner engine is not well."""
        check_health(self.inner, timeout_s)

    def score(self, requests: Sequence[ScoreRequest], progress: Progress = no_progress) -> list[tuple[Scored, ...]]:
        """Log-likelihoods, one tuple a request, in order."""
        prompts = self.rewrite_all([r.prompt for r in requests])
        rewritten = [ScoreRequest(p, r.continuations) for p, r in zip(prompts, requests, strict=True)]
        return self.inner.score(rewritten, progress)

    def embed(self, texts: Sequence[str], progress: Progress = no_progress) -> Vectors:
        """Vectors of the bare texts: a prompt has no part in them."""
        return self.inner.embed(texts, progress)

    def close(self) -> None:
        """Close the inner engine."""
        self.inner.close()
