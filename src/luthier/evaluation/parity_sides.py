"""The sides of a parity check: torch, llama.cpp and a remote API, asked for the same things."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.core.engine import SCORE, Engine, Sampling, ScoreRequest
from luthier.core.errors import EngineError, InputError
from luthier.core.model import ModelRecord
from luthier.core.run import Progress, no_progress
from luthier.evaluation.parity_prompts import Case
from luthier.models.token_scores import TokenScores, token_scores

if TYPE_CHECKING:
    from luthier.data.render import Renderer
    from luthier.store.database import Store

_MOST_SPECIAL = 64  # special tokens that are tried for ending an answer
TokenRow = tuple[Sequence[int], Sequence[int]]


@dataclass
class Measured:
    """What a side said. ``scores`` are of the rows that it was given. ``served`` are the engine's own scores of whole answers, a token,
    and ``plain`` what one forward without cache gives for them (torch)."""

    name: str
    precision: str
    prompt_ids: list[tuple[int, ...]]
    answers: list[tuple[int, ...]]
    scores: list[TokenScores]
    served: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)
    tokenizer_ids: list[list[int] | None] = field(default_factory=list)
    ends: frozenset[int] = frozenset()
    probed: frozenset[int] = frozenset()


@dataclass
class Answered:
    """What a remote API said. ``token_log_probs`` are of its own answer's tokens; empty where it offers none."""

    name: str
    prompt_tokens: list[int]
    prompt_ids: list[list[int] | None]
    texts: list[str]
    token_log_probs: list[list[float]]
    echoed: list[TokenScores] | None = None


def measure_torch(
    store: Store,
    record: ModelRecord,
    dtype: str,
    cases: Sequence[Case],
    rows: Sequence[TokenRow],
    tokens: int,
    progress: Progress = no_progress,
) -> Measured:
    """Serve the cases with engine torch, and read ``rows`` in one plain forward each, without cache or shared beginnings."""
    from luthier.engines._open import open_engine

    engine: Any = open_engine(store, record.name, "torch", {"dtype": dtype})
    try:
        name = f"torch {dict(engine.info.meta)['dtype']}".replace("bfloat16", "bf16").replace("float32", "fp32")
        stage = _stage(progress, name)
        made = engine.generate([case.prompt for case in cases], Sampling(max_new_tokens=tokens), stage)
        whole = [case for case in cases if case.answer.strip()]
        served = [row[0] for row in engine.score([ScoreRequest(case.prompt, (case.answer,)) for case in whole])]
        with engine._base.using(engine._key) as loaded:
            scores = token_scores(loaded.module, rows, loaded.device)
            plain = token_scores(loaded.module, [_row(loaded.renderer, case) for case in whole], loaded.device)
    finally:
        engine.close()
    return Measured(
        name,
        name.removeprefix("torch ").replace("float16", "fp16"),
        [one.prompt_token_ids for one in made],
        [one.token_ids for one in made],
        scores,
        [one.logprob / one.tokens for one in served],
        [float(one.log_probs.mean()) for one in plain],
    )


def _row(renderer: Renderer, case: Case) -> TokenRow:
    return renderer.prompt_ids(case.prompt), renderer.continuation_ids(case.answer, ends_turn=True)


def measure_llama(
    store: Store,
    record: ModelRecord,
    type: str,  # noqa: A002
    cases: Sequence[Case],
    rows: Sequence[TokenRow],
    tokens: int,
    longest: int,
    progress: Progress = no_progress,
) -> Measured:
    """Serve the cases with llama.cpp; ask it for single tokens; have its own tokenizer cut the rendered prompts.

    ``longest`` is the number of tokens of the longest prompt.
    """
    from luthier.engines._concurrent import run_all
    from luthier.engines._llamacpp_probe import LlamaProbe

    engine: Any = open_llama(store, record, type, longest + 2 * tokens)
    name = f"llama.cpp {type}"
    try:
        stage = _stage(progress, name)
        made = engine.generate([case.prompt for case in cases], Sampling(max_new_tokens=tokens), stage)
        probe = LlamaProbe(engine._server, engine._lora)
        told = run_all(
            lambda row: probe.token_scores(*row),
            rows,
            workers=engine._server.settings.parallel,
            stage="token",
            progress=stage,
        )
        ends, probed = ends_of(probe, engine._renderer, rows[0][0])
        return Measured(
            name,
            type,
            [one.prompt_token_ids for one in made],
            [one.token_ids for one in made],
            [_scores(row) for row in told],
            tokenizer_ids=own_ids(probe, engine._renderer, cases),
            ends=ends,
            probed=probed,
        )
    finally:
        engine.close()


def open_llama(store: Store, record: ModelRecord, type: str, longest: int = 512) -> Engine:  # noqa: A002
    """A model on llama.cpp, with places for short prompts only. F32 computes with f32 keys and values too."""
    from luthier.engines._open import open_engine
    from luthier.models.load import set_threads

    options = {"type": type, "parallel": 2, "context_length": max(256, longest), "threads": set_threads()}
    if type == "F32":
        options["cache_type"] = "f32"
    return open_engine(store, record.name, "llamacpp", options)


def own_ids(probe: Any, renderer: Renderer, cases: Sequence[Case]) -> list[list[int] | None]:
    """llama.cpp's own tokens of the rendered text; None for prompts in which people wrote markup, which only the renderer can tell
    from the template's."""
    return [
        None if any(renderer.special_in(m.content) for m in case.prompt) else probe.tokenize(renderer.text(case.prompt))
        for case in cases
    ]


def ends_of(probe: Any, renderer: Renderer, before: Sequence[int]) -> tuple[frozenset[int], frozenset[int]]:
    """(special tokens at which llama.cpp ends an answer, all that were tried)."""
    known = {i for i, t in renderer.tokenizer.added_tokens_decoder.items() if t.special}
    tried = frozenset(sorted(known)[:_MOST_SPECIAL]) | renderer.stop_ids
    return probe.ends_answer(before, sorted(tried)), tried


def _scores(row: Sequence[tuple[float | None, int]]) -> TokenScores:
    values = np.array([np.nan if value is None else value for value, _ in row], dtype=np.float64)
    return TokenScores(values, np.array([i for _, i in row], dtype=np.int64))


def _stage(progress: Progress, name: str) -> Progress:
    return lambda stage, done, total: progress(f"{name}: {stage}", done, total)


# ---- a remote API


def ask_remote(
    store: Store,
    name: str,
    tokenizer: str,
    cases: Sequence[Case],
    rows: Sequence[TokenRow],
    tokens: int,
    progress: Progress = no_progress,
) -> Answered:
    """Ask an OpenAI-compatible API: conversations, which it renders itself; then, where it takes ids and echoes, single tokens.

    Raises EngineError when it cannot be reached, InputError for a malformed name.
    """
    from luthier.engines._open import open_engine

    engine: Any = open_engine(store, name, "openai")
    answered = Answered(name.partition("@")[0], [], [], [], [])
    stage = _stage(progress, answered.name)
    try:
        with _tokenizer_of(engine) as tokenize:
            for done, case in enumerate(cases, 1):
                text, count, log_probs = _chat(engine, case, tokens)
                answered.texts.append(text)
                answered.prompt_tokens.append(count)
                answered.token_log_probs.append(log_probs)
                answered.prompt_ids.append(tokenize(case))
                stage("generate", done, len(cases))
    finally:
        engine.close()
    echo: Any = open_engine(store, name, "openai", {"tokenizer": tokenizer})
    try:
        if SCORE in echo.info.capabilities:
            answered.echoed = [_echoed(echo, before, ids) for before, ids in rows]
    finally:
        echo.close()
    return answered


def _chat(engine: Any, case: Case, tokens: int) -> tuple[str, int, list[float]]:
    """(answer, prompt tokens as the API counts them, log-probability of each token of the answer, where it offers them)."""
    body: dict[str, Any] = {
        "model": engine._served,
        "messages": [m.as_dict() for m in case.prompt],
        "temperature": 0,
        engine._config.limit_field: tokens,
    }
    try:
        with engine._explained():
            answer = engine._client.chat.completions.create(**body, logprobs=True, top_logprobs=1)
    except InputError:  # the API refuses log-probabilities, or the request as a whole, which the next line then says
        with engine._explained():
            answer = engine._client.chat.completions.create(**body)
    if not getattr(answer, "choices", None):
        raise EngineError(f"{engine._url} answered without choices: {str(answer)[:200]!r}")
    choice = answer.choices[0]
    said = getattr(choice.logprobs, "content", None) or []
    return choice.message.content or "", getattr(answer.usage, "prompt_tokens", 0) or 0, [one.logprob for one in said]


@contextmanager
def _tokenizer_of(engine: Any) -> Iterator[Callable[[Case], list[int] | None]]:
    """The ids that the API makes of a conversation, as vLLM tells them at ``/tokenize``; None where there is no such thing."""
    import httpx

    root = str(engine._url).removesuffix("/v1")
    headers = {"Authorization": f"Bearer {engine._key}"} if engine._key else {}

    def tokenize(case: Case) -> list[int] | None:
        messages = [m.as_dict() for m in case.prompt]
        body = {"model": engine._served, "messages": messages, "add_generation_prompt": True}
        try:
            response = client.post(f"{root}/tokenize", json=body)
            found = response.json().get("tokens") if response.status_code == 200 else None
        except (httpx.HTTPError, ValueError, AttributeError):
            return None
        return [int(i) for i in found] if found and all(isinstance(i, int) for i in found) else None

    with httpx.Client(headers=headers, timeout=30.0) as client:
        yield tokenize


def _echoed(engine: Any, before: Sequence[int], ids: Sequence[int]) -> TokenScores:
    with engine._explained():
        found = engine._echo([*before, *ids])[len(before) : len(before) + len(ids)]
    if len(found) != len(ids):
        raise EngineError(f"{engine._url} answered {len(found)} log-probabilities for {len(ids)} tokens")
    values = np.array([np.nan if value is None else value for value in found], dtype=np.float64)
    return TokenScores(values, np.full(len(ids), -1, dtype=np.int64))
