"""One question on its way to an answer: the talk of its mode, what was said of it so far, and what all calls for it cost."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from luthier.core.engine import Delta, Engine, Generation, Sampling
from luthier.core.errors import EngineError
from luthier.core.message import Prompt
from luthier.core.run import Progress, no_progress
from luthier.knowledge.answers._talk import AnswerTools, Say, Talk, Written
from luthier.knowledge.cite import Marks, attributed, cite, clean
from luthier.knowledge.prompt import is_not_found
from luthier.strategies._thinking import Ask


class Talking:
    """One question's talk, what was said of it so far, and the calls that were made for it."""

    def __init__(self, inner: Engine, talk: Talk, tools: AnswerTools, calls: list[Generation]) -> None:
        self._inner, self._talk, self._tools, self._calls = inner, talk, tools, calls
        self.said = ""
        self.called = False

    def send(self, replies: Any) -> Sequence[Ask] | Say:
        """The next calls. Raises StopIteration with what was written."""
        given = replies if isinstance(replies, list) else [replies]
        self._calls += [each for each in given if isinstance(each, Generation)]
        wanted: Sequence[Ask] | Say = self._talk.send(replies)
        return wanted

    def say(self, wanted: Say) -> Generator[Delta, None, Generation]:
        """The pieces of the answer with good marks only; returns its generation."""
        marks = Marks(len(wanted.shown))
        made: Generation | None = None
        deltas = self._inner.stream(wanted.ask.prompt, wanted.ask.sampling)
        try:
            for delta in deltas:
                made = delta.generation or made
                text = marks.feed(delta.text) + (marks.end() if delta.generation is not None else "")
                self.said += text
                self.called = self.called or bool(delta.tool_calls)
                yield Delta(text, tool_calls=delta.tool_calls)
        finally:  # a reader who leaves stops the engine
            close = getattr(deltas, "close", None)
            if close is not None:
                close()
        if made is None:
            raise EngineError(f"{self._inner.info.model} ended an answer without saying so")
        return made

    def finished(self, written: Written) -> Generation:
        """The answer with its hits, citations and costs, which are of all calls together."""
        made, calls = written.made, self._calls
        shown = tuple(self._tools.originals.get(hit.chunk.id, hit) for hit in written.shown)
        text, _ = clean(made.text, len(shown))
        citations = () if is_not_found(text) else cite(text, shown)
        if not citations and not is_not_found(text) and (citations := attributed(text, shown)):
            self._tools.note("attribute", passages=[each.number for each in citations])
        latency = sum(each.latency_s for each in calls)
        return replace(
            made,
            text=text,
            tokens=(),
            latency_s=latency,
            first_token_s=latency - made.latency_s + made.first_token_s,
            prompt_tokens=sum(each.prompt_tokens for each in calls),
            completion_tokens=sum(each.completion_tokens for each in calls),
            calls=sum(each.calls for each in calls),
            hits=shown,
            citations=citations,
            steps=tuple(self._tools.steps),
        )


class Writer:
    """The model that writes, as the steps of a search ask it: what it wrote is counted with the answer that the search is for."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._noted = threading.local()

    @contextmanager
    def noting(self, calls: list[Generation]) -> Iterator[list[Generation]]:
        """What is written in this thread meanwhile; it is added to ``calls`` at the end."""
        written: list[Generation] = []
        self._noted.written = written
        try:
            yield written
        finally:
            self._noted.written = []
            calls += written

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, progress: Progress = no_progress
    ) -> list[Generation]:
        """The engine's."""
        made = self._engine.generate(prompts, sampling, progress)
        getattr(self._noted, "written", []).extend(made)
        return made

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)
