"""The openai engine against real HTTP servers in this process, healthy and broken."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from luthier.core import catalog
from luthier.core.engine import EMBED, GENERATE, SCORE, STREAM, Engine, Sampling, ScoreRequest
from luthier.core.errors import EngineError, InputError, NotFoundError, UnsupportedError
from luthier.core.message import Message, user
from luthier.engines import openai as module

KEY = "sk-very-secret-0123"


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """``app`` on a free port of this machine, until the block ends."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", lifespan="off"))
    ready = threading.Event()
    startup = server.startup

    async def announced(sockets: Any = None) -> None:
        await startup(sockets)
        ready.set()

    server.startup = announced  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert ready.wait(20)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join(20)


class Endpoint:
    """A small OpenAI-compatible server: answers with the last message reversed, and remembers what it was asked."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.before: list[Callable[[], Response | None]] = []
        self.at_once = self.most_at_once = 0
        self.gate: threading.Barrier | None = None
        self.echoes = True
        self.app = FastAPI()
        self.app.post("/v1/chat/completions")(self.chat)
        self.app.post("/v1/completions")(self.completions)
        self.app.post("/v1/embeddings")(self.embeddings)

    async def read(self, request: Request) -> tuple[dict[str, Any], Response | None]:
        body = await request.json()
        self.bodies.append(body)
        self.keys.append(request.headers.get("authorization", ""))
        return body, self.before.pop(0)() if self.before else None

    async def chat(self, request: Request) -> Response:
        body, instead = await self.read(request)
        if instead is not None:
            return instead
        if self.gate is not None:
            await run_blocking(self.gate.wait)
        text = body["messages"][-1]["content"][::-1]
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        common = {"id": "1", "created": 1, "model": body["model"]}
        if body.get("stream"):
            common["object"] = "chat.completion.chunk"
            chunks: list[dict[str, Any]] = [
                common | {"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]}
                for piece in text
            ]
            chunks.append(common | {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})
            if body.get("stream_options", {}).get("include_usage"):
                chunks.append(common | {"choices": [], "usage": usage})
            return sse([json.dumps(chunk) for chunk in chunks] + ["[DONE]"])
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "length"}
        return JSONResponse(common | {"object": "chat.completion", "choices": [choice], "usage": usage})

    async def completions(self, request: Request) -> Response:
        body, instead = await self.read(request)
        if instead is not None:
            return instead
        choice: dict[str, Any] = {"index": 0, "text": "done", "finish_reason": "stop", "logprobs": None}
        if body.get("echo") and self.echoes:
            numbers = [None, *(-0.5 * (i % 7) for i in body["prompt"][1:]), -9.0]
            choice["logprobs"] = {"tokens": [], "token_logprobs": numbers, "top_logprobs": [], "text_offset": []}
        return JSONResponse({"id": "1", "object": "text_completion", "created": 1, "model": "m", "choices": [choice]})

    async def embeddings(self, request: Request) -> Response:
        body, instead = await self.read(request)
        if instead is not None:
            return instead
        rows = [{"object": "embedding", "index": i, "embedding": [len(t), 1.0]} for i, t in enumerate(body["input"])]
        return JSONResponse({"object": "list", "model": "m", "data": rows[::-1], "usage": {}})


async def run_blocking(call: Callable[[], Any]) -> Any:
    import anyio

    return await anyio.to_thread.run_sync(call)


def sse(events: list[str]) -> StreamingResponse:
    async def lines() -> AsyncIterator[str]:
        for event in events:
            yield f"data: {event}\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream")


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint()
    with serving(made.app) as url:
        made.url = url  # type: ignore[attr-defined]
        yield made


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)


def connect(endpoint: Any, store: Any = None, **options: Any) -> Engine:
    entry = catalog.load("engines", "openai")
    target = SimpleNamespace(name=f"openai:some@model@{endpoint.url}", record=None, base=None, store=store)
    engine: Engine = entry(target, entry.configure(options))
    return engine


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("openai:gpt@http://h:1/v1", ("gpt", "http://h:1/v1")),
        ("openai:a@b@https://h/v1", ("a@b", "https://h/v1")),
        ("openai:org/gpt-4", ("org/gpt-4", "")),
        ("openai:a@b", ("a@b", "")),
        ("stored-name", ("", "")),
    ],
)
def test_names(name: str, expected: tuple[str, str]) -> None:
    assert module.parse_name(name) == expected


def test_a_conversation_goes_to_chat_with_exactly_the_sampling_that_was_set(endpoint: Endpoint) -> None:
    engine = connect(endpoint)
    prompt = (Message("system", "Be brief."), Message("user", "abc"))
    plain, full = engine.generate([prompt, prompt], Sampling()), endpoint.bodies[0]
    assert [g.text for g in plain] == ["cba", "cba"]
    assert full == {
        "model": "some@model",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "abc"}],
        "temperature": 0.0,
        "max_tokens": 256,
    }
    sampling = Sampling(9, temperature=0.5, top_p=0.9, top_k=5, repetition_penalty=1.1, seed=3, stop=("x",))
    answer = connect(endpoint, limit_field="max_completion_tokens").generate([user("q")], sampling)[0]
    sent = endpoint.bodies[-1]
    assert {k: v for k, v in sent.items() if k not in ("model", "messages")} == {
        "temperature": 0.5,
        "max_completion_tokens": 9,
        "top_p": 0.9,
        "top_k": 5,
        "repetition_penalty": 1.1,
        "seed": 3,
        "stop": ["x"],
    }
    assert (answer.finish_reason, answer.prompt_tokens, answer.completion_tokens) == ("length", 7, 3)
    assert 0 < answer.first_token_s <= answer.latency_s
    assert endpoint.keys[-1] == f"Bearer {KEY}"


def test_raw_text_goes_to_completions(endpoint: Endpoint) -> None:
    answer = connect(endpoint).generate(["Once upon"], Sampling(max_new_tokens=4))[0]
    assert (answer.text, answer.finish_reason) == ("done", "stop")
    assert endpoint.bodies == [{"model": "some@model", "prompt": "Once upon", "temperature": 0.0, "max_tokens": 4}]


def test_many_prompts_run_at_once_and_keep_their_order(endpoint: Endpoint) -> None:
    endpoint.gate = threading.Barrier(4, timeout=20)  # passes only when four requests are there together
    seen: list[tuple[str, int, int]] = []
    prompts = [user(f"text {i:02}") for i in range(8)]
    answers = connect(endpoint, concurrency=4).generate(prompts, Sampling(), lambda *a: seen.append(a))
    assert [a.text for a in answers] == [f"text {i:02}"[::-1] for i in range(8)]
    assert seen[-1] == ("generate", 8, 8)


def test_stream(endpoint: Endpoint) -> None:
    deltas = list(connect(endpoint).stream(user("abcd"), Sampling()))
    assert [d.text for d in deltas] == ["d", "c", "b", "a", ""]
    last = deltas[-1].generation
    assert last is not None
    assert (last.text, last.finish_reason, last.prompt_tokens, last.completion_tokens) == ("dcba", "length", 7, 3)
    assert 0 < last.first_token_s <= last.latency_s


def test_embeddings_come_in_order_and_unit_length(endpoint: Endpoint) -> None:
    texts = ["x" * (i + 1) for i in range(130)]
    vectors = connect(endpoint).embed(texts)
    expected = np.array([[i + 1, 1.0] for i in range(130)])
    np.testing.assert_allclose(vectors, expected / np.linalg.norm(expected, axis=1, keepdims=True), rtol=1e-6)
    assert [len(b["input"]) for b in sorted(endpoint.bodies, key=lambda b: len(b["input"]))] == [2, 64, 64]
    assert connect(endpoint).embed([]).shape[0] == 0


def status(code: int, message: str = "broken", **headers: str) -> Callable[[], Response]:
    return lambda: JSONResponse({"error": {"message": message}}, status_code=code, headers=headers)


@pytest.mark.parametrize("code", [429, 500, 503])
def test_passing_failures_are_tried_again(endpoint: Endpoint, code: int) -> None:
    endpoint.before = [status(code), status(code)]
    assert connect(endpoint, retries=2).generate([user("ab")], Sampling())[0].text == "ba"
    assert len(endpoint.bodies) == 3


def test_a_lasting_failure_names_url_reason_and_tries(endpoint: Endpoint) -> None:
    endpoint.before = [status(500, f"out of memory, key {KEY}")] * 2
    with pytest.raises(EngineError) as caught:
        connect(endpoint, retries=1).generate([user("ab")], Sampling())
    message = str(caught.value)
    assert endpoint.url in message  # type: ignore[attr-defined]
    assert "500" in message and "out of memory" in message and "2 tries" in message
    assert KEY not in message


@pytest.mark.parametrize(
    ("code", "kind", "text"),
    [
        (400, InputError, "refused the request: .*too long"),
        (401, EngineError, "OPENAI_API_KEY"),
        (404, NotFoundError, "some@model"),
        (422, InputError, "too long"),
    ],
)
def test_refusals_are_not_tried_again(endpoint: Endpoint, code: int, kind: type[Exception], text: str) -> None:
    endpoint.before = [status(code, "too long")]
    with pytest.raises(kind, match=text):
        connect(endpoint).generate([user("ab")], Sampling())
    assert len(endpoint.bodies) == 1


def test_one_failure_among_many_stops_the_rest(endpoint: Endpoint) -> None:
    endpoint.before = [status(400, "bad")]
    with pytest.raises(InputError, match="bad"):
        connect(endpoint, concurrency=2).generate([user(str(i)) for i in range(200)], Sampling())
    assert len(endpoint.bodies) < 200


def test_silence_ends_in_a_timeout() -> None:
    app, release = FastAPI(), threading.Event()

    @app.post("/v1/chat/completions")
    async def silent() -> Response:
        await run_blocking(lambda: release.wait(20))
        return PlainTextResponse("late")

    with serving(app) as url:
        engine = connect(SimpleNamespace(url=url), timeout_s=0.2, retries=0)
        try:
            with pytest.raises(EngineError, match=r"said nothing for 0\.2 s \(1 try\)"):
                engine.generate([user("a")], Sampling())
        finally:
            release.set()


def test_nobody_listens() -> None:
    with serving(FastAPI()) as url:
        pass  # the port is free again
    with pytest.raises(EngineError, match=f"cannot reach {url}"):
        connect(SimpleNamespace(url=url), retries=0).generate([user("a")], Sampling())


@pytest.mark.parametrize(
    "answer",
    [
        lambda: PlainTextResponse("<html>a proxy's page</html>", media_type="text/html"),
        lambda: Response("{not json", media_type="application/json"),
        lambda: JSONResponse({"choices": []}),
        lambda: JSONResponse({"choices": [{"index": 0}]}),
    ],
)
def test_answers_that_are_not_in_the_format(endpoint: Endpoint, answer: Callable[[], Response]) -> None:
    endpoint.before = [answer] * 4
    with pytest.raises(EngineError, match=r"127\.0\.0\.1"):
        connect(endpoint).generate([user("a")], Sampling())


CHUNK = json.dumps({"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m",
                    "choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]})  # fmt: skip


@pytest.mark.parametrize(
    ("events", "text"),
    [
        ([CHUNK, "{broken"], "not OpenAI's format"),
        ([CHUNK], "broke off"),
        ([CHUNK, '{"error": {"message": "ran out of memory"}}'], "ran out of memory"),
    ],
)
def test_broken_streams(endpoint: Endpoint, events: list[str], text: str) -> None:
    endpoint.before = [lambda: sse(events)]
    stream = connect(endpoint).stream(user("a"), Sampling())
    assert next(stream).text == "a"
    with pytest.raises(EngineError, match=text):
        list(stream)


def test_a_connection_that_breaks_in_the_middle_of_a_stream(endpoint: Endpoint) -> None:
    async def lines() -> AsyncIterator[str]:
        yield f"data: {CHUNK}\n\n"
        raise ConnectionResetError

    endpoint.before = [lambda: StreamingResponse(lines(), media_type="text/event-stream")]
    stream = connect(endpoint).stream(user("a"), Sampling())
    assert next(stream).text == "a"
    with pytest.raises(EngineError, match=r"127\.0\.0\.1"):
        list(stream)


def test_a_stream_that_is_refused_raises_at_once(endpoint: Endpoint) -> None:
    endpoint.before = [status(400, "too long")]
    with pytest.raises(InputError, match="too long"):
        connect(endpoint).stream(user("a"), Sampling())


def test_without_a_tokenizer_it_cannot_score(endpoint: Endpoint) -> None:
    engine = connect(endpoint)
    assert engine.info.capabilities == {GENERATE, STREAM, EMBED}
    with pytest.raises(UnsupportedError, match="cannot score"):
        engine.score([ScoreRequest("a", ("b",))])


def test_embeddings_that_are_not_served_are_unsupported(endpoint: Endpoint) -> None:
    endpoint.before = [status(404, "no such route")]
    with pytest.raises(UnsupportedError, match="cannot embed"):
        connect(endpoint).embed(["a"])


class Words:
    """A renderer whose ids are word lengths; a conversation begins with 100, a turn ends with 101."""

    digest = "words"

    def prompt_ids(self, prompt: Any) -> list[int]:
        return (
            [len(w) for w in prompt.split()]
            if isinstance(prompt, str)
            else [100, *map(len, prompt[-1].content.split())]
        )

    def continuation_ids(self, text: str, *, ends_turn: bool) -> list[int]:
        return [len(w) for w in text.split()] + [101] * ends_turn


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.engines.openai._renderer_of", lambda store, name: Words())


def test_with_a_tokenizer_prompts_are_token_ids_and_scores_come_from_the_echo(endpoint: Endpoint, words: None) -> None:
    engine = connect(endpoint, store=object(), tokenizer="tiny")
    assert SCORE in engine.info.capabilities
    assert engine.info.template_digest == "words"
    answer = engine.generate([user("some words")], Sampling())[0]
    assert endpoint.bodies[-1]["prompt"] == [100, 4, 5]
    assert (answer.prompt_token_ids, answer.prompt_tokens) == ((100, 4, 5), 3)
    chat, raw = engine.score([ScoreRequest(user("some"), ("abc", "a bc")), ScoreRequest("ab", ("abcd",))])
    assert [(s.logprob, s.tokens) for s in chat] == [(-0.5 * (3 + 101 % 7), 2), (-0.5 * (1 + 2 + 101 % 7), 3)]
    assert [(s.logprob, s.tokens) for s in raw] == [(-2.0, 1)]


def test_an_endpoint_without_echo_cannot_score(endpoint: Endpoint, words: None) -> None:
    endpoint.echoes = False
    assert SCORE not in connect(endpoint, store=object(), tokenizer="tiny").info.capabilities


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("openai:m@http://user:pw@h/v1", {}, "credentials"),
        ("openai:@http://h/v1", {}, "name is needed"),
        ("openai:m", {"base_url": "ftp://h"}, "base_url must look like"),
        ("openai:m@http://h/v1", {"tokenizer": "x"}, "store"),
        ("openai:m@http://h/v1", {"timeout": 3}, "timeout_s"),
        ("openai:m", {"api_key_env": "NOT_SET_HERE"}, "needs a key"),
    ],
)
def test_bad_settings(name: str, options: dict[str, Any], text: str) -> None:
    entry = catalog.load("engines", "openai")
    with pytest.raises(InputError, match=text):
        entry(SimpleNamespace(name=name, record=None, base=None, store=None), entry.configure(options))
