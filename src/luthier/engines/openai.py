"""Any endpoint that speaks the OpenAI API: the vendor itself, vLLM, llama.cpp's server, another Luthier.

A conversation goes to ``/chat/completions``, where the endpoint applies its own chat template; raw text goes to ``/completions``.
With ``tokenizer`` set to a stored base model that the endpoint serves too, conversations are rendered here and sent as token ids
to ``/completions``: the same ids as in training. Only then can the engine also ``score``, when the endpoint returns the prompt's
log-probabilities (``echo``), as vLLM does.

What the endpoint honours beyond the common core is found out from its list of models (vLLM and Luthier say who they are), or told with
``accepts`` and ``structured``; the rest is refused, because many servers ignore what they do not know.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import httpx2
import numpy as np
import openai
from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.engine import (
    EMBED,
    GENERATE,
    SCORE,
    STREAM,
    ContinuationScore,
    Delta,
    Engine,
    EngineInfo,
    Generation,
    Sampling,
    ScoreRequest,
    Vectors,
    require,
    require_parameters,
)
from luthier.core.errors import ContextLengthError, EngineError, InputError, NotFoundError, UnsupportedError
from luthier.core.message import Prompt
from luthier.core.run import Progress, no_progress
from luthier.engines._concurrent import run_all
from luthier.engines._openai_dialect import Dialect, Maker, Structured, choose, recognise, root
from luthier.engines._openai_rendered import Rendered
from luthier.engines._openai_wire import Answer, retry_after_s, sampling_fields, shares

if TYPE_CHECKING:
    from luthier.data.render import Renderer
    from luthier.engines._target import EngineTarget
    from luthier.store.database import Store

DEFAULT_URL = "https://api.openai.com/v1"
_EMBED_BATCH = 64
_RECOGNISE_S, _ASK_AGAIN_S = 2.0, 30.0


class Config(EntryConfig):
    """``base_url`` ends in ``/v1``; it and the model may also come from a name like ``openai:MODEL@http://host:8000/v1``.

    ``api_key_env`` names the environment variable that holds the key. ``timeout_s`` bounds each silence of the endpoint. ``retries``
    counts further tries after connection errors and the statuses 408, 409, 429 and 5xx, with growing pauses. ``concurrency``
    requests run at once. ``tokenizer`` names a stored base model (see the module). ``limit_field`` is how the endpoint calls
    the largest number of new tokens. ``accepts`` names the optional parameters that it honours (left out: what is known of such an
    endpoint); ``structured`` says how it is asked for a form: OpenAI's ``response_format``, ``vllm`` (``structured_outputs``), ``guided``
    (vLLM before 0.12), or ``none``.
    """

    base_url: str = ""
    model: str = ""
    api_key_env: str = "OPENAI_API_KEY"
    timeout_s: float = Field(default=120.0, gt=0)
    retries: int = Field(default=3, ge=0, le=20)
    concurrency: int = Field(default=8, ge=1, le=256)
    tokenizer: str = ""
    limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    accepts: tuple[str, ...] | None = None
    structured: Structured | None = None


def open(model: EngineTarget, config: Config) -> Engine:  # noqa: A001 - the name of the catalogue's function
    """Connect to an endpoint. Raises InputError for a malformed address or a missing key, NotFoundError for ``tokenizer``."""
    named, url = parse_name(model.name)
    url = (config.base_url or url or DEFAULT_URL).rstrip("/")
    served = config.model or named
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"base_url must look like http://host:8000/v1; got {url!r}")
    if parts.username or parts.password:
        raise InputError(f"base_url must not hold credentials; put the key in {config.api_key_env}")
    if not served:
        raise InputError("the endpoint's model name is needed", hint=f"name it openai:MODEL@{url}")
    key = os.environ.get(config.api_key_env, "")
    if not key and url == DEFAULT_URL:
        raise InputError(f"{DEFAULT_URL} needs a key", hint=f"export {config.api_key_env}=...")
    renderer = None
    if config.tokenizer:
        if model.store is None:
            raise InputError("tokenizer needs a store to look the model up in; got none")
        renderer = _renderer_of(model.store, config.tokenizer)
    config = config.model_copy(update={"base_url": url, "model": served})
    return OpenAIEngine(model.name, config, key, renderer)


def parse_name(name: str) -> tuple[str, str]:
    """(model, URL) of ``openai:MODEL@URL``; either may be empty. A model's own name may hold ``@``."""
    if not name.startswith("openai:"):
        return "", ""
    served, url = re.fullmatch(r"openai:(.*?)(?:@(https?://.*))?", name, re.DOTALL).groups(default="")  # type: ignore[union-attr]
    return served, url


class OpenAIEngine:
    """See the module. Safe from several threads."""

    def __init__(self, name: str, config: Config, key: str = "", renderer: Renderer | None = None) -> None:
        self._config, self._key, self._renderer = config, key, renderer
        self._served, self._url = config.model, config.base_url
        self._lock, self._ask_again = threading.Lock(), 0.0
        self._dialect = choose("openai", config.accepts, config.structured)
        self._maker: Maker | None = "openai" if config.base_url == DEFAULT_URL else None
        self._client = openai.OpenAI(
            api_key=key or "none",
            base_url=self._url,
            timeout=httpx2.Timeout(config.timeout_s, connect=min(10.0, config.timeout_s)),
            max_retries=config.retries,
        )
        capabilities = {GENERATE, STREAM, EMBED}
        if renderer is not None and self._echoes(renderer):
            capabilities.add(SCORE)
        self._info = EngineInfo(
            model=name,
            engine="openai",
            parameters=self._dialect.parameters,
            capabilities=frozenset(capabilities),
            template_digest=renderer.digest if renderer is not None else "",
            meta=(("url", self._url), ("served_model", self._served)),
        )
        self._known()

    @property
    def info(self) -> EngineInfo:
        """What answers. Digests of a remote model are not known."""
        return self._info

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, progress: Progress = no_progress
    ) -> list[Generation]:
        """One answer a prompt, ``concurrency`` at once; drawn answers to equal prompts are asked for in one request (``n``), whose
        tokens are shared out by the length of the answers.

        Raises EngineError for an endpoint that fails or answers nonsense, InputError for a request that it refuses, NotFoundError
        for a model that it does not have, UnsupportedError for a parameter that it does not honour.
        """
        places: dict[Any, list[int]] = {}
        together = sampling.temperature > 0 and sampling.seed is None
        for place, prompt in enumerate(prompts):
            places.setdefault(prompt if together else place, []).append(place)
        groups = list(places.values())
        made = run_all(
            lambda group: self._generate(prompts[group[0]], sampling, len(group)),
            groups,
            workers=self._config.concurrency,
            stage="generate",
            progress=lambda stage, done, total: progress(stage, done * len(prompts) // total, len(prompts)),
        )
        answers = {
            place: one for group, some in zip(groups, made, strict=True) for place, one in zip(group, some, strict=True)
        }
        return [answers[place] for place in range(len(prompts))]

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Delta]:
        """The answer as the endpoint sends it. The request starts at once; errors in it are raised here."""
        send, reader = self._request(prompt, sampling, stream=True)
        with self._explained():
            pieces = send()
        return self._read_stream(pieces, reader())

    def healthy(self, timeout_s: float) -> None:
        """Raises EngineError for an endpoint that does not answer in time, or (vLLM) says that its engine is dead."""
        self._known()
        with self._explained(timeout_s):
            try:
                self._client.with_options(timeout=timeout_s, max_retries=0).models.list()
            except openai.NotFoundError:
                return  # it has no list of models, but it answers
            if (self._maker or "").startswith("vllm"):
                status = httpx2.get(root(self._client) + "/health", timeout=timeout_s).status_code
                if status >= 500:
                    raise EngineError(f"{self._url} answered {status} when asked for its health", retryable=True)

    def score(
        self, requests: Sequence[ScoreRequest], progress: Progress = no_progress
    ) -> list[tuple[ContinuationScore, ...]]:
        """Log-likelihoods from ``/completions`` with ``echo``. Raises UnsupportedError unless ``score`` is a capability."""
        require(self, SCORE)
        return run_all(self._score, requests, workers=self._config.concurrency, stage="score", progress=progress)

    def embed(self, texts: Sequence[str], progress: Progress = no_progress) -> Vectors:
        """Unit vectors from ``/embeddings``. Raises UnsupportedError when the endpoint has none."""
        batches = [list(texts[i : i + _EMBED_BATCH]) for i in range(0, len(texts), _EMBED_BATCH)]
        rows = run_all(self._embed, batches, workers=self._config.concurrency, stage="embed", progress=progress)
        if not rows:
            return np.zeros((0, 0), dtype=np.float32)
        vectors = np.concatenate(rows)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors / np.where(lengths > 0, lengths, 1.0), dtype=np.float32)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    # ---- requests

    def _request(
        self, prompt: Prompt, sampling: Sampling, *, stream: bool = False, n: int = 1
    ) -> tuple[Callable[[], Any], Callable[[], Answer]]:
        """What sends a request, and what reads a choice of its answer."""
        start, dialect = time.perf_counter(), self._known()
        require_parameters(self._info, [prompt], sampling)
        arguments: dict[str, Any] = {"model": self._served} | ({"n": n} if n > 1 else {})
        if stream:
            arguments |= {"stream": True, "stream_options": {"include_usage": True}}
        if self._renderer is None and not isinstance(prompt, str):
            fields, extra = sampling_fields(sampling, dialect, chat=True)
            arguments |= fields | {self._config.limit_field: sampling.max_new_tokens}
            arguments["messages"] = [message.as_dict() for message in prompt]
            create: Callable[..., Any] = self._client.chat.completions.create
            return partial(create, **arguments, extra_body=extra or None), lambda: Answer((), True, start=start)
        create = self._client.completions.create
        arguments["max_tokens"] = sampling.max_new_tokens
        if self._renderer is None:
            fields, extra = sampling_fields(sampling, dialect, chat=False)
            arguments["prompt"] = prompt
            return partial(create, **arguments, **fields, extra_body=extra or None), lambda: Answer(
                (), False, start=start
            )
        rendered = Rendered.of(self._renderer, prompt, sampling)
        fields, extra = rendered.fields(dialect)
        arguments["prompt"] = list(rendered.ids)
        return partial(create, **arguments, **fields, extra_body=extra or None), lambda: rendered.answer(start)

    def _generate(self, prompt: Prompt, sampling: Sampling, n: int) -> list[Generation]:
        """``n`` answers to one prompt. An endpoint that gives fewer is asked again for the rest."""
        send, reader = self._request(prompt, sampling, n=n)
        with self._explained():
            said = send()
            choices = getattr(said, "choices", None)
            if not choices:
                raise EngineError(f"{self._url} answered without choices: {str(said)[:200]!r}")
            answers = [reader() for _ in choices[:n]]
            for answer, choice in zip(answers, choices, strict=False):
                answer.take(choice)
                answer.rest()
            counts = shares(answers, getattr(said.usage, "completion_tokens", None) or 0)
            made = [answer.generation(said.usage, count) for answer, count in zip(answers, counts, strict=True)]
        return made + (self._generate(prompt, sampling, n - len(made)) if len(made) < n else [])

    def _read_stream(self, pieces: Any, answer: Answer) -> Iterator[Delta]:
        usage = None
        try:
            with self._explained():
                for piece in pieces:
                    usage = piece.usage or usage
                    for choice in piece.choices[:1]:
                        delta = answer.take(choice)
                        if delta.text or delta.tokens or delta.tool_calls:
                            yield delta
                if answer.finish is None:
                    raise EngineError(f"{self._url} broke off in the middle of an answer", retryable=True)
                rest = answer.rest()
                whole = answer.generation(usage)
        finally:
            pieces.close()
        if rest.text or rest.tool_calls:
            yield rest
        yield Delta("", whole)

    # ---- who answers

    def _known(self) -> Dialect:
        """The endpoint's dialect; asked for, at most once in a while, until it answers."""
        with self._lock:
            if self._maker is None and time.monotonic() >= self._ask_again:
                self._ask_again = time.monotonic() + _ASK_AGAIN_S
                self._maker = recognise(self._client, self._served, min(_RECOGNISE_S, self._config.timeout_s))
                self._dialect = choose(self._maker or "openai", self._config.accepts, self._config.structured)
                honoured = self._dialect.parameters
                if self._renderer is not None:  # the endpoint sees ids, and calls are read here
                    honoured = (honoured - {"images"}) | {"tools"}
                self._info = self._info.with_(parameters=honoured)
            return self._dialect

    def _embed(self, texts: list[str]) -> Vectors:
        try:
            with self._explained():
                answer = self._client.embeddings.create(input=texts, model=self._served, encoding_format="float")
                rows = sorted(answer.data, key=lambda row: row.index)
                vectors = np.asarray([row.embedding for row in rows], dtype=np.float32)
        except NotFoundError as error:
            raise UnsupportedError(f"{self._info.model} cannot embed: {error.message}") from error
        if vectors.shape[0] != len(texts) or vectors.ndim != 2:
            raise EngineError(f"{self._url} answered {vectors.shape[0]} vectors for {len(texts)} texts")
        return vectors

    # ---- scoring

    def _echoes(self, renderer: Renderer) -> bool:
        """Whether the endpoint returns log-probabilities of prompt tokens that come as ids."""
        ids = renderer.prompt_ids("one two three")
        try:
            with self._explained():
                return len(self._echo(ids)) >= len(ids)
        except (InputError, EngineError):
            return False

    def _echo(self, ids: list[int]) -> list[float | None]:
        answer = self._client.completions.create(
            model=self._served, prompt=ids, max_tokens=1, temperature=0, echo=True, logprobs=1
        )
        if not answer.choices:
            raise EngineError(f"{self._url} answered without choices: {str(answer)[:200]!r}")
        found = answer.choices[0].logprobs
        return list(found.token_logprobs or ()) if found is not None else []

    def _score(self, request: ScoreRequest) -> tuple[ContinuationScore, ...]:
        renderer = self._renderer
        assert renderer is not None  # SCORE is a capability only with one
        prompt = renderer.prompt_ids(request.prompt)
        scores = []
        for text in request.continuations:
            wanted = renderer.continuation_ids(text, ends_turn=not isinstance(request.prompt, str))
            with self._explained():
                found = self._echo(prompt + wanted)[len(prompt) : len(prompt) + len(wanted)]
            numbers = [value for value in found if value is not None]
            if len(numbers) != len(wanted):
                raise EngineError(f"{self._url} answered {len(numbers)} log-probabilities for {len(wanted)} tokens")
            scores.append(ContinuationScore(sum(numbers), len(wanted)))
        return tuple(scores)

    # ---- errors

    @contextmanager
    def _explained(self, timeout_s: float | None = None) -> Iterator[None]:
        """Turn what the client raises into Luthier's errors: with the address and the reason, never with the key."""
        try:
            yield
        except (openai.APITimeoutError, httpx2.TimeoutException) as error:
            raise EngineError(
                f"{self._url} said nothing for {timeout_s or self._config.timeout_s:g} s ({self._tries()})",
                hint="raise the engine's timeout_s, or lower its concurrency",
                retryable=True,
            ) from error
        except openai.APIConnectionError as error:
            raise EngineError(
                f"cannot reach {self._url}: {self._clean(error.__cause__ or error)} ({self._tries()})",
                hint="is the server running, and is the address right?",
                retryable=True,
            ) from error
        except openai.APIStatusError as error:
            raise self._refusal(error) from error
        except httpx2.TransportError as error:
            raise EngineError(f"{self._url} broke off: {self._clean(error)}", retryable=True) from error
        except openai.APIResponseValidationError as error:
            raise self._nonsense(error) from error
        except openai.APIError as error:  # an error among the events of a stream
            raise EngineError(f"{self._url} failed while it answered: {self._clean(error)}", retryable=True) from error
        except (openai.OpenAIError, httpx2.HTTPError, ValueError, AttributeError, TypeError) as error:
            raise self._nonsense(error) from error

    def _nonsense(self, error: Exception) -> EngineError:
        return EngineError(f"{self._url} answered what is not OpenAI's format: {self._clean(error)}")

    def _refusal(self, error: openai.APIStatusError) -> Exception:
        status, reason = error.status_code, self._clean(error)
        if status in (401, 403):
            return EngineError(f"{self._url} refused the key: {reason}", hint=f"set {self._config.api_key_env}")
        if status == 404:
            return NotFoundError(f"{self._url} has no model {self._served!r}, or no such operation: {reason}")
        told = f"{getattr(error, 'code', None)} {reason}".lower()
        if status in (400, 413, 422) and ("context_length_exceeded" in told or "maximum context length" in told):
            return ContextLengthError(f"{self._url} refused the request: {reason}")
        if status in (400, 413, 415, 422):
            return InputError(f"{self._url} refused the request: {reason}")
        return EngineError(
            f"{self._url} answered {status}: {reason} ({self._tries()})",
            retryable=status in (408, 409, 429) or status >= 500,
            retry_after_s=retry_after_s(error.response.headers),
        )

    def _tries(self) -> str:
        return f"{self._config.retries + 1} tries" if self._config.retries else "1 try"

    def _clean(self, error: object) -> str:
        text = str(error).strip() or type(error).__name__
        if self._key:
            text = text.replace(self._key, "***")
        return text[:500]


def _renderer_of(store: Store, name: str) -> Renderer:
    from luthier.models.load import load_renderer
    from luthier.store.artifacts import path_of
    from luthier.store.models import find

    record = find(store, name)
    if record.kind != "base" or record.architecture != "decoder":
        raise InputError(f"tokenizer must name a stored base decoder; {name} is an {record.architecture} {record.kind}")
    return load_renderer(path_of(store, record.digest))
