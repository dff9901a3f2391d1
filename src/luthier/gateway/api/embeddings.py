"""POST /v1/embeddings."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field, PlainValidator, WithJsonSchema
from starlette.requests import Request
from starlette.responses import Response

from luthier.core.digest import digest_json
from luthier.core.engine import EMBED, Vectors
from luthier.core.errors import LuthierError
from luthier.gateway.access.caller import Caller
from luthier.gateway.access.quota import tokens_of
from luthier.gateway.answer import json_response, operate, trace_headers
from luthier.gateway.api.wire import TEXTS_SCHEMA, Body, RequestError, bad, text_list
from luthier.gateway.exchange import GONE, Exchange
from luthier.gateway.service import Served, Service
from luthier.gateway.targets.gate import BATCH
from luthier.gateway.targets.routes import ask_engine

if TYPE_CHECKING:
    from tokenizers import Tokenizer

AT_ONCE = 256
"""Texts between two looks at whether the client is still there."""

MOST_TEXTS = 2048

Part = tuple[Vectors, int]  # vectors, and how many tokens they are of


def _inputs(value: Any) -> list[str]:
    if isinstance(value, list) and value and _are_ids(value[0]):
        raise bad(
            "must be text: token ids are not accepted, because those of another tokenizer would be read as other words "
            "(LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False) sends text)"
        )
    texts = text_list(value)
    if not 1 <= len(texts) <= MOST_TEXTS:
        raise bad(f"must hold 1 to {MOST_TEXTS} texts; got {len(texts):,}")
    return texts


def _are_ids(first: Any) -> bool:
    return isinstance(first, int) or (isinstance(first, list) and all(isinstance(each, int) for each in first[:1]))


class EmbeddingRequest(Body):
    """Texts to embed. ``dimensions`` may only repeat the model's own width."""

    model: str = Field(max_length=512)
    input: Annotated[list[str], PlainValidator(_inputs), WithJsonSchema(TEXTS_SCHEMA)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, ge=1)
    user: str | None = Field(default=None, max_length=512)


async def embed(service: Service, request: Request, body: EmbeddingRequest) -> Response:
    """Embed texts. Raises LuthierError for what is refused: by keys and limits, the engine, or a full server."""
    # bulk input is not kept, only enough to recognise it
    about = {"inputs": len(body.input), "input_digest": digest_json(body.input), "user": body.user}
    exchange = Exchange(
        "embedding", body.model, request.scope["luthier.caller"], parameters=about, session=body.user or ""
    )
    exchange.expected_tokens = sum(tokens_of(text) for text in body.input)

    async def work() -> Vectors:
        embedded = partial(embed_parts, texts=body.input)
        vectors = collected(exchange, await ask_engine(service, exchange, EMBED, embedded, body.input))
        check_width(body, vectors)
        return vectors

    vectors = await operate(service, request, exchange, work)
    content = embedding_content(body, vectors, exchange.prompt_tokens)
    return json_response(content, headers=trace_headers(exchange.id) | exchange.headers)


async def embed_batch(
    service: Service, caller: Caller, bodies: Sequence[EmbeddingRequest]
) -> list[tuple[str, dict[str, Any]]]:
    """(request id, response body) of requests that agree in model and dimensions: lines of a batch, embedded together. Raises LuthierError."""
    texts = [text for body in bodies for text in body.input]
    about = {"inputs": len(texts), "input_digest": digest_json(texts)}
    exchange = Exchange("embedding", bodies[0].model, caller, parameters=about, priority=BATCH)
    exchange.expected_tokens = sum(tokens_of(text) for text in texts)
    error: str | LuthierError = GONE
    try:
        await service.admit(exchange, bulk=True)
        embedded = partial(embed_parts, texts=texts)
        vectors = collected(exchange, await ask_engine(service, exchange, EMBED, embedded, texts))
        check_width(bodies[0], vectors)
        error = ""
    except LuthierError as raised:
        error = raised
        raise
    finally:
        service.finish(exchange, error)
    served = exchange.served
    assert served is not None
    tokens = await asyncio.to_thread(lambda: [count_tokens(served, body.input) for body in bodies])
    out, start = [], 0
    for body, count in zip(bodies, tokens, strict=True):
        end = start + len(body.input)
        out.append((exchange.id, embedding_content(body, vectors[start:end], count)))
        start = end
    return out


def check_width(body: EmbeddingRequest, vectors: Vectors) -> None:
    """Raise RequestError unless vectors have the width that is asked for."""
    if body.dimensions not in (None, vectors.shape[1]):
        raise RequestError(
            f"dimensions must be {vectors.shape[1]}, the width of {body.model}, or be left out; got {body.dimensions}",
            param="dimensions",
            code="unsupported_value",
        )


def embedding_content(body: EmbeddingRequest, vectors: Vectors, tokens: int) -> dict[str, Any]:
    """The body of a response."""
    write = _base64 if body.encoding_format == "base64" else _floats
    listed = [{"object": "embedding", "index": i, "embedding": write(vector)} for i, vector in enumerate(vectors)]
    return {
        "object": "list", "data": listed, "model": body.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }  # fmt: skip


def embed_parts(served: Served, stopped: threading.Event, texts: list[str]) -> Iterator[Part]:
    """The vectors of texts, ``AT_ONCE`` at a time."""
    for start in range(0, len(texts), AT_ONCE):
        if stopped.is_set():
            return
        some = texts[start : start + AT_ONCE]
        yield served.engine.embed(some), count_tokens(served, some)


def collected(exchange: Exchange, parts: Sequence[Part]) -> Vectors:
    """All vectors; their tokens are the exchange's."""
    exchange.prompt_tokens += sum(tokens for _, tokens in parts)
    return np.concatenate([vectors for vectors, _ in parts])


def count_tokens(served: Served, texts: list[str]) -> int:
    """Tokens of ``texts`` as the model reads them, cut at its context; 0 when its tokenizer is not on this machine."""
    if served.tokenizer is None:
        return 0
    most = served.engine.info.context_length or 2**31
    tokenizer = _tokenizer(str(served.tokenizer / "tokenizer.json"))
    if tokenizer is None:
        return 0
    encoded = tokenizer.encode_batch_fast(texts)
    return sum(min(len(each.ids), most) for each in encoded)


@lru_cache(maxsize=16)
def _tokenizer(path: str) -> Tokenizer | None:
    """The tokenizer in a file; None when the file is gone, because the model was deleted while it serves."""
    from tokenizers import Tokenizer

    if not Path(path).is_file():
        return None
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
