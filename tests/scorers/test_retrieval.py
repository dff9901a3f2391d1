from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from luthier.core import catalog
from luthier.core.catalog import Entry
from luthier.core.document import Chunk, Hit
from luthier.core.errors import InputError
from luthier.scorers._score import Answer, Target
from luthier.scorers.retrieval import Config, score


def hit(text: str, name: str, source: str = "", title: str = "") -> Hit:
    return Hit(Chunk(f"chunk-{name}", text, 0, (0, 0)), f"doc_{name}", source or f"/files/{name}.txt", title)


RIVERS = hit(
    "The Elbe flows through Dresden and Hamburg.", "rivers", source="/data/geo/rivers.md", title="Rivers of Europe"
)
MUSIC = hit("Brahms was born in Hamburg in 1833.", "music")
长江 = hit("长江电力 是全球 最大的水电上市公司。", "DEV_425")


@pytest.mark.parametrize(
    ("meta", "answers", "found"),
    [
        ({"source": "rivers.md"}, ["Dresden"], [True, False]),
        ({"document": "geo/rivers.md"}, ["dresden"], [True, False]),
        ({"context_id": "rivers"}, ["Dresden"], [True, False]),
        ({"source": "Rivers of Europe"}, ["Dresden"], [True, False]),
        ({"context_id": "rivers"}, ["Prague"], [False, False]),  # the right place, without the answer
        ({"context_id": "rivers"}, [], [True, False]),
        ({}, ["Hamburg"], [True, True]),
        ({}, ["Ham"], [False, False]),  # not a word of its own
        ({"chunk": "chunk-music"}, ["1833"], [False, True]),
        ({"chunk": ["chunk-music", "chunk-rivers"]}, [], [True, True]),
        ({"context": RIVERS.chunk.text + " It is long."}, ["Dresden"], [True, False]),
    ],
)
def test_what_is_right(
    shown: Callable[..., Answer], meta: dict[str, Any], answers: list[str], found: list[bool]
) -> None:
    target = Target(answers[0] if answers else "", tuple(answers), meta=meta)
    for each, right in zip((RIVERS, MUSIC), found, strict=True):
        assert score(shown("", [each]), target, Config(measure="hit_rate", k=1)).value == float(right)


def test_chinese_answers_are_found_whatever_the_layout(shown: Callable[..., Answer]) -> None:
    target = Target("是全球最大的水电上市公司", meta={"context_id": "DEV_425"})
    assert score(shown("", [RIVERS, 长江]), target, Config(measure="mrr")).value == 0.5
    assert score(shown("", [长江]), Target("全国", meta={"context_id": "DEV_425"}), Config()).value == 0.0


def test_several_places_are_each_to_be_found_and_grades_are_gains(shown: Callable[..., Answer]) -> None:
    both = Target("", meta={"document": ["rivers", "music"]})
    assert score(shown("", [MUSIC]), both, Config(measure="recall")).value == 0.5
    graded = Target("", meta={"document": {"rivers": 3, "music": 1, "nothing": 0}})
    best, worst = (
        score(shown("", order), graded, Config(measure="ndcg")).value for order in ([RIVERS, MUSIC], [MUSIC, RIVERS])
    )
    assert best == 1.0
    assert worst is not None
    assert worst < 0.9


def test_match_document_does_not_look_for_the_answer(shown: Callable[..., Answer]) -> None:
    target = Target("Prague", meta={"context_id": "rivers"})
    assert score(shown("", [RIVERS]), target, Config(match="document")).value == 1.0
    assert score(shown("", [RIVERS]), Target("Dresden"), Config(match="document")).value is None


@pytest.mark.parametrize(
    "meta", [{"answerable": False}, {"answers": []}, {"answerable": "false", "context_id": "rivers"}]
)
def test_a_question_without_an_answer_is_not_scored(shown: Callable[..., Answer], meta: dict[str, Any]) -> None:
    assert score(shown("", [RIVERS]), Target("", meta=meta), Config()).value is None


def test_the_detail_tells_the_rank(shown: Callable[..., Answer]) -> None:
    target = Target("1833", meta={"context_id": "music"})
    assert score(shown("", [RIVERS, MUSIC]), target, Config(k=1)).detail == {"rank": 2}
    assert score(Answer(""), target, Config()).detail == {"rank": None}


@pytest.mark.parametrize("options", [{"measure": "f1"}, {"k": 0}, {"depth": 3}])
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    entry: Entry = catalog.load("scorers", "retrieval")
    with pytest.raises(InputError, match=next(iter(options))):
        entry.configure(options)
