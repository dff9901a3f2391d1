from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
import pytest

from luthier.gateway.api.rerank import RerankRequest
from luthier.gateway.api.wire import RequestError, read
from luthier.store.traces import find_trace

QUERY = "where is my parcel"
DOCUMENTS = ["pay me back", "the parcel is late", "where is my parcel", "a violin"]


def ask(server: Any, **fields: Any) -> httpx.Response:
    return httpx.post(f"{server.base_url}/rerank", json={"query": QUERY, "documents": DOCUMENTS, **fields})


def test_an_embedding_model_scores_by_cosine(server: Any, make_fake: Any) -> None:
    query, *rows = make_fake("fake").embed([QUERY, *DOCUMENTS])
    cosines = [float(np.dot(query, row)) for row in rows]
    body = ask(server, model="fake").json()
    assert [each["index"] for each in body["results"]] == list(np.argsort([-each for each in cosines], kind="stable"))
    for each in body["results"]:
        assert each["relevance_score"] == pytest.approx(cosines[each["index"]], abs=1e-6)
        assert each["document"]["text"] == DOCUMENTS[each["index"]]
    assert body["results"][0]["index"] == 2
    assert body["results"][0]["relevance_score"] == pytest.approx(1.0)


def test_a_reranker_reads_query_and_document_together(start: Any, scripted: Any) -> None:
    class Together(scripted):  # type: ignore[misc]
        def rerank(self, query: str, documents: Sequence[str], progress: Any = None) -> list[float]:
            self.asked.append((query, documents))
            return [len(text) / 1000 for text in documents]

    engine = Together(capabilities=frozenset({"rerank"}))
    server = start({"m": engine})
    documents = [f"document {'x' * (number % 7)} {number}" for number in range(150)]
    body = ask(server, model="m", documents=documents, top_n=5, return_documents=False).json()
    lengths = [len(text) for text in documents]
    best = sorted(range(150), key=lambda index: -lengths[index])[:5]
    assert body["results"] == [{"index": index, "relevance_score": lengths[index] / 1000} for index in best]
    assert [len(some) for _, some in engine.asked] == [64, 64, 22]
    assert {query for query, _ in engine.asked} == {QUERY}


def test_documents_may_be_objects_and_cohere_s_path_is_the_same(server: Any) -> None:
    plain = ask(server, model="fake").json()
    objects = [{"text": text} for text in DOCUMENTS]
    assert ask(server, model="fake", documents=objects).json()["results"] == plain["results"]
    body = {"model": "fake", "query": QUERY, "documents": DOCUMENTS}
    assert httpx.post(f"{server.root}/v2/rerank", json=body).json()["results"] == plain["results"]


def test_the_trace_keeps_no_texts(server: Any) -> None:
    trace_id = ask(server, model="fake").headers["x-luthier-trace-id"]
    assert httpx.get(f"{server.base_url}/traces/{trace_id}").json()["operation"] == "rerank"
    trace = find_trace(server.store, trace_id)
    assert trace.parameters["documents"] == 4
    assert "parcel" not in str(trace)


def test_a_model_that_can_do_neither_is_a_400(start: Any, scripted: Any) -> None:
    refused = ask(start({"m": scripted()}), model="m")
    assert refused.status_code == 400
    assert "neither rerank nor embed" in refused.json()["error"]["message"]
    assert ask(start({"n": scripted()}), model="m").status_code == 404


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"query": ""}, "query"), ({"query": " "}, "query"), ({"query": ["x"]}, "query"), ({"query": None}, "query"),
        ({"documents": []}, "documents"), ({"documents": "x"}, "documents"), ({"documents": ["a", 5]}, "documents[1]"),
        ({"documents": [{"title": "x"}]}, "documents[0].title"), ({"documents": ["a"] * 1025}, "documents"),
        ({"documents": [{"text": 3}]}, "documents[0]"), ({"top_n": 0}, "top_n"), ({"top_k": 3}, "top_k"),
        ({"return_documents": "yes"}, "return_documents"), ({"max_chunks_per_doc": 3}, "max_chunks_per_doc"),
    ],
)  # fmt: skip
def test_what_is_refused_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as raised:
        read(json.dumps({"model": "m", "query": "q", "documents": ["d"], **fields}).encode(), RerankRequest)
    assert (raised.value.http_status, raised.value.param) == (400, param)
