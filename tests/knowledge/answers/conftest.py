"""A shelf of passages and a model that follows a script."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from luthier.core.document import Chunk, Hit
from luthier.core.engine import Delta, Engine, Generation, Sampling, TokenLogprob, Vectors
from luthier.core.message import Prompt, last_user_text
from luthier.engines.fake import Config, FakeEngine
from luthier.knowledge.index import Filter
from luthier.knowledge.rag import RagEngine, rag

Script = Callable[[str, Sampling], str]


class Shelf:
    """Gives its passages in order, whatever is asked; embeds by the characters of a text."""

    name = "shelf"

    def __init__(self, *texts: str) -> None:
        self.texts = texts
        self.asked: list[str] = []
        self.embedder = self

    def search(
        self,
        question: str,
        k: int = 5,
        where: Filter | None = None,
        *,
        retrieval: Sequence[Mapping[str, Any]] | None = None,
        history: Sequence[str] = (),
        reranker: Engine | None = None,
        notes: list[dict[str, Any]] | None = None,
    ) -> list[Hit]:
        self.asked.append(question)
        return [Hit(Chunk(f"c{n}", text, n, (n, n)), "doc", "file.txt") for n, text in enumerate(self.texts)][:k]

    def embed(self, texts: Sequence[str]) -> Vectors:
        vectors = np.zeros((len(texts), 997), np.float32)
        for row, text in enumerate(texts):
            words = text.lower().replace(".", " ").replace("?", " ").split() if text.isascii() else list(text)
            for word in words:
                vectors[row, sum(map(ord, word)) % 997] += 1.0
            vectors[row] /= max(float(np.linalg.norm(vectors[row])), 1e-9)
        return vectors


class Scripted(FakeEngine):
    """Says what its script says, in pieces of one word; remembers its prompts. ``chances`` gives the first token's alternatives."""

    def __init__(
        self, script: Script, *, chances: Mapping[str, Mapping[str, float]] | None = None, **options: Any
    ) -> None:
        super().__init__("scripted", Config(**options))
        self.script = script
        self.chances = chances or {}
        self.prompts: list[str] = []
        self.samplings: list[Sampling] = []
        self.batches: list[int] = []

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, *more: Any) -> list[Generation]:
        self.batches.append(len(prompts))
        return [self._said(prompt, sampling) for prompt in prompts]

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Delta]:
        made = self._said(prompt, sampling)
        for number, word in enumerate(made.text.split(" ")):
            yield Delta(f" {word}" if number else word)
        yield Delta("", made)

    def _said(self, prompt: Prompt, sampling: Sampling) -> Generation:
        text = last_user_text(prompt)
        self.prompts.append(text)
        self.samplings.append(sampling)
        said = self.script(text, sampling)
        found = next((each for piece, each in self.chances.items() if piece in text), None)
        tokens: tuple[TokenLogprob, ...] = ()
        if found is not None and sampling.logprobs:
            top = tuple((word.encode(), float(np.log(share))) for word, share in found.items())
            tokens = (TokenLogprob(top[0][0], top[0][1], top),)
        size = self.count_tokens(prompt)
        return Generation(
            said, (1,), (), "stop", logprob=-0.5, prompt_tokens=size, completion_tokens=3, latency_s=0.5, tokens=tokens
        )


@pytest.fixture
def shelf() -> type[Shelf]:
    return Shelf


@pytest.fixture
def scripted() -> type[Scripted]:
    return Scripted


@pytest.fixture
def asking() -> Callable[..., Generation]:
    """Asks a question of passages, through ``generate`` and through ``stream``, which must agree."""

    def ask(
        script: Script | Scripted,
        passages: Sequence[str],
        question: Any,
        *,
        mode: str,
        max_new_tokens: int = 64,
        **options: Any,
    ) -> Generation:
        engine = script if isinstance(script, Scripted) else Scripted(script)
        made: RagEngine = rag(Shelf(*passages), engine, mode=mode, options=options)
        prompt = question if isinstance(question, tuple) else _user(question)
        sampling = Sampling(max_new_tokens=max_new_tokens)
        (answer,) = made.generate([prompt], sampling)
        deltas = list(made.stream(prompt, sampling))
        last = deltas[-1].generation
        assert last is not None
        assert "".join(delta.text for delta in deltas) == last.text == answer.text
        assert (last.citations, last.hits, last.calls) == (answer.citations, answer.hits, answer.calls)
        return answer

    return ask


def _user(text: str) -> Any:
    from luthier.core.message import user

    return user(text)
