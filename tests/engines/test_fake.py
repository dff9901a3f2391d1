"""The fake engine keeps the whole engine contract, deterministically."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from luthier.core import catalog
from luthier.core.engine import EMBED, GENERATE, SCORE, STREAM, Engine, Sampling, ScoreRequest
from luthier.core.errors import InputError
from luthier.core.message import Message, user


def make(name: str = "fake", **options: Any) -> Engine:
    entry = catalog.load("engines", "fake")
    engine: Engine = entry(SimpleNamespace(name=name, record=None, base=None, store=None), entry.configure(options))
    return engine


def test_it_is_an_engine_that_can_everything() -> None:
    engine = make()
    assert isinstance(engine, Engine)
    assert engine.info.capabilities == {GENERATE, STREAM, SCORE, EMBED}
    engine.close()
    engine.close()


def test_equal_requests_get_equal_answers_in_another_process() -> None:
    text = make().generate([user("Where is my parcel?")], Sampling())[0].text
    code = (
        "from types import SimpleNamespace as N; from luthier.core.engine import Sampling; "
        "from luthier.core.message import user; from luthier.engines import fake; "
        "print(fake.open(N(name='fake'), fake.Config()).generate([user('Where is my parcel?')], Sampling())[0].text)"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == text


def test_prompt_and_seed_change_the_answer_greedy_ignores_the_seed() -> None:
    engine = make()
    prompts = [user(f"question {i}") for i in range(20)]
    greedy = [g.text for g in engine.generate(prompts, Sampling())]
    assert len(set(greedy)) == 20
    assert greedy == [g.text for g in engine.generate(prompts, Sampling(seed=5))]
    drawn = [[g.text for g in engine.generate(prompts, Sampling(temperature=1.0, seed=s))] for s in (1, 2, 1)]
    assert drawn[0] == drawn[2] != drawn[1]


def test_labels_bound_the_answers_and_follow_the_text() -> None:
    engine = make("fake:billing,delivery")
    assert engine.info.labels == ("billing", "delivery")
    answers = engine.generate([user("a delivery question"), user("my billing address")], Sampling())
    assert [a.text for a in answers] == ["delivery", "billing"]
    everything = engine.generate([user(str(i)) for i in range(30)], Sampling(temperature=1.0, seed=3))
    assert {a.text for a in everything} == {"billing", "delivery"}


def test_generate_agrees_with_score_on_labels() -> None:
    engine = make(labels=["a", "b", "c"])
    prompts = [user(f"text {i}") for i in range(25)]
    scored = engine.score([ScoreRequest(p, ("a", "b", "c")) for p in prompts])
    best = ["abc"[int(np.argmax([s.logprob for s in row]))] for row in scored]
    assert best == [g.text for g in engine.generate(prompts, Sampling())]
    assert all(s.logprob < 0 and s.tokens == 2 for row in scored for s in row)  # one word and the end of the turn


def test_mapped_answers_win_and_the_longest_key_wins() -> None:
    engine = make(answers={"refund": "Refunds take a day.", "refund policy": "See page 4."}, labels=["x"])
    prompts = [user("the refund policy?"), user("my refund"), user("other")]
    assert [g.text for g in engine.generate(prompts, Sampling())] == ["See page 4.", "Refunds take a day.", "x"]
    assert engine.info.labels == ()


def test_length_stop_and_token_counts() -> None:
    engine = make(answers={"q": "one two  three STOP five "})
    whole = engine.generate([user("q")], Sampling())[0]
    assert (whole.finish_reason, whole.completion_tokens, len(whole.token_ids)) == ("stop", 5, 5)
    cut = engine.generate([user("q")], Sampling(max_new_tokens=2))[0]
    assert (cut.text, cut.finish_reason, cut.completion_tokens) == ("one two", "length", 2)
    stopped = engine.generate([user("q")], Sampling(stop=("STOP", "five")))[0]
    assert (stopped.text, stopped.finish_reason) == ("one two  three ", "stop")
    assert whole.prompt_tokens == len(whole.prompt_token_ids) == 2  # "user: q"


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(max_new_tokens=3), Sampling(stop=("three",))])
def test_the_stream_is_the_answer(sampling: Sampling) -> None:
    engine = make(answers={"q": "one two  three\nfour"})
    pieces = list(engine.stream(user("q"), sampling))
    answer = engine.generate([user("q")], sampling)[0]
    assert "".join(p.text for p in pieces) == answer.text
    assert [p.generation for p in pieces[:-1]] == [None] * (len(pieces) - 1)
    last = pieces[-1].generation
    assert last is not None
    assert (last.token_ids, last.finish_reason) == (answer.token_ids, answer.finish_reason)
    assert 0 <= last.first_token_s <= last.latency_s


def test_embeddings_are_unit_vectors_and_like_texts_are_near() -> None:
    vectors = make(width=128).embed(["my parcel is late", "my parcel is very late", "sing a song", ""])
    assert vectors.shape == (4, 128)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-6)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="at most 3"):
        make(context_length=3).generate([user("one two three four")], Sampling())
    with pytest.raises(InputError, match="at most 3"):
        make(context_length=3).stream(user("one two three four"), Sampling())
    with pytest.raises(InputError, match="user turn"):
        make().generate([(Message("system", "hello"),)], Sampling())
    with pytest.raises(InputError, match="latency_s"):
        make(latencys=1)


def test_progress_counts_every_item() -> None:
    seen: list[tuple[str, int, int]] = []
    make().generate([user("a"), user("b")], Sampling(), lambda *args: seen.append(args))
    make().score([ScoreRequest("a", ("b",))], lambda *args: seen.append(args))
    assert seen == [("generate", 1, 2), ("generate", 2, 2), ("score", 1, 1)]
