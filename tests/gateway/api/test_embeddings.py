from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from luthier.gateway.api.embeddings import count_tokens
from luthier.gateway.service import Served
from luthier.store.traces import find_trace

TEXTS = ["where is my parcel", "pay me back", "where is my parcel"]


def test_vectors_are_the_engine_s(server: Any, make_fake: Any) -> None:
    expected = make_fake("fake").embed(TEXTS)
    answer = server.client().embeddings.create(model="fake", input=TEXTS)  # the client asks for base64
    assert [each.index for each in answer.data] == [0, 1, 2]
    np.testing.assert_array_equal(np.array([each.embedding for each in answer.data], dtype=np.float32), expected)
    floats = server.client().embeddings.create(model="fake", input=TEXTS, encoding_format="float")
    np.testing.assert_allclose(np.array([each.embedding for each in floats.data]), expected, rtol=1e-6)
    single = server.client().embeddings.create(model="fake", input=TEXTS[0])
    np.testing.assert_array_equal(np.float32(single.data[0].embedding), expected[0])


def test_many_texts_keep_their_order(server: Any, make_fake: Any) -> None:
    texts = [f"text number {number}" for number in range(700)]
    answer = server.client().embeddings.create(model="fake", input=texts)
    got = np.array([each.embedding for each in answer.data], dtype=np.float32)
    np.testing.assert_array_equal(got, make_fake("fake").embed(texts))


def test_the_trace_keeps_no_texts(server: Any) -> None:
    body = {"model": "fake", "input": TEXTS}
    trace_id = httpx.post(f"{server.base_url}/embeddings", json=body).headers["x-luthier-trace-id"]
    assert httpx.get(f"{server.base_url}/traces/{trace_id}").json()["operation"] == "embedding"
    trace = find_trace(server.store, trace_id)
    assert trace.messages == ()
    assert trace.parameters["inputs"] == 3
    assert "parcel" not in str(trace)


def test_what_is_refused(server: Any, start: Any, scripted: Any) -> None:
    client = server.client()
    with pytest.raises(openai.BadRequestError, match="dimensions must be 64"):
        client.embeddings.create(model="fake", input="x", dimensions=32)
    assert client.embeddings.create(model="fake", input="x", dimensions=64).data
    with pytest.raises(openai.BadRequestError, match="token ids"):
        client.embeddings.create(model="fake", input=[1, 2, 3])
    with pytest.raises(openai.BadRequestError, match="cannot embed"):
        start({"m": scripted()}).client().embeddings.create(model="m", input="x")


def test_tokens_are_counted_with_the_model_s_tokenizer(tiny_encoder_path: Path, scripted: Any) -> None:
    from tokenizers import Tokenizer

    path = str(tiny_encoder_path / "tokenizer.json")
    served = Served("m", scripted(), tokenizer=tiny_encoder_path)
    expected = [len(Tokenizer.from_file(path).encode(text).ids) for text in TEXTS]
    assert count_tokens(served, TEXTS) == sum(expected)
    assert count_tokens(served, ["parcel " * 5000]) == served.engine.info.context_length
    assert count_tokens(Served("m", scripted()), TEXTS) == 0
