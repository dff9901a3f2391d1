"""Requests into rows and back."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from luthier.core.engine import ContinuationScore, EngineInfo, ScoreRequest
from luthier.core.errors import InputError
from luthier.core.message import user
from luthier.data.render import Renderer
from luthier.engines._scoring import Asked, ScoreRow, ask

INFO = EngineInfo("tiny", "torch", frozenset(), context_length=40)


@pytest.fixture
def renderer(tiny_decoder_path) -> Renderer:
    return Renderer(AutoTokenizer.from_pretrained(str(tiny_decoder_path)))


def test_conversations_and_texts_keep_their_order(renderer: Renderer) -> None:
    requests = [
        ScoreRequest("Where is", (" it", " my parcel")),
        ScoreRequest(user("refund"), ("yes",)),
        ScoreRequest("a", ()),
    ]
    asked = ask(requests, renderer, INFO)
    assert asked.parts == [[[(0, 0)], [(0, 1)]], [[(1, 0)]], []]
    assert asked.rows[0].prompt == renderer.tokenizer.encode("Where is")
    assert asked.rows[1].prompt == renderer.prompt_ids(user("refund"))
    assert asked.rows[1].continuations == [renderer.continuation_ids("yes", ends_turn=True)]


def test_a_long_text_is_windows_and_its_score_their_sum(renderer: Renderer) -> None:
    text = "The parcel has not arrived. " * 20
    asked = ask([ScoreRequest("", (text, "short"))], renderer, INFO, window=30)
    ids = renderer.tokenizer.encode(text)
    assert [t for row in asked.rows[:-1] for t in row.continuations[0]] == ids
    assert all(len(row.prompt) + len(row.continuations[0]) - 1 <= 30 for row in asked.rows)
    results = [[ContinuationScore(-1.0, 0, True)] for _ in asked.rows]
    ((whole, short),) = asked.scores(results)
    assert whole == ContinuationScore(-float(len(asked.rows) - 1), len(ids), True) and short.logprob == -1.0
    results[1] = [ContinuationScore(-1.0, 0, False)]
    assert asked.scores(results)[0][0].greedy is False


def test_unknown_stays_unknown() -> None:
    asked = Asked([ScoreRow([1], [[2]]), ScoreRow([1], [[2]])], [[[(0, 0), (1, 0)]]])
    assert asked.scores([[ContinuationScore(0, 1, True)], [ContinuationScore(0, 1, None)]])[0][0].greedy is None
    assert asked.scores([[ContinuationScore(0, 1, False)], [ContinuationScore(0, 1, None)]])[0][0].greedy is False


def test_what_does_not_fit_is_named(renderer: Renderer) -> None:
    long = "The parcel has not arrived. " * 20
    with pytest.raises(InputError, match=r"prompt 2 of 2 and its continuation have \d+ \+ 2 tokens; tiny reads 40"):
        ask([ScoreRequest("a", ("b",)), ScoreRequest(long, ("b",))], renderer, INFO)
    with pytest.raises(InputError, match="must not be empty"):
        ask([ScoreRequest("a", ("b", ""))], renderer, INFO)
