"""Embedders tuned on questions about a base."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.knowledge.scripted import Scripted

import luthier.training.tune
from luthier.core.errors import InputError, UnsupportedError
from luthier.engines.fake import Config, FakeEngine
from luthier.evaluation.statistics import wilson_interval
from luthier.knowledge.base import KnowledgeBase, create_base, open_base
from luthier.knowledge.gold import locate
from luthier.knowledge.questions import read_questions
from luthier.knowledge.synthesis import chunks_of
from luthier.knowledge.tune import _figure, ranks, tune_base

THINGS = ("parcel", "courier", "refund", "deposit", "violin", "lesson", "teacher", "password", "account", "code")


@pytest.fixture
def base(tiny_encoder: str, tmp_path: Path) -> Iterator[KnowledgeBase]:
    for thing in THINGS:
        (tmp_path / f"{thing}.txt").write_text(
            f"About the {thing}: it costs {len(thing)} coins and {thing[::-1]} is its mark."
        )
    with create_base("shop", embedder=tiny_encoder) as made:
        made.add([tmp_path / f"{thing}.txt" for thing in THINGS])
        yield made


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    rows = [
        {"question": f"{how} the {thing}?", "answers": [thing[::-1]], "source": f"{thing}.txt"}
        for thing in THINGS
        for how in ("What is the mark of", "By what is known", "Which sign has")
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_ranks_are_those_of_an_exact_search(base: KnowledgeBase, questions: Path) -> None:
    chunks = chunks_of(base)
    asked = locate(base, read_questions(questions).examples, chunks)
    assert all(len(each.gold) == 1 for each in asked)
    for each, rank in zip(asked, ranks(base.embedder, asked, chunks), strict=True):
        hits = base.search(each.question, 10, retrieval=[{"name": "dense", "exact": True}])
        at = [hit.chunk.id for hit in hits].index(each.gold[0].chunk.id)
        # equal scores may change places
        ours = next(n for n, hit in enumerate(hits) if math.isclose(hit.score, hits[at].score, abs_tol=1e-4))
        assert abs(rank - 1 - ours) <= 1


def test_an_embedder_is_tuned_measured_and_kept_apart_from_the_base(base: KnowledgeBase, questions: Path) -> None:
    stages: list[str] = []
    report = tune_base(
        "shop", questions, method="full", overrides=["train.max_steps=2", "train.batch_size=8"], negatives=2, k=(1, 3),
        progress=lambda stage, done, total: stages.append(stage),
    )  # fmt: skip
    assert (report.trained + report.held_out, report.unlocated) == (30, 0)
    assert report.held_out % 3 == 0, "whole documents are held out"
    assert report.model == "tiny-encoder-shop" and "negatives" in stages
    assert [each.k for each in report.figures] == [1, 3]
    for each in report.figures:
        assert each.change.value == pytest.approx(each.after.value - each.before.value)
        assert each.verdict in ("better", "worse", "no better")
    plain = report.as_dict()
    assert plain["verdict"] == report.figures[1].verdict and json.dumps(plain)
    with open_base("shop") as same:
        assert same.record.embedder == "tiny-encoder", "the base stays as it is"


def test_the_objective_sees_what_serving_embeds_and_near_negatives(
    base: KnowledgeBase, questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def caught(config: Any, overrides: Any, *, splits: Any, **more: Any) -> Any:
        seen.update(config=config, splits=splits)
        raise UnsupportedError("that is enough")

    monkeypatch.setattr(luthier.training.tune, "tune", caught)
    with pytest.raises(UnsupportedError):
        tune_base("shop", questions, negatives=2)
    texts = {hit.chunk.embedded for hit in chunks_of(base)}
    assert seen["config"]["objective"] == "similarity"
    for example in seen["splits"].train.examples:
        thing = next(thing for thing in THINGS if example.text.endswith(f"the {thing}?"))
        assert f"About the {thing}:" in example.positives[0]
        assert set(example.positives) | set(example.negatives) <= texts and len(example.negatives) == 2
        assert not any(thing[::-1] in text for text in example.negatives)


def test_a_reader_says_what_helps_it(base: KnowledgeBase, questions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def caught(config: Any, overrides: Any, *, splits: Any, **more: Any) -> Any:
        seen.update(config=config, splits=splits)
        raise UnsupportedError("that is enough")

    monkeypatch.setattr(luthier.training.tune, "tune", caught)
    engine = Scripted(str, lambda prompt, answer: -0.1 if answer in prompt else -6.0)
    with pytest.raises(UnsupportedError):
        tune_base("shop", questions, reader=engine, candidates=4)
    assert seen["config"]["objective"] == "lm_supervised"
    for example in seen["splits"].train.examples:
        assert example.meta["lm_scores"] == [-0.1, *[-6.0] * len(example.negatives)]
        assert len(example.negatives) == 3


def test_a_reader_trains_end_to_end(base: KnowledgeBase, questions: Path) -> None:
    engine = Scripted(str, lambda prompt, answer: -0.1 if answer in prompt else -6.0)
    report = tune_base(
        "shop", questions, reader=engine, candidates=3, overrides=["train.max_steps=1"], model_name="read"
    )
    assert report.model == "read" and report.trained > 10


def test_a_figure_and_its_verdict() -> None:
    before, after = np.array([1, 9, 9, 9] * 20), np.array([1, 1, 1, 9] * 20)
    better, same, worse = _figure(5, before, after, 0), _figure(5, after, after, 0), _figure(5, after, before, 0)
    assert (better.before.value, better.after.value) == (0.25, 0.75)
    assert better.before == wilson_interval(0.25, 80)
    assert better.change.low < 0.5 < better.change.high
    assert (better.verdict, same.verdict, worse.verdict) == ("better", "no better", "worse")


def test_what_cannot_work_is_said(base: KnowledgeBase, questions: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="prove nothing"):
        tune_base("shop", questions, held_out=questions)
    for options in ({"held_out": 1.5}, {"held_out": 0.0}, {"negatives": -1}, {"candidates": 1}, {"k": ()}):
        with pytest.raises(InputError):
            tune_base("shop", questions, **options)  # type: ignore[arg-type]
    (tmp_path / "few.jsonl").write_text('{"question": "Who?", "answers": ["X"], "source": "far.txt"}')
    with pytest.raises(InputError, match="0 questions have a chunk in shop"):
        tune_base("shop", tmp_path / "few.jsonl")
    mute = FakeEngine("mute", Config())
    mute._info = mute.info.with_(capabilities=frozenset({"generate"}))
    with pytest.raises(UnsupportedError, match="cannot score"):
        tune_base("shop", questions, reader=mute)
