from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from luthier.core.errors import NotFoundError, UnsupportedError
from luthier.scorers._score import Answer, Resources, Target
from luthier.scorers.embedding_similarity import Config, score, score_many
from luthier.store.database import open_store
from luthier.strategies._load import load

TEXTS = ["The parcel has not arrived.", "Please refund the deposit.", "我的包裹还没有到,请帮我查一下。", "account"]


def test_it_is_the_cosine_of_the_embedders_vectors(tiny_encoder: str) -> None:
    config = Config(model=tiny_encoder)
    targets = [Target(text) for text in (*TEXTS[1:], TEXTS[0])]
    got = score_many([Answer(text) for text in TEXTS], targets, config, Resources())
    engine = load(tiny_encoder)
    vectors = np.stack([engine.embed([text])[0] for text in TEXTS])
    engine.close()
    expected = [vectors[i] @ vectors[(i + 1) % 4] for i in range(4)]
    assert [one.value for one in got] == pytest.approx(expected, abs=1e-5)
    assert score(Answer(TEXTS[0]), Target(TEXTS[0]), config).value == pytest.approx(1.0)


def test_the_nearest_accepted_answer_counts() -> None:
    config = Config(model="fake")
    target = Target("a b c", references=("a b c", "parcel refund", "x"))
    got = score(Answer("refund parcel"), target, config)
    assert got.value == pytest.approx(1.0)
    assert got.detail["nearest"] == "parcel refund"
    assert score(Answer("refund"), Target("parcel refund"), config).value < 1.0  # type: ignore[operator]


def test_empty_texts_score_zero() -> None:
    config = Config(model="fake")
    assert score(Answer(" \n"), Target("x"), config).value == 0.0
    assert score(Answer("x"), Target(""), config).value == 0.0
    assert score_many([], [], config, Resources()) == []


def test_models_that_are_not_there_or_cannot_embed_are_named(
    tiny_encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotFoundError, match="no-such"):
        score(Answer("x"), Target("x"), Config(model="no-such"))
    engine = load("fake")
    engine._info = engine.info.with_(capabilities=frozenset({"generate"}))  # type: ignore[attr-defined]
    resources = Resources()
    monkeypatch.setattr(resources, "engine", lambda *_: engine)
    with pytest.raises(UnsupportedError, match="cannot embed"):
        score_many([Answer("x")], [Target("x")], Config(model="fake"), resources)


@pytest.mark.models
def test_the_real_embedder_knows_meaning(real_home: Path) -> None:
    resources = Resources(open_store(real_home))
    target = Target("My parcel has not arrived yet.")
    answers = [Answer("Where is my package?"), Answer("I play the violin.")]
    near, far = (one.value or 0.0 for one in score_many(answers, [target] * 2, Config(), resources))
    resources.close()
    assert near > far + 0.3
