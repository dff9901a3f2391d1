"""POST /v1/embeddings."""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from luthier.core.digest import digest_json
from luthier.core.engine import EMBED, Vectors, require
from luthier.core.trace import Trace
from luthier.gateway.answer import GONE, give_back, keep_trace, trace_headers
from luthier.gateway.calls import Call, ClientGoneError, unless_gone
from luthier.gateway.service import Served, Service
from luthier.gateway.wire import EmbeddingRequest, RequestError
from luthier.store.home import new_id, now

if TYPE_CHECKING:
    from tokenizers import Tokenizer

AT_ONCE = 256
"""Texts between two looks at whether the client is still there."""

Part = tuple[Vectors, int]  # vectors, and how many tokens they are of


async def embed(service: Service, request: Request, body: EmbeddingRequest) -> Response:
    """Embed texts. Raises LuthierError for what the engine refuses, RequestError when the server is full."""
    served = service.model(body.model)
    require(served.engine, EMBED)
    trace_id, created_at, start = new_id("trace"), now(), time.perf_counter()

    def finish(error: str, tokens: int) -> None:
        info, took_s = served.engine.info, time.perf_counter() - start
        keep_trace(
            service,
            Trace(
                id=trace_id,
                created_at=created_at,
                model=served.name,
                operation="embedding",
                # bulk input is not kept, only enough to recognise it
                parameters={"inputs": len(body.input), "input_digest": digest_json(body.input), "user": body.user},
                model_digest=info.model_digest,
                base_digest=info.base_digest,
                prompt_tokens=tokens,
                latency_s=took_s,
                cost=served.price.prompt * tokens / 1e6,
                finish_reason="" if error else "stop",
                error=error,
            ),
        )

    try:
        await unless_gone(request.receive, service.gate.enter())
    except ClientGoneError:
        finish(GONE, 0)
        return Response(status_code=499)
    request.state.trace_id = trace_id
    call = _call(service, served, body, finish)
    call.start()
    try:
        vectors, tokens = await unless_gone(request.receive, _collect(call.results()))
    except ClientGoneError:
        return Response(status_code=499)
    finally:
        call.stop()
    if body.dimensions not in (None, vectors.shape[1]):
        raise RequestError(
            f"dimensions must be {vectors.shape[1]}, the width of {served.name}, or be left out; got {body.dimensions}",
            param="dimensions",
            code="unsupported_value",
        )
    write = _base64 if body.encoding_format == "base64" else _floats
    listed = [{"object": "embedding", "index": i, "embedding": write(vector)} for i, vector in enumerate(vectors)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    content = {"object": "list", "data": listed, "model": served.name, "usage": usage}
    return JSONResponse(content, headers=trace_headers(trace_id))


def _call(service: Service, served: Served, body: EmbeddingRequest, finish: Callable[[str, int], None]) -> Call[Part]:
    loop = asyncio.get_running_loop()
    tokens = 0

    def work(stopped: threading.Event) -> Iterator[Part]:
        nonlocal tokens
        for start in range(0, len(body.input), AT_ONCE):
            if stopped.is_set():
                return
            texts = body.input[start : start + AT_ONCE]
            made = count_tokens(served, texts)
            tokens += made
            yield served.engine.embed(texts), made

    def finished(error: Exception | None, took_s: float) -> None:
        try:
            finish(str(error) if error else GONE if call.stopped.is_set() else "", tokens)
        finally:
            give_back(service, loop, took_s)

    call: Call[Part] = Call(work, finished=finished)
    service.track(call.thread)
    return call


async def _collect(results: AsyncIterator[Part]) -> Part:
    parts = [part async for part in results]
    return np.concatenate([vectors for vectors, _ in parts]), sum(tokens for _, tokens in parts)


def count_tokens(served: Served, texts: list[str]) -> int:
    """Tokens of ``texts`` as the model reads them, cut at its context; 0 when its tokenizer is not on this machine."""
    if served.tokenizer is None:
        return 0
    most = served.engine.info.context_length or 2**31
    encoded = _tokenizer(str(served.tokenizer / "tokenizer.json")).encode_batch_fast(texts)
    return sum(min(len(each.ids), most) for each in encoded)


@lru_cache(maxsize=16)
def _tokenizer(path: str) -> Tokenizer:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(path)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _floats(vector: Any) -> list[float]:
    values: list[float] = vector.tolist()
    return values


def _base64(vector: Any) -> str:
    """Little-endian float32, as the openai client asks for by default."""
    return base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode("ascii")
