"""The openai engine against real HTTP servers in this process, healthy and broken."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from luthier.core import catalog
from luthier.core.engine import (
    EMBED,
    GENERATE,
    PARAMETERS,
    SCORE,
    STREAM,
    Constraint,
    Engine,
    Sampling,
    ScoreRequest,
    check_health,
)
from luthier.core.errors import ContextLengthError, EngineError, InputError, NotFoundError, UnsupportedError
from luthier.core.message import Image, Message, Tool, ToolCall, user
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
        self.owner = self.version = ""
        self.well = True
        self.app = FastAPI()
        self.app.get("/v1/models")(self.models)
        self.app.get("/version")(lambda: {"version": self.version})
        self.app.get("/health")(lambda: Response(status_code=200 if self.well else 503))
        self.app.post("/v1/chat/completions")(self.chat)
        self.app.post("/v1/completions")(self.completions)
        self.app.post("/v1/embeddings")(self.embeddings)

    async def read(self, request: Request) -> tuple[dict[str, Any], Response | None]:
        body = await request.json()
        self.bodies.append(body)
        self.keys.append(request.headers.get("authorization", ""))
        return body, self.before.pop(0)() if self.before else None

    def models(self) -> Response:
        if not self.owner:
            return JSONResponse({"error": {"message": "nothing here"}}, status_code=404)
        listed = [{"id": "some@model", "object": "model", "created": 1, "owned_by": self.owner}]
        return JSONResponse({"object": "list", "data": listed})

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
    options: dict[str, Any] = {"limit_field": "max_completion_tokens", "accepts": ["top_k", "repetition_penalty"]}
    answer = connect(endpoint, **options).generate([user("q")], sampling)[0]
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

    def prompt_ids(self, prompt: Any, tools: Any = None) -> list[int]:
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


VLLM = {
    "top_p": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
FORMS = {
    "json": Constraint("json"),
    "json_schema": Constraint("json_schema", json.dumps(SCHEMA)),
    "regex": Constraint("regex", "a+"),
    "choice": Constraint("choice", '["yes", "no"]'),
    "grammar": Constraint("grammar", 'root ::= "a"'),
}


def sent(endpoint: Endpoint) -> dict[str, Any]:
    return {k: v for k, v in endpoint.bodies[-1].items() if k not in ("model", "messages", "max_tokens", "temperature")}


def test_every_parameter_of_openai_is_sent_and_others_are_refused(endpoint: Endpoint) -> None:
    engine = connect(endpoint)
    tools = (Tool("look_up", "Looks", '{"type": "object"}', strict=True), Tool("mail"))
    sampling = Sampling(
        presence_penalty=0.5, frequency_penalty=-0.5, logit_bias=((7, -100.0), (9, 2.5)), logprobs=2, tools=tools,
        tool_choice="mail", parallel_tool_calls=False, constraint=FORMS["json_schema"],
    )  # fmt: skip
    endpoint.before = [chat_answer("stop", content="a")]
    picture = Image("data:image/png;base64,AA==", 4)
    engine.generate([(Message("user", "see this", images=(picture,)),)], sampling)
    assert sent(endpoint) == {
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "logit_bias": {"7": -100.0, "9": 2.5},
        "logprobs": True,
        "top_logprobs": 2,
        "tools": [tool.as_dict() for tool in tools],
        "tool_choice": {"type": "function", "function": {"name": "mail"}},
        "parallel_tool_calls": False,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA},
        },
    }
    parts = [{"type": "text", "text": "see "}, {"type": "image_url", "image_url": {"url": picture.url}}]
    assert endpoint.bodies[-1]["messages"][0]["content"] == [*parts, {"type": "text", "text": "this"}]
    for refused in (Sampling(top_k=3), Sampling(min_p=0.1), Sampling(constraint=FORMS["regex"]), Sampling(beams=2)):
        with pytest.raises(UnsupportedError, match=next(iter(refused.parameters()))):
            engine.generate([user("q")], refused)
        with pytest.raises(UnsupportedError):
            engine.stream(user("q"), refused)
    assert len(endpoint.bodies) == 1


@pytest.mark.parametrize(
    ("owner", "version", "form", "expected"),
    [
        ("vllm", "0.24.0", "json", {"structured_outputs": {"json_object": True}}),
        ("vllm", "0.24.0", "json_schema", {"structured_outputs": {"json": SCHEMA}}),
        ("vllm", "0.24.0", "regex", {"structured_outputs": {"regex": "a+"}}),
        ("vllm", "1.0.0rc1", "choice", {"structured_outputs": {"choice": ["yes", "no"]}}),
        ("vllm", "odd", "grammar", {"structured_outputs": {"grammar": 'root ::= "a"'}}),
        ("vllm", "0.9.2", "json", {"response_format": {"type": "json_object"}}),
        ("vllm", "0.9.2", "json_schema", {"guided_json": SCHEMA}),
        ("vllm", "0.9.2", "choice", {"guided_choice": ["yes", "no"]}),
        ("vllm", "0.9.2", "grammar", {"guided_grammar": 'root ::= "a"'}),
        ("somebody", "", "json", {"response_format": {"type": "json_object"}}),
        ("luthier", "", "choice", {"structured_outputs": {"choice": ["yes", "no"]}}),
    ],
)
def test_a_form_is_asked_for_as_the_endpoint_understands_it(
    endpoint: Endpoint, owner: str, version: str, form: str, expected: dict[str, Any]
) -> None:
    endpoint.owner, endpoint.version = owner, version
    engine = connect(endpoint)
    assert form in engine.info.parameters
    engine.generate([user("q")], Sampling(constraint=FORMS[form]))
    assert sent(endpoint) == (VLLM if owner == "vllm" else {}) | expected


def test_what_a_vllm_is_not_told_would_come_from_the_models_files(endpoint: Endpoint) -> None:
    endpoint.owner, endpoint.version = "vllm", "0.24.0"
    engine = connect(endpoint)
    engine.generate([user("q")], Sampling())
    assert sent(endpoint) == VLLM
    engine.generate([user("q")], Sampling(temperature=1.0, top_p=0.5, top_k=7, min_p=0.2, repetition_penalty=1.2))
    assert sent(endpoint) == VLLM | {"top_p": 0.5, "top_k": 7, "min_p": 0.2, "repetition_penalty": 1.2}


def test_an_endpoint_that_was_down_is_recognised_when_it_is_up(endpoint: Endpoint) -> None:
    with serving(FastAPI()) as url:
        pass
    engine = connect(SimpleNamespace(url=url), retries=0)
    assert "top_k" not in engine.info.parameters
    with pytest.raises(EngineError, match="cannot reach") as raised:
        check_health(engine, 1.0)
    assert raised.value.retryable
    endpoint.owner, endpoint.version = "vllm", "0.24.0"
    engine._client.base_url = endpoint.url + "/"  # type: ignore[attr-defined]
    engine._ask_again = 0.0  # type: ignore[attr-defined]
    check_health(engine, 5.0)
    assert {"top_k", "regex"} <= engine.info.parameters


def test_what_an_operator_says_it_accepts(endpoint: Endpoint) -> None:
    assert connect(endpoint, accepts=[]).info.parameters == frozenset()
    assert connect(endpoint, accepts=["top_k", "regex"], structured="vllm").info.parameters == {"top_k", "regex"}
    assert "json" not in connect(endpoint, structured="none").info.parameters
    with pytest.raises(InputError, match=r"accepts: 'topk' .*'top_k'"):
        connect(endpoint, accepts=["topk"])
    with pytest.raises(InputError, match=r"accepts: regex cannot be written .*structured: openai"):
        connect(endpoint, accepts=["regex"])


def test_health(endpoint: Endpoint) -> None:
    check_health(connect(endpoint), 5.0)  # it has no list of models, but it answers
    endpoint.owner, endpoint.version = "vllm", "0.24.0"
    engine = connect(endpoint)
    check_health(engine, 5.0)
    endpoint.well = False
    with pytest.raises(EngineError, match="503"):
        check_health(engine, 5.0)


def test_several_drawn_answers_to_one_prompt_are_one_request(endpoint: Endpoint) -> None:
    def three() -> Response:
        choices = [
            {"index": i, "message": {"role": "assistant", "content": "x" * i}, "finish_reason": "stop"} for i in (1, 2)
        ]
        usage = {"prompt_tokens": 7, "completion_tokens": 10, "total_tokens": 17}
        return JSONResponse({"id": "1", "object": "chat.completion", "created": 1, "choices": choices, "usage": usage})

    endpoint.before = [three]
    seen: list[tuple[str, int, int]] = []
    drawn = Sampling(temperature=1.0)
    made = connect(endpoint, concurrency=1).generate([user("ab")] * 3, drawn, lambda *told: seen.append(told))
    assert [answer.text for answer in made] == ["x", "xx", "ba"]  # it gave two of three, and was asked for one more
    assert [body.get("n") for body in endpoint.bodies] == [3, None]
    assert [answer.completion_tokens for answer in made] == [4, 6, 3]
    assert seen == [("generate", 3, 3)]
    connect(endpoint).generate([user("ab")] * 2, Sampling())
    connect(endpoint).generate([user("ab")] * 2, Sampling(temperature=1.0, seed=1))
    assert [body.get("n") for body in endpoint.bodies[2:]] == [None] * 4


def chat_answer(finish: str, usage: Any = None, logprobs: Any = None, **message: Any) -> Callable[[], Response]:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish, "logprobs": logprobs}
    return lambda: JSONResponse({"id": "1", "object": "chat.completion", "choices": [choice], "usage": usage})


CALLS = [
    {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": '{"n": 1}'}},
    {"id": "c2", "type": "function", "function": {"name": "mail", "arguments": "{}"}},
]
READ_CALLS = (ToolCall("look_up", '{"n": 1}', "c1"), ToolCall("mail", "{}", "c2"))
TOOLS = Sampling(tools=(Tool("look_up"), Tool("mail")))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (chat_answer("length", content="a"), ("a", "length")),
        (chat_answer("content_filter", content=""), ("", "content_filter")),
        (chat_answer("stop", content=None, refusal="No."), ("No.", "content_filter")),
        (chat_answer("tool_calls", content=None, tool_calls=CALLS), ("", "tool_calls")),
        (chat_answer("stop", content="", tool_calls=CALLS), ("", "tool_calls")),
    ],
)
def test_how_an_answer_ended(endpoint: Endpoint, answer: Callable[[], Response], expected: tuple[str, str]) -> None:
    endpoint.before = [answer]
    (made,) = connect(endpoint).generate([user("q")], TOOLS)
    assert (made.text, made.finish_reason) == expected
    assert made.tool_calls == (READ_CALLS if expected[1] == "tool_calls" else ())


def test_cached_tokens_and_reasoning(endpoint: Endpoint) -> None:
    usage = {
        "prompt_tokens": 90,
        "completion_tokens": 2,
        "total_tokens": 92,
        "prompt_tokens_details": {"cached_tokens": 64},
    }
    endpoint.before = [chat_answer("stop", usage, content="42", reasoning="It must be 42.")]
    (made,) = connect(endpoint).generate([user("q")], Sampling())
    assert (made.cached_tokens, made.prompt_tokens, made.reasoning) == (64, 90, "It must be 42.")


def test_logprobs_keep_the_bytes_of_half_characters(endpoint: Endpoint) -> None:
    def token(text: str, data: list[int] | None, logprob: float, top: list[Any]) -> dict[str, Any]:
        return {"token": text, "bytes": data, "logprob": logprob, "top_logprobs": top}

    content = [
        token("?", [0xC3], -0.25, [token("?", [0xC3], -0.25, []), token("u", [0x75], -2.0, [])]),
        token("?", [0xA9], -0.5, []),
        token("t", None, -1.0, []),
    ]
    endpoint.before = [chat_answer("stop", logprobs={"content": content}, content="ét")]
    (made,) = connect(endpoint).generate([user("q")], Sampling(logprobs=2))
    assert b"".join(each.data for each in made.tokens).decode() == "ét"
    assert made.tokens[0].top == ((b"\xc3", -0.25), (b"u", -2.0))
    assert made.logprob == -1.75
    completion = {
        "tokens": ["do", "ne"],
        "token_logprobs": [-1.0, -0.5],
        "top_logprobs": [{"da": -1.5, "do": -1.0}, {"ne": -0.5}],
    }
    choice = {"index": 0, "text": "done", "finish_reason": "stop", "logprobs": completion}
    endpoint.before = [lambda: JSONResponse({"id": "1", "object": "text_completion", "choices": [choice]})]
    (made,) = connect(endpoint).generate(["raw"], Sampling(logprobs=2))
    assert endpoint.bodies[-1]["logprobs"] == 2
    assert [each.data for each in made.tokens] == [b"do", b"ne"]
    assert made.tokens[0].top == ((b"do", -1.0), (b"da", -1.5))


def chunk(finish: str | None = None, **delta: Any) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return json.dumps({"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]})


def part(index: int, id: str | None = None, name: str | None = None, arguments: str | None = None) -> dict[str, Any]:  # noqa: A002
    return {"index": index, "id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


@pytest.mark.parametrize("second", [1, 0])  # some servers say 0 for every call
def test_streamed_calls_come_whole(endpoint: Endpoint, second: int) -> None:
    events = [
        chunk(content="Let me see."),
        chunk(tool_calls=[part(0, "c1", "look_up", "")]),
        chunk(tool_calls=[part(0, None, None, '{"n"')]),
        chunk(tool_calls=[part(0, None, None, ": 1}")]),
        chunk(tool_calls=[part(second, "c2", "mail", "{")]),
        chunk(tool_calls=[part(second, None, None, "}")]),
        chunk("tool_calls"),
        "[DONE]",
    ]
    endpoint.before = [lambda: sse(events)]
    deltas = list(connect(endpoint).stream(user("q"), TOOLS))
    assert [delta.tool_calls for delta in deltas] == [(), READ_CALLS[:1], READ_CALLS[1:], ()]
    assert deltas[0].text == "Let me see."
    last = deltas[-1].generation
    assert last is not None
    assert (last.tool_calls, last.finish_reason) == (READ_CALLS, "tool_calls")


@pytest.mark.parametrize(
    ("code", "headers", "retryable", "after"),
    [
        (429, {"retry-after": "7"}, True, 7.0),
        (429, {"retry-after-ms": "250", "retry-after": "7"}, True, 0.25),
        (503, {"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, True, 0.0),
        (503, {"retry-after": "soon"}, True, None),
        (500, {}, True, None),
        (401, {}, False, None),
    ],
)
def test_an_error_says_whether_and_when_to_try_again(
    endpoint: Endpoint, code: int, headers: dict[str, str], retryable: bool, after: float | None
) -> None:
    endpoint.before = [status(code, "no", **headers)]
    with pytest.raises(EngineError) as raised:
        connect(endpoint, retries=0).generate([user("q")], Sampling())
    assert (raised.value.retryable, raised.value.retry_after_s) == (retryable, after)


def test_broken_streams_may_be_tried_again_and_nonsense_may_not(endpoint: Endpoint) -> None:
    failed = [CHUNK, '{"error": {"message": "ran out of memory"}}']
    for events, retryable in (
        ([CHUNK], True),
        (failed, True),
        ([CHUNK, chunk("error")], True),
        ([CHUNK, "{bad"], False),
    ):
        endpoint.before = [lambda events=events: sse(events)]
        with pytest.raises(EngineError) as raised:
            list(connect(endpoint).stream(user("a"), Sampling()))
        assert raised.value.retryable is retryable


def test_a_luthier_understands_everything(endpoint: Endpoint) -> None:
    endpoint.owner = "luthier"
    engine = connect(endpoint)
    assert engine.info.parameters == set(PARAMETERS)
    engine.generate([user("q")], Sampling(beams=4, min_p=0.0))
    assert sent(endpoint) == {"beams": 4}


@pytest.mark.parametrize(
    "error",
    [
        {"message": "too long", "code": "context_length_exceeded"},
        {"message": "This model's maximum context length is 4096 tokens"},
    ],
)
def test_a_prompt_that_is_too_long_has_its_own_error(endpoint: Endpoint, error: dict[str, str]) -> None:
    endpoint.before = [lambda: JSONResponse({"error": error}, status_code=400)]
    with pytest.raises(ContextLengthError, match=error["message"]):
        connect(endpoint).generate([user("ab")], Sampling())


@pytest.fixture
def real(tiny_decoder: str) -> Any:
    """A stored base whose tokenizer and template the endpoint is said to have."""
    from luthier.models.load import load_renderer
    from luthier.store.artifacts import path_of
    from luthier.store.database import open_store
    from luthier.store.models import find

    store = open_store()
    return SimpleNamespace(store=store, renderer=load_renderer(path_of(store, find(store, tiny_decoder).digest)))


LOOK = Sampling(tools=(Tool("look_up", parameters='{"type": "object", "properties": {"n": {"type": "integer"}}}'),))
CALL = '<tool_call>\n{"name": "look_up", "arguments": {"n": 1}}\n</tool_call>'


def completion(text: str, logprobs: Any = None) -> Callable[[], Response]:
    choice = {"index": 0, "text": text, "finish_reason": "stop", "logprobs": logprobs}
    return lambda: JSONResponse({"id": "1", "object": "text_completion", "choices": [choice]})


def test_with_a_tokenizer_tools_are_rendered_and_calls_read_here(endpoint: Endpoint, real: Any) -> None:
    endpoint.owner, endpoint.version = "vllm", "0.24.0"
    engine = connect(endpoint, store=real.store, tokenizer="tiny-decoder")
    assert "tools" in engine.info.parameters
    assert "images" not in engine.info.parameters
    prompt = user("Where is parcel 1?")
    written = [tool.as_dict() for tool in LOOK.tools]
    endpoint.before = [completion(f"Let me see.\n{CALL}")]
    (made,) = engine.generate([prompt], LOOK)
    assert endpoint.bodies[-1]["prompt"] == real.renderer.prompt_ids(prompt, written)
    assert not {"tools", "tool_choice", "structured_outputs"} & set(endpoint.bodies[-1])
    assert (made.text, made.finish_reason) == ("Let me see.", "tool_calls")
    assert [(call.name, call.arguments) for call in made.tool_calls] == [("look_up", '{"n": 1}')]
    chunks = [{"id": "1", "object": "text_completion", "created": 1, "model": "m", "choices": [
        {"index": 0, "text": piece, "finish_reason": None if piece else "stop", "logprobs": None}]}
        for piece in [*CALL, ""]]  # fmt: skip
    endpoint.before = [lambda: sse([json.dumps(each) for each in chunks] + ["[DONE]"])]
    deltas = list(engine.stream(prompt, LOOK))
    assert [call.arguments for delta in deltas for call in delta.tool_calls] == ['{"n": 1}']
    assert "".join(delta.text for delta in deltas) == ""
    last = deltas[-1].generation
    assert last is not None
    assert (last.text, last.finish_reason, len(last.tool_calls)) == ("", "tool_calls", 1)


def test_with_a_tokenizer_calls_are_forced_by_a_grammar_where_the_endpoint_follows_one(
    endpoint: Endpoint, real: Any
) -> None:
    forced = replace(LOOK, tool_choice="required")
    with pytest.raises(UnsupportedError, match="grammar"):
        connect(endpoint, store=real.store, tokenizer="tiny-decoder").generate([user("q")], forced)
    endpoint.owner, endpoint.version = "vllm", "0.24.0"
    endpoint.before = [lambda: None, completion(CALL)]  # the first question is whether it echoes
    (made,) = connect(endpoint, store=real.store, tokenizer="tiny-decoder").generate([user("q")], forced)
    assert "look_up" in endpoint.bodies[-1]["structured_outputs"]["grammar"]
    assert len(made.tool_calls) == 1


def test_with_a_tokenizer_vllm_tells_tokens_by_their_ids(endpoint: Endpoint, real: Any) -> None:
    endpoint.owner, endpoint.version = "vllm", "0.24.0"
    engine = connect(endpoint, store=real.store, tokenizer="tiny-decoder")
    ids = real.renderer.plain_ids("é")
    names = [f"token_id:{token}" for token in ids]
    said = {"tokens": names, "token_logprobs": [-1.0] * len(ids), "top_logprobs": [{name: -1.0} for name in names]}
    endpoint.before = [completion("é", said)]
    (made,) = engine.generate(["raw"], Sampling(logprobs=1))
    assert endpoint.bodies[-1]["return_tokens_as_token_ids"] is True
    assert b"".join(token.data for token in made.tokens) == "é".encode()
    assert [token.top[0][0] for token in made.tokens] == [token.data for token in made.tokens]
